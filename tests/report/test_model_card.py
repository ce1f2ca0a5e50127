"""Model cards, where exports go, and the hub as far as it can be tried without one."""

import dataclasses
import re
import types

import ml_collections
import pytest
import yaml

from jdkd.models import export
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig
from jdkd.report import model_card

TINY = TransformerConfig(
    vocab_size=8, hidden_size=8, num_layers=3, num_heads=2, intermediate_size=10
)
FOUND = {
    'test': {
        'minilm_ft': {'R@100': 0.9, 'MRR@10': 0.5},
        'student': {'R@100': 0.95, 'MRR@10': 0.552},
        'teacher_rerank': {'R@100': 0.9, 'MRR@10': 0.67},
    },
    'collection': {'passages': 8000, 'queries': {'test': 796}, 'sha256': 'def456'},
    'config_sha256': 'abc123',
    'final': 'student_01',
    'rounds': [
        {'entered': 'student_aligned'},
        {'entered': 'student_00'},
        {'entered': 'student_00'},
    ],
}


@pytest.fixture
def run(tmp_path):
    config = {
        'teacher': {'members': ('bm25', 'cross')},
        'assistants': ('minilm_ft',),
        'align': {'to': ('minilm_ft',)},
        'first_stage': 'bm25',
        'measures': ('MRR@10', 'R@100'),
        'rounds': 2,
        'steps_per_round': 40,
        'train_passage_length': 30,
    }
    return types.SimpleNamespace(
        config=ml_collections.FrozenConfigDict(config),
        workdir=tmp_path,
        collection=types.SimpleNamespace(name='python_docs', license=None),
        test=types.SimpleNamespace(split='test'),
    )


@dataclasses.dataclass
class FakeEncoder:
    spec: ml_collections.FrozenConfigDict
    model: object
    params: object = None
    tokenizer: object = dataclasses.field(
        default_factory=lambda: types.SimpleNamespace(directory='tokenizer')
    )
    source: object = dataclasses.field(
        default_factory=lambda: types.SimpleNamespace(license='mit', query=None)
    )


def encoder(kind='dual_encoder', **changes):
    spec = {
        'kind': kind,
        'weights': 'org/base',
        'layers': (0, 2, 5),
        'hidden_size': None,
        'query_length': 16,
        'passage_length': 40,
        'query_prefix': '',
        'passage_prefix': '',
        'passage_format': 'joined',
        'train': {'steps': 0, 'negatives_from': 'bm25'},
    }
    model = CrossEncoder(TINY, 'linear') if kind == 'cross_encoder' else DualEncoder(TINY)
    return FakeEncoder(ml_collections.FrozenConfigDict({**spec, **changes}), model)


def front(card):
    return yaml.safe_load(card.split('---\n')[1])


def one_line(card):
    return ' '.join(card.split())


def test_the_students_card(run):
    card = model_card.model_card(run, 'student', encoder(), FOUND)
    assert front(card) == {
        'library_name': 'sentence-transformers',
        'pipeline_tag': 'sentence-similarity',
        'tags': ['sentence-transformers', 'dual-encoder', 'jdkd'],
        'base_model': 'org/base',
        'license': 'mit',
    }
    assert '| system | MRR@10 | R@100 |\n| --- | --- | --- |\n' in card
    assert '| **student** | 55.2 | 95.0 |\n' in card and '| minilm_ft | 50.0 | 90.0 |\n' in card
    text = one_line(card)
    assert (
        'a dual-encoder of 3 layers and 8 hidden units, begun as layers 0, 2, 5 of `org/b' in text
    )
    assert '2 rounds of 40 steps each from teacher bm25 + cross and assistants minilm_ft' in text
    assert 'on `python_docs` (terms of the texts: not stated)' in text
    assert 'Measured on 796 test queries over 8000 passages' in text
    assert 'config sha256: abc123 - collection sha256: def456' in text
    assert 'Queries begin' not in text


def test_cards_of_other_systems(run, tmp_path):
    trained = {'steps': 150, 'negatives_from': 'bm25'}
    given = encoder(
        'cross_encoder', train=trained, weights=str(tmp_path), layers=(), query_prefix='q: '
    )
    card = model_card.model_card(run, 'cross', given, FOUND)
    assert front(card)['pipeline_tag'] == 'text-ranking'
    assert 'base_model' not in front(card)  # A path: the hub would refuse it.
    text = one_line(card)
    assert 'begun as all layers of' in text and 'CrossEncoder("path/to/this/directory")' in text
    assert 'fine-tuned for 150 steps on the labels, with hard negatives of bm25, on `pyth' in text
    assert "Queries begin with the prompt `'q: '`, passages with `''`: add them." in text
    card = model_card.model_card(run, 'minilm', encoder(passage_prefix='p: '), FOUND)
    assert 'not trained further, and measured on `python_docs`' in one_line(card)
    assert "passages with `'p: '`; the calls above add them." in one_line(card)


