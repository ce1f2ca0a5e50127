"""Similarity, lengths, prompts and modules of odd checkpoints, beside sentence-transformers."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from absl import logging

import jdkd
from jdkd.config import EncoderSpec
from jdkd.models import export, pretrained
from jdkd.models.dual_encoder import DualEncoder
from jdkd.systems import loading
from tests.helpers import reference

sentence = pytest.importorskip('tests.helpers.sentence')
modules = sentence.sentence_transformers.sentence_transformer.modules

QUERIES = ['the cat', 'dog : on a mat , the dog sat', 'mat ' * 15]
CONFIG = 'config_sentence_transformers.json'
SETTINGS = 'sentence_bert_config.json'


def ours(directory):
    """Scores of all queries and passages, as a user of jdkd gets them."""
    retriever = jdkd.load(directory)
    return retriever.encode(QUERIES, kind='query') @ retriever.encode(sentence.TEXTS).T


def theirs(directory, prompt=None):
    model = sentence.theirs(directory)
    passages = model.encode_document(sentence.TEXTS, prompt=prompt)
    return model.similarity(model.encode_query(QUERIES), passages).numpy()


def assert_equal_scores(directory, **kwargs):
    expected = theirs(directory, **kwargs)
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(ours(directory), expected, atol=2e-5, rtol=1e-5)
    return expected


def edit(file, **changes):
    """Edits a JSON file, which it makes; `...` removes a key."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content = {key: value for key, value in (content | changes).items() if value is not ...}
    file.write_text(json.dumps(content))


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
    return said


def no_file(directory):
    (directory / CONFIG).unlink()


def no_modules(directory):
    (directory / 'modules.json').unlink()
    edit(directory / CONFIG, prompts={'query': 'dog ', 'document': 'cat '})


@pytest.mark.parametrize(
    ('normalize', 'change', 'is_cosine'),
    [
        (False, {'similarity_fn_name': 'cosine'}, True),
        (False, {'similarity_fn_name': ...}, True),
        (False, {'similarity_fn_name': None}, True),
        (False, no_file, True),
        (False, no_modules, True),
        (False, {'similarity_fn_name': 'dot'}, False),
        (True, {'similarity_fn_name': 'dot'}, True),
        (True, {'similarity_fn_name': ...}, True),
        (True, no_file, True),
    ],
)
def test_similarity_is_what_sentence_transformers_makes_of_it(
    tmp_path, bert, normalize, change, is_cosine
):
    directory = tmp_path / 'model'
    sentence.save(bert, directory, 'mean', None, normalize, similarity_fn_name='dot')
    change(directory) if callable(change) else edit(directory / CONFIG, **change)
    assert pretrained.read_pretrained(directory).normalize == is_cosine
    assert (abs(assert_equal_scores(directory)).max() <= 1.001) == is_cosine


def test_similarity_of_untied_towers(tmp_path, bert):
    router = modules.Router(
        {
            route: [
                modules.Transformer(str(bert / 'BertModel'), max_seq_length=length),
                modules.Pooling(16, 'cls'),
                modules.Dropout(0.5),
                sentence.shake(modules.Dense(16, 6)),
            ]
            for route, length in (('query', 5), ('document', 9))
        }
    )
    model = sentence.sentence_transformers.SentenceTransformer(modules=[router], device='cpu')
    model.save(str(tmp_path))
    assert_equal_scores(tmp_path)


@pytest.mark.parametrize('name', ['euclidean', 'manhattan'])
def test_distances_are_refused_unless_overridden(tmp_path, bert, name):
    sentence.save(bert, tmp_path, similarity_fn_name=name)
    with pytest.raises(ValueError, match=f'compares embeddings by {name} distance .*normalize=Tr'):
        jdkd.load(tmp_path)
    source = pretrained.read_pretrained(tmp_path)
    for normalize in (False, True):
        spec = EncoderSpec(weights=str(tmp_path), normalize=normalize)
        assert loading._make_module(spec, source).normalize == normalize
    edit(tmp_path / CONFIG, similarity_fn_name='maxsim')
    with pytest.raises(ValueError, match="similarity_fn_name='maxsim'; it must be one of cosine"):
        pretrained.read_pretrained(tmp_path)
    edit(tmp_path / CONFIG, similarity_fn_name='dot', truncate_dim=8)
    with pytest.raises(ValueError, match='truncate_dim=8, which jdkd does not support; remove it'):
        pretrained.read_pretrained(tmp_path)


