"""Every system reads dark examples as it reads passages: in full, and by its own tokenizer."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import tokenizers

from jdkd.algorithm import mining, round_files
from jdkd.config import BM25Spec, CandidatesConfig, Config, DarkConfig, EncoderSpec, IndexConfig
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.lists.slices import MASK
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.run import Run
from jdkd.runtime import mesh as meshes
from jdkd.systems import lexical
from jdkd.systems.cross import CrossEncoderSystem
from jdkd.systems.dual import DualEncoderSystem
from jdkd.systems.encoders import load_encoder
from tests.helpers import toy

SPECIAL = '[PAD] [UNK] [CLS] [SEP] [MASK]'.split()
TITLES = ['U.S. rate', '', 'The Fed', 'Cats & Dogs', 'Blue', '']
TEXTS = [
    "The U.S. rate's 3.5% today, said the Fed; Rates rise, and rise again when Prices do.",
    'Cats sleep.\tDogs run: they do not sleep, unless the Cats do; and then Dogs sleep as well.',
    'A bank that sets rates in the U.S. when prices rise or fall, said Cats of the Blue bank.',
    'Cats run; Dogs run, too. The bank of the Dogs is the Fed of Cats, and sets no rates at all.',
    'blue fish swim when they rise, and fall when they sleep, as Dogs and Cats said to the Fed.',
    'Prices fall again today. The Blue bank said so; Cats said so, and Dogs run to the bank.',
]
LENGTH = 9  # Tokens of a passage in training: a third of it.
CASED, UNCASED = False, True


def write_tokenizer(directory, lowercase):
    words = re.findall(r'\w+|[^\w\s]', ' '.join(TITLES + TEXTS))
    words = sorted({word.lower() if lowercase else word for word in words} - {'sleep', 'Prices'})
    pieces = ['sl', '##eep', 'passage', ':']  # 'sleep' in two; cased, 'Prices' is unknown.
    vocab = {w: i for i, w in enumerate(dict.fromkeys([*SPECIAL, *words, *pieces]))}
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token='[UNK]'))
    fast.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single='[CLS] $A [SEP]',
        pair='[CLS] $A [SEP] $B:1 [SEP]:1',
        special_tokens=[('[CLS]', 2), ('[SEP]', 3)],
    )
    fast.add_special_tokens(SPECIAL)
    directory.mkdir()
    fast.save(str(directory / 'tokenizer.json'))
    inputs = ['input_ids', 'token_type_ids', 'attention_mask']
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_input_names': inputs}
    (directory / 'tokenizer_config.json').write_text(json.dumps(config))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    config = dataclasses.replace(toy.TRANSFORMER, vocab_size=90, max_positions=80)
    for name, model, lowercase in (
        ('student', DualEncoder(config, 'mean', True), UNCASED),
        ('cased', DualEncoder(config, 'mean', True), CASED),
        ('cross', CrossEncoder(config, 'linear'), CASED),
    ):
        write_tokenizer(home / f'{name}_source', lowercase)
        toy.write_model(home / name, model, tokenizer_dir=home / f'{name}_source')
    return home


def spec(home, name, passage_length, **overrides):
    return EncoderSpec(
        weights=str(home / name), query_length=8, passage_length=passage_length, **overrides
    )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The lists of a round as `keep_lists` wrote them."""

    run: Run
    home: pathlib.Path

    def lists(self, split='train'):
        return round_files.load_lists(self.run, 0, split)

    def student_tokens(self, split='train'):
        return round_files.load_dark_tokens(self.run, 0, split)

    def encoder(self, name, passage_length, **overrides):
        return load_encoder(self.run, spec(self.home, name, passage_length, **overrides))

    def scores(self, system):
        return system.list_scorer(self.run.train)(self.lists())


def draw(home, workdir, prefix='', store='float32', **dark):
    """Draws lists of one positive and two negatives for two train queries."""
    ids = [f'p{i}' for i in range(len(TEXTS))]
    passages = Passages.from_columns(ids, TITLES, TEXTS)
    queries = {'train': {'a': 'When do rates rise?', 'b': 'Do Cats sleep'}, 'dev': {'c': 'Dogs'}}
    qrels = {'train': {'a': {'p0': 1}, 'b': {'p1': 1}}, 'dev': {'c': {'p3': 1}}}
    config = Config(
        batch_size=2,
        steps_per_round=3,
        train_passage_length=LENGTH,
        candidates=CandidatesConfig(hard_negatives=2, eval_lists=2),
        dark=DarkConfig(**dark),
        index=IndexConfig(kind='exact', store=store),
    )
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    run = Run(config, workdir, mesh, Collection('c', passages, queries, qrels))
    mined = workdir / 'rounds/00/runs'
    mined.mkdir(parents=True)
    np.save(mined / 'train.npy', np.array([[2, 3, 4], [3, 5, 0]]))
    np.save(mined / 'eval.npy', np.array([[1, 4, 5]]))
    encoder = load_encoder(run, spec(home, 'student', 14, passage_prefix=prefix))
    mining.keep_lists(run, 0, {'digest': 'x'}, encoder, np.arange(2), None)
    return Drawn(run, home)