@pytest.mark.parametrize(
    'weights', ['{tmp}/model', '{tmp}/gone', '~/models/x', './model', 'model', '../x', 'a/b/c']
)
def test_cards_name_no_local_path(run, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'model').mkdir()
    weights = weights.format(tmp=tmp_path)
    card = model_card.model_card(run, 'student', encoder(weights=weights), FOUND)
    assert f'`{weights}`' not in card and str(tmp_path) not in card
    assert 'base_model' not in front(card)
    assert 'begun as layers 0, 2, 5 of a checkpoint on disk, distilled' in one_line(card)


@pytest.mark.parametrize(
    ('final', 'training'),
    [
        ('student_00', 'distilled over 1 round of 40 steps each from teacher bm25'),
        ('student_01', 'distilled over 2 rounds of 40 steps each from teacher bm25'),
        # Round 1 was taken back.
        ('student_02', 'distilled over 2 rounds of 40 steps each from teacher bm25'),
        ('student_aligned', 'aligned with minilm_ft on `python_docs`'),
        ('student_init', 'not trained on `python_docs`'),
    ],
)
def test_the_card_says_what_the_best_student_has_learned(run, final, training):
    card = model_card.model_card(run, 'student', encoder(), FOUND | {'final': final})
    assert training in one_line(card)


def test_cards_of_runs_that_knew_no_backtrack(run):
    found = FOUND | {'rounds': [{}, {}]}
    card = model_card.model_card(run, 'student', encoder(), found)
    assert 'distilled over 2 rounds of 40 steps' in one_line(card)


@pytest.mark.parametrize('weights', ['org/base', 'bert-base-uncased', '_org/a.b-c'])
def test_cards_name_the_model_on_the_hub(run, weights):
    card = model_card.model_card(run, 'student', encoder(weights=weights), FOUND)
    assert front(card)['base_model'] == weights and f'of `{weights}`' in one_line(card)


def test_the_model_card_shows_markup_and_does_not_hold_it(run):
    script = '</h1><script>alert(1)</script>'
    run.collection.name = f'a {script} ` <b> | # b'
    run.collection.license = 'mit\n---\n# [x](javascript:alert(1))'
    given = encoder(query_prefix=f'`{script}\n')
    given.source.license = 'mit\ntags: [evil]\nx: !!python/object/apply:os.system ["id"]'
    card = model_card.model_card(run, 'student', given, FOUND)
    head, _, body = card.removeprefix('---\n').partition('---\n')
    assert yaml.safe_load(head)['license'] == given.source.license
    assert yaml.safe_load(head)['tags'] == ['sentence-transformers', 'dual-encoder', 'jdkd']
    outside_code = re.sub('`[^`\n]*`', '', re.sub('```.*?```', '', body, flags=re.DOTALL))
    assert '<' not in outside_code and 'javascript' not in outside_code
    assert '\n---\n' not in body


@pytest.mark.parametrize(
    ('name', 'output', 'expected'),
    [
        ('student', None, 'student'),
        ('minilm_ft', None, 'exported/minilm_ft'),
        ('student', 'elsewhere', 'elsewhere'),
    ],
)
def test_where_exports_go(run, tmp_path, monkeypatch, name, output, expected):
    written = []
    monkeypatch.setattr(
        export,
        'export_sentence_transformer',
        lambda *args, **kwargs: written.append((args, kwargs)),
    )
    given = encoder(query_prefix='q: ')
    returned = model_card.write(run, name, given, FOUND, output and tmp_path / output)
    assert returned == tmp_path / expected
    ((directory,), kwargs) = written[0]
    assert directory == returned and kwargs['max_length'] == 40
    assert (kwargs['query_length'], kwargs['passage_length']) == (16, 40)
    assert (kwargs['query_prompt'], kwargs['passage_prompt']) == ('q: ', '')
    model_card.write(run, 'cross', encoder('cross_encoder'), FOUND)
    _, kwargs = written[1]
    assert kwargs['max_length'] == 55
    given = encoder('cross_encoder')
    given.model = CrossEncoder(dataclasses.replace(TINY, family='roberta'), 'linear')
    model_card.write(run, 'cross', given, FOUND)
    assert written[2][1]['max_length'] == 56  # Its pairs have two separators.


def test_the_students_card_says_what_quality_costs():
    measured = {'MRR@10': 0.623}
    costs = {
        'machine': {'devices': 4, 'device': 'TPU v5 lite', 'cpus': 112},
        'systems': {'student': {'milliseconds_per_search': 29.7, 'parameters': 17_241_984}},
        'sizes': [{'width': 384, 'store': 'int8', 'bytes_per_passage': 384, 'test': measured}],
    }
    shown = model_card._costs({'costs': costs, 'test': {'student': measured}})
    assert 'Measured once, on 4 x TPU v5 lite and 112 CPU cores' in shown
    assert '| student | 17,241,984 |  |  |  | 29.7 | 62.3 |' in shown
    assert '| 384 dimensions, int8 | 384 | 62.3 |' in shown