def test_the_log_says_that_the_cosine_is_a_default(tmp_path, bert, warnings):
    sentence.save(bert, tmp_path)
    spec = EncoderSpec(weights=str(tmp_path))
    loading.resolve(spec, pretrained.read_pretrained(tmp_path))
    assert warnings == []
    edit(tmp_path / CONFIG, similarity_fn_name=...)
    source = pretrained.read_pretrained(tmp_path)
    assert loading.resolve(spec, source).normalize
    assert 'names no similarity_fn_name: it is used with the cosine' in warnings.pop()
    loading.resolve(EncoderSpec(weights=str(tmp_path), normalize=True), source)
    assert warnings == []


LEGACY = ('roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet')


@pytest.mark.parametrize(
    ('files', 'lengths'),
    [
        *(({f'sentence_{name}_config.json': {'max_seq_length': 5}}, (5, 5)) for name in LEGACY),
        ({SETTINGS: {'max_seq_length': 6}}, (6, 6)),
        # The first file that is not empty counts, whatever it holds.
        ({SETTINGS: {}, 'sentence_xlnet_config.json': {'max_seq_length': 4}}, (4, 4)),
        (
            {
                SETTINGS: {'do_lower_case': False},
                'sentence_xlnet_config.json': {'max_seq_length': 4},
            },
            (12, 12),
        ),
        ({SETTINGS: {'max_seq_length': 9, 'query_length': 4}}, (4, 9)),
        ({SETTINGS: {'max_seq_length': 9, 'document_length': 4}}, (9, 4)),
        ({SETTINGS: {'query_length': 5, 'document_length': 7}}, (5, 7)),
        ({SETTINGS: {'max_seq_length': 5, 'query_length': 14}}, (14, 5)),
        ({'tokenizer_config.json': {'model_max_length': 8}}, (8, 8)),
        ({'tokenizer_config.json': {'model_max_length': ..., 'max_len': 7}}, (7, 7)),
        ({'tokenizer_config.json': {'model_max_length': ...}}, (20, 20)),
    ],
)
def test_texts_are_cut_where_sentence_transformers_cuts(tmp_path, bert, files, lengths):
    sentence.save(bert, tmp_path)
    (tmp_path / SETTINGS).unlink()
    for name, changes in files.items():
        edit(tmp_path / name, **changes)
    read = pretrained.read_pretrained(tmp_path)
    assert (read.query_length, read.passage_length) == lengths
    assert_equal_scores(tmp_path)


@pytest.mark.parametrize('lengths', [(6, 9), (9, 6), (8, 8)])
@pytest.mark.parametrize('untied', [False, True])
def test_an_export_cuts_queries_and_passages_as_the_student_does(tmp_path, bert, lengths, untied):
    read = pretrained.read_pretrained(bert / 'BertModel')
    params = {'transformer': read.params}
    if untied:
        other = jax.tree.map(lambda x: x * np.float32(1.1), params)
        params = {'query': other, 'passage': params}
    export.export_sentence_transformer(
        tmp_path / 'out',
        model=DualEncoder(read.config),
        params=params,
        tokenizer_dir=read.tokenizer_dir,
        max_length=max(lengths),
        query_length=lengths[0],
        passage_length=lengths[1],
        model_card='',
    )
    retriever = jdkd.load(tmp_path / 'out')
    spec = retriever.encoder.spec
    assert (spec.query_length, spec.passage_length) == lengths
    assert_equal_scores(tmp_path / 'out')
    # One length is written as every version of sentence-transformers reads it.
    settings = json.loads(next((tmp_path / 'out').rglob(SETTINGS)).read_text())
    assert (settings.keys() <= {'max_seq_length', 'do_lower_case'}) == (untied or lengths == (8, 8))