@pytest.fixture(scope='module')
def unchanged(home, tmp_path_factory):
    """Dark examples of which nothing is spliced or masked: copies of their originals."""
    return draw(
        home, tmp_path_factory.mktemp('w'), reinforced=2, noisy=1, splice=(0, 0), mask=(0, 0)
    )


SYSTEMS = {
    'bm25': lambda d: lexical.load(d.run, 'bm25', BM25Spec()),
    'student': lambda d: DualEncoderSystem('s', 's', None, d.run, d.encoder('student', 14)),
    'as short as in training': lambda d: DualEncoderSystem(
        't', 't', None, d.run, d.encoder('student', LENGTH)
    ),
    'longer': lambda d: DualEncoderSystem('l', 'l', None, d.run, d.encoder('student', 60)),
    'with a prefix': lambda d: DualEncoderSystem(
        'p', 'p', None, d.run, d.encoder('student', 60, passage_prefix='passage: ')
    ),
    'cased': lambda d: DualEncoderSystem('c', 'c', None, d.run, d.encoder('cased', 60)),
    'cross-encoder': lambda d: CrossEncoderSystem(
        'x', 'x', None, d.run, d.encoder('cross', 40, kind='cross_encoder')
    ),
}


@pytest.mark.parametrize('name', SYSTEMS)
def test_an_unchanged_dark_example_has_the_score_of_its_original(unchanged, name):
    scores = unchanged.scores(SYSTEMS[name](unchanged))
    positive, negatives, dark = scores[:, :1], scores[:, 1:3], scores[:, 3:]
    assert np.ptp(scores[:, :3], axis=1).min() > 1e-3
    expected = np.concatenate([negatives, positive], axis=1)
    np.testing.assert_allclose(dark, expected, rtol=5e-7)  # The last bit is rounded by batch.


@pytest.mark.parametrize('store', ['bfloat16', 'binary'])
def test_originals_that_were_rounded_on_disk_meet_dark_examples_rounded_alike(
    home, tmp_path, store
):
    shares = {'splice': (0, 0), 'mask': (0, 0)}
    drawn = draw(home, tmp_path, store=store, reinforced=2, noisy=1, **shares)
    scores = drawn.scores(SYSTEMS['cased'](drawn))
    np.testing.assert_array_equal(scores[:, [1, 2, 0]], scores[:, 3:])


@pytest.mark.parametrize('store', ['int8', 'binary'])
def test_queries_stay_exact_beside_quantised_passages(home, tmp_path, store):
    drawn = draw(home, tmp_path, store=store)
    system, queries = SYSTEMS['cased'](drawn), drawn.run.train
    tokens = system.encoder.query_tokens(drawn.run, queries)
    exact = system.embed(tokens, 'queries', tower='query')
    np.testing.assert_allclose(system.queries(queries)[:], exact, atol=1e-6)
    passages = system.embed(system.encoder.passage_tokens(drawn.run), 'passages')
    assert np.abs(system.passages[:] - passages).max() > 1e-4


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_the_student_reads_unchanged_dark_examples_as_it_reads_originals(unchanged, split):
    lists, sep_id = unchanged.lists(split), SPECIAL.index('[SEP]')
    store = unchanged.encoder('student', 14).passage_tokens(unchanged.run)
    originals = store.rows(lists.passages, LENGTH, end=sep_id)
    np.testing.assert_array_equal(unchanged.student_tokens(split), originals[:, [1, 2, 0]])


def test_without_dark_examples_there_are_none(home, tmp_path):
    drawn = draw(home, tmp_path, reinforced=0, noisy=0)
    assert drawn.lists().num_dark == 0 and drawn.student_tokens() is None
    assert drawn.scores(SYSTEMS['bm25'](drawn)).shape == (6, 3)