def test_lengths_beyond_the_checkpoints_own_are_warned_of_by_name(tmp_path, bert, warnings):
    sentence.save(bert, tmp_path)
    edit(tmp_path / SETTINGS, query_length=5, document_length=7)
    for query, passage, expected in (
        (5, 7, []),
        (6, 7, ['at most 5 tokens (its query_length), but query_length=6']),
        (5, 8, ['at most 7 tokens (its document_length), but']),
    ):
        spec = EncoderSpec(weights=str(tmp_path), query_length=query, passage_length=passage)
        loading.read_model(spec, 0)
        assert len(warnings) == len(expected)
        assert all(text in said for text, said in zip(expected, warnings, strict=True))
        warnings.clear()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'transformer_task': 'fill-mask'}, "transformer_task='fill-mask', which jdkd does not"),
        ({'query_expansion': {'length': 8}}, 'has query_expansion='),
        ({'processing_kwargs': {'text': {'max_length': 4}}}, 'has processing_kwargs='),
        ({'tokenizer_args': {'do_lower_case': False}}, 'has tokenizer_args='),
        ({'config_kwargs': {'num_hidden_layers': 1}}, 'has config_kwargs='),
        ({'tokenizer_name_or_path': 'bert-base-cased'}, 'has tokenizer_name_or_path='),
        ({'query_length': 'short'}, "query_length='short'; it must be a number of tokens"),
        ({'document_length': -1}, 'document_length=-1; it must be a number of tokens'),
        ({'query_length': 0}, 'query_length=0; it must be a number of tokens'),
    ],
)
def test_settings_that_change_embeddings_are_refused_by_name(tmp_path, bert, change, message):
    sentence.save(bert, tmp_path)
    edit(tmp_path / SETTINGS, **change)
    with pytest.raises(ValueError, match=message):
        pretrained.read_pretrained(tmp_path)


def test_settings_that_change_nothing_are_read_over(tmp_path, bert):
    sentence.save(bert, tmp_path)
    inert = {'unpad_inputs': False, 'model_args': {'torch_dtype': 'float32'}, 'config_args': {}}
    edit(tmp_path / SETTINGS, query_expansion=None, **inert)
    assert_equal_scores(tmp_path)


@pytest.mark.parametrize(
    ('prompts', 'expected', 'name'),
    [
        ({'query': 'dog ', 'document': 'mat '}, ('dog ', 'mat '), 'document'),
        ({'query': 'dog ', 'passage': 'mat '}, ('dog ', 'mat '), 'passage'),
        ({'query': 'dog ', 'corpus': 'mat '}, ('dog ', 'mat '), 'corpus'),
        # As sentence-transformers saves the prompts above again.
        ({'query': 'dog ', 'document': '', 'passage': 'mat '}, ('dog ', 'mat '), 'passage'),
        ({'query': 'dog ', 'document': 'mat ', 'passage': 'cat '}, ('dog ', 'mat '), 'document'),
        ({'clustering': 'cat '}, ('', ''), 'document'),
        (None, ('', ''), 'document'),
    ],
)
def test_prompts_and_the_log_says_which_is_for_passages(
    tmp_path, bert, warnings, prompts, expected, name
):
    sentence.save(bert, tmp_path)
    edit(tmp_path / CONFIG, prompts=prompts or {})
    assert_equal_scores(tmp_path, prompt=expected[1])
    edit(tmp_path / CONFIG, prompts=prompts)
    read = pretrained.read_pretrained(tmp_path)
    assert (read.query_prompt, read.passage_prompt) == expected
    assert bool(warnings) == (name != 'document')
    for said in warnings:
        assert f"passages begin with its prompt '{name}', 'mat '" in said
    warnings.clear()
    loading.resolve(EncoderSpec(weights=str(tmp_path), passage_prefix='p: '), read)
    assert warnings == []


DROPOUT = 'sentence_transformers.models.Dropout'


@pytest.mark.parametrize('places', [(2,), (3,), (4,), (2, 2), (2, 3, 4)])
def test_dropout_modules_do_nothing(tmp_path, bert, places):
    dense = {'activation_function': sentence.torch.nn.Tanh()}
    sentence.save(bert, tmp_path, 'mean', dense, normalize=True)
    expected = theirs(tmp_path)
    chain = json.loads((tmp_path / 'modules.json').read_text())
    for place in sorted(places, reverse=True):
        path = f'{place}_Dropout'
        (tmp_path / path).mkdir(exist_ok=True)
        (tmp_path / path / 'config.json').write_text('{"dropout": 0.3}')
        chain.insert(place, {'path': path, 'type': DROPOUT})
    named = [module | {'idx': i, 'name': str(i)} for i, module in enumerate(chain)]
    (tmp_path / 'modules.json').write_text(json.dumps(named))
    np.testing.assert_allclose(assert_equal_scores(tmp_path), expected, atol=1e-6)


def test_dropout_before_pooling_is_refused(tmp_path, bert):
    sentence.save(bert, tmp_path)
    chain = json.loads((tmp_path / 'modules.json').read_text())
    chain.insert(1, {'path': '', 'type': DROPOUT})
    (tmp_path / 'modules.json').write_text(json.dumps(chain))
    with pytest.raises(ValueError, match='Transformer, Dropout, Pooling; supported are .*Dropout'):
        pretrained.read_pretrained(tmp_path)


def test_modules_without_their_config(tmp_path, bert):
    sentence.save(bert, tmp_path)
    flags = {f'pooling_mode_{name}': False for name in ('cls_token', 'mean_tokens')}
    (tmp_path / '1_Pooling/config.json').write_text(
        json.dumps({'word_embedding_dimension': 16, **flags})
    )
    assert_equal_scores(tmp_path)  # With no flag set, by mean.
    shutil.rmtree(tmp_path / '1_Pooling')
    with pytest.raises(FileNotFoundError, match='1_Pooling has no config.json; fetch the checkpo'):
        pretrained.read_pretrained(tmp_path)


@pytest.mark.parametrize(
    'variant', ['bert', 'distilbert', 'roberta', 'electra', 'mpnet', 'deberta-v3', 'modernbert']
)
def test_a_bare_encoder_may_call_itself_a_classifier(tmp_path, variant, warnings):
    model = reference.build(variant)
    model.base_model.save_pretrained(tmp_path)
    expected = pretrained.read_pretrained(tmp_path)
    architecture = type(model).__name__
    edit(tmp_path / 'config.json', architectures=[architecture])
    assert sentence.transformers.AutoModel.from_pretrained(tmp_path).num_parameters() > 0
    read = pretrained.read_pretrained(tmp_path)
    assert not read.classifies and read.head is None and read.labels == ()
    jax.tree.map(np.testing.assert_array_equal, read.params, expected.params)
    assert f'names {architecture}, but the weights lack its classifier' in warnings[0]
    (architecture_only,) = pretrained.read_architectures(tmp_path)
    assert not architecture_only.classifies
    model.save_pretrained(tmp_path)  # And with its classifier it is one.
    assert pretrained.read_pretrained(tmp_path).classifies


@pytest.mark.parametrize(
    'task',
    ['TokenClassification', 'QuestionAnswering', 'MultipleChoice', 'MaskedLM', 'PreTraining'],
)
def test_heads_of_other_tasks_are_left_out(tmp_path, bert, task):
    config = sentence.transformers.AutoConfig.from_pretrained(bert / 'BertModel')
    model = getattr(sentence.transformers, f'BertFor{task}')(config)
    model.save_pretrained(tmp_path)
    read = pretrained.read_pretrained(tmp_path)
    assert not read.classifies
    model.base_model.save_pretrained(tmp_path / 'bare')
    expected = pretrained.read_pretrained(tmp_path / 'bare')
    jax.tree.map(np.testing.assert_array_equal, read.params, expected.params)


@pytest.mark.parametrize('kind', ['SparseEncoder', 'MultiVectorEncoder', '\x1b[2J'])
def test_models_of_other_kinds_are_refused(tmp_path, bert, kind):
    sentence.save(bert, tmp_path)
    edit(tmp_path / CONFIG, model_type=kind)
    with pytest.raises(ValueError, match=re.escape(f'model_type={kind!r}; give a checkp')):
        pretrained.read_pretrained(tmp_path)
    edit(tmp_path / CONFIG, model_type='CrossEncoder')
    with pytest.raises(ValueError, match='model_type=CrossEncoder, but .* Transformer, Pooling;'):
        pretrained.read_pretrained(tmp_path)


@pytest.mark.parametrize('default', [None, 'query', 'other'])
def test_a_cross_encoder_begins_queries_with_its_default_prompt(tmp_path, bert, default):
    prompts = {'query': 'dog ', 'document': 'mat ', 'other': 'cat '}
    model = sentence.sentence_transformers.CrossEncoder(
        str(bert / 'BertForSequenceClassification'),
        device='cpu',
        prompts=prompts,
        default_prompt_name=default,
    )
    model.save(str(tmp_path))
    read = pretrained.read_pretrained(tmp_path)
    assert (read.query_prompt or None, read.passage_prompt) == (
        model._resolve_prompt(None, None),
        '',
    )
    expected = model.predict([('the cat', 'a mat')])
    plain = model.predict([(read.query_prompt + 'the cat', 'a mat')], prompt='')
    np.testing.assert_allclose(plain, expected, atol=1e-6)


def test_padding_that_config_json_names_otherwise(tmp_path, bert):
    """As multilingual-e5-small, whose tokenizer is not its family's."""
    sentence.save(bert, tmp_path)
    edit(tmp_path / 'config.json', pad_token_id=3)
    assert_equal_scores(tmp_path)