@pytest.fixture(scope='module')
def changed(home, tmp_path_factory):
    shares = {'splice': (0.3, 0.6), 'mask': (0.3, 0.3)}
    return draw(home, tmp_path_factory.mktemp('w'), 'passage: ', reinforced=2, noisy=1, **shares)


def test_dark_texts_are_slices_of_full_passages_with_titles(changed):
    lists, passages = changed.lists(), changed.run.passages
    texts = lists.dark_texts(passages, '[MASK]')
    slices = iter(lists.dark.slices.tolist())
    for text, count in zip(texts, lists.dark.counts.ravel(), strict=True):
        rest = text
        for row, start, end in (next(slices) for _ in range(count)):
            part = '[MASK]' if row == MASK else passages[row][start:end]
            assert part and (rest.startswith(part) or rest.startswith(f' {part}'))
            rest = rest.removeprefix(part) if rest.startswith(part) else rest[1 + len(part) :]
        assert not rest
    for (positive, *negatives), own in zip(
        lists.passages, np.reshape(texts, (len(lists), -1)), strict=True
    ):
        for negative, text in zip(negatives, own[:2], strict=True):
            # All of the negative but for one splice, which the positive has.
            before = common_start(passages[negative], text)
            after = common_start(passages[negative][::-1], text[::-1])
            assert before + after >= len(passages[negative])
            spliced = text[before : len(text) - after].strip()
            assert spliced and spliced in passages[positive]
        original = re.escape(passages[positive])
        for word in re.findall(r'\w+|[^\w\s]', passages[positive]):
            original = original.replace(re.escape(word), rf'(?:{re.escape(word)}|\[MASK\])', 1)
        words = len(re.findall(r'\w+|[^\w\s]', passages[positive]))
        assert own[2].count('[MASK]') == np.ceil(0.3 * words)


def common_start(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))


def test_the_student_reads_all_of_a_splice_and_the_masks_of_its_part(changed):
    lists, tokens = changed.lists(), changed.student_tokens()
    tokenizer = changed.encoder('student', 14).tokenizer
    assert tokens.shape == (6, 3, LENGTH)
    slices = iter(lists.dark.slices.tolist())
    masks = 0
    for i, counts in enumerate(lists.dark.counts):
        for example, count in zip(tokens[i], counts, strict=True):
            own = [next(slices) for _ in range(count)]
            row = ' '.join(tokenizer.fast.id_to_token(int(t)) for t in example)
            assert row.startswith('[CLS] passage : ') and row.endswith('[SEP]')
            masks += row.count('[MASK]')
            for row_of, start, end in own:
                if row_of == lists.passages[i, 0] and MASK not in [r for r, *_ in own]:
                    span = changed.run.passages[row_of][start:end]
                    words = tokenizer.fast.encode(span, add_special_tokens=False).tokens
                    assert f' {" ".join(words)} ' in row
    assert masks


@pytest.mark.parametrize('name', ['cased', 'bm25'])
def test_systems_read_case_punctuation_and_what_lies_beyond_the_students_cut(changed, name):
    lists = changed.lists()
    if name == 'bm25':
        texts = lists.dark_texts(changed.run.passages)
        assert not any('[MASK]' in text for text in texts)
    else:
        encoder = changed.encoder('cased', 60)
        store = encoder.dark_tokens(changed.run, lists)
        texts = lists.dark_texts(changed.run.passages, '[MASK]')
        for i, text in enumerate(texts):
            np.testing.assert_array_equal(store[i], encoder.tokenizer.fast.encode(text).ids)
    assert all(len(text.split()) > LENGTH for text in texts)
    assert any('U.S.' in text for text in texts)
    scores = changed.scores(SYSTEMS[name](changed))
    assert (scores[:, 3:] != scores[:, [1, 2, 0]]).any(axis=0).all()


def test_draws_depend_on_the_list_alone(changed, home, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, 'PART_LISTS', 4)
    shares = {'splice': (0.3, 0.6), 'mask': (0.3, 0.3)}
    again = draw(home, tmp_path, 'passage: ', reinforced=2, noisy=1, **shares)
    files = sorted(path.name for path in (tmp_path / 'rounds/00/candidates').glob('train-dark-*'))
    assert len(files) == 2
    for name in ('slices', 'counts'):
        found, expected = (getattr(d.lists().dark, name) for d in (again, changed))
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again.student_tokens(), changed.student_tokens())
    part = slice(3, 5)
    texts = changed.lists().dark_texts(changed.run.passages)
    assert changed.lists()[part].dark_texts(changed.run.passages) == texts[9:15]
