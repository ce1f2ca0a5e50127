"""Directories in and out, against sentence-transformers itself."""

import json
import shutil

import jax
import numpy as np
import pytest

from jdkd.models import export, pretrained
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, Projection, prefix, tower
from jdkd.tokens import tokenizer_files
from jdkd.tokens.pairs import join_pairs

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
sentence_transformers = pytest.importorskip('sentence_transformers')
sentence = pytest.importorskip('tests.helpers.sentence')
LENGTH, TEXTS, shake, theirs = sentence.LENGTH, sentence.TEXTS, sentence.shake, sentence.theirs
edit_json = sentence.edit_json


def ours(directory):
    """(module, parameters, checkpoint)."""
    read = pretrained.read_pretrained(directory)
    params = {'transformer': read.params}
    if read.projection is not None:
        params['projection'] = read.projection_params
    return DualEncoder(read.config, read.pooling, read.normalize, read.projection), params, read


def tokenize(read, texts):
    tokenizer = tokenizer_files.load(read.tokenizer_dir).fast
    tokenizer.enable_truncation(read.max_length)
    tokenizer.enable_padding(length=LENGTH)
    return np.array([e.ids for e in tokenizer.encode_batch(texts)], np.int32)


def embed(model, params, read, texts):
    return jax.jit(model.apply)({'params': params}, tokenize(read, texts))


def save_router(bert, directory, normalize_both=False, **kwargs):
    """Untied towers, written by sentence-transformers."""
    modules = sentence_transformers.sentence_transformer.modules

    def tower(seed):
        encoder = modules.Transformer(str(bert / 'BertModel'), max_seq_length=LENGTH)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter += 0.2 * torch.randn(parameter.shape)
        dense = shake(modules.Dense(16, 6))
        normalize = [] if normalize_both else [modules.Normalize()]
        return [encoder, modules.Pooling(16, 'cls'), dense, *normalize]

    router = modules.Router(
        {name: tower(seed) for seed, name in enumerate(('query', 'document'))}, **kwargs
    )
    after = [modules.Normalize()] if normalize_both else []
    model = sentence_transformers.SentenceTransformer(modules=[router, *after], device='cpu')
    model.save(str(directory))
    return model


def untied(directory):
    """(module, parameters of both towers, checkpoint)."""
    read = pretrained.read_pretrained(directory)
    params = {
        name: {'transformer': tower.params, 'projection': tower.projection_params}
        for name, tower in (('query', read.query), ('passage', read))
    }
    return DualEncoder(read.config, read.pooling, read.normalize, read.projection), params, read


@pytest.mark.parametrize('normalize_both', [False, True])
def test_untied_towers_are_a_router(tmp_path, bert, normalize_both):
    written = save_router(bert, tmp_path / 'in', normalize_both)
    model, params, read = untied(tmp_path / 'in')
    assert model.normalize and model.projection == Projection(6, True, 'tanh')
    expected = {'query': written.encode_query(TEXTS), 'passage': written.encode_document(TEXTS)}
    assert abs(expected['query'] - expected['passage']).max() > 0.1

    export.export_sentence_transformer(
        tmp_path / 'out',
        model=model,
        params=params,
        tokenizer_dir=read.tokenizer_dir,
        max_length=LENGTH,
        model_card='',
        query_prompt='query : ',
    )
    exported = theirs(tmp_path / 'out')
    prompted = ['query : ' + text for text in TEXTS]
    for name, encode, texts in (
        ('query', exported.encode_query, prompted),
        ('passage', exported.encode_document, TEXTS),
    ):
        found = embed(model, tower(params, name), read, TEXTS)
        np.testing.assert_allclose(found, expected[name], atol=1e-5)
        found = embed(model, tower(params, name), read, texts)
        np.testing.assert_allclose(found, encode(TEXTS), atol=1e-5)
    again, again_params, again_read = untied(tmp_path / 'out')
    assert (again, again_read.query_prompt) == (model, 'query : ')
    jax.tree.map(np.testing.assert_array_equal, params, again_params)


def test_a_router_of_other_routes_is_refused(tmp_path, bert):
    save_router(bert, tmp_path / 'a', route_mappings={('query', 'text'): 'document'})
    with pytest.raises(ValueError, match='router_config.json has the routes.*without mappings'):
        pretrained.read_pretrained(tmp_path / 'a')
    save_router(bert, tmp_path / 'b')
    file = tmp_path / 'b/router_config.json'
    file.write_text(file.read_text().replace('document_0_Transformer', '../document_0'))
    with pytest.raises(ValueError, match="names '../document_0', which is not inside"):
        pretrained.read_pretrained(tmp_path / 'b')


TANH, IDENTITY = torch.nn.Tanh, torch.nn.Identity


@pytest.mark.parametrize(
    ('pooling', 'dense', 'normalize', 'projection'),
    [
        ('mean', None, True, None),
        ('cls', None, False, None),
        ('max', None, True, None),
        ('mean', {'activation_function': TANH()}, True, Projection(6, True, 'tanh')),
        (
            'cls',
            {'activation_function': IDENTITY(), 'bias': False},
            False,
            Projection(6, False, 'identity'),
        ),
        ('max', {'activation_function': torch.nn.GELU()}, True, Projection(6, True, 'gelu')),
        ('mean', {'activation_function': torch.nn.ReLU()}, False, Projection(6, True, 'relu')),
    ],
)
def test_embeddings_agree_in_and_out(tmp_path, bert, pooling, dense, normalize, projection, capfd):
    similarity = 'cosine' if normalize else 'dot'
    written = sentence.save(
        bert, tmp_path / 'in', pooling, dense, normalize, similarity_fn_name=similarity
    )
    expected = written.encode(TEXTS)
    model, params, read = ours(tmp_path / 'in')
    assert (model.pooling, model.normalize, model.projection) == (pooling, normalize, projection)
    assert read.max_length == LENGTH
    found = embed(model, params, read, TEXTS)
    assert np.std(expected, axis=0).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)

    export.export_sentence_transformer(
        tmp_path / 'out',
        model=model,
        params=params,
        tokenizer_dir=read.tokenizer_dir,
        max_length=LENGTH,
        model_card='',
    )
    capfd.readouterr()
    exported = theirs(tmp_path / 'out')
    assert 'MISSING' not in capfd.readouterr().err  # No warning of new weights.
    assert exported.max_seq_length == LENGTH
    assert exported.similarity_fn_name == similarity
    np.testing.assert_allclose(found, exported.encode(TEXTS), atol=1e-5)
    # Of one width among several: their truncation, scaled as the model does.
    narrow = prefix(found, 4, normalize=normalize)
    cut = exported.encode(TEXTS, truncate_dim=4, normalize_embeddings=normalize)
    np.testing.assert_allclose(narrow, cut, atol=1e-5)
    exported.truncate_dim = 4
    scores = exported.similarity(exported.encode(TEXTS), exported.encode(TEXTS))
    np.testing.assert_allclose(narrow @ narrow.T, scores, atol=1e-5)

    again, again_params, again_read = ours(tmp_path / 'out')
    assert (again, again_read.max_length) == (model, LENGTH)
    jax.tree.map(np.testing.assert_array_equal, again_params, params)


def test_prompts_agree_in_and_out(tmp_path, bert):
    prompts = {'query': 'query: ', 'document': 'passage: '}
    sentence.save(bert, tmp_path / 'in', prompts=prompts, similarity_fn_name='dot')
    model, params, read = ours(tmp_path / 'in')
    assert (read.query_prompt, read.passage_prompt) == ('query: ', 'passage: ')
    export.export_sentence_transformer(
        tmp_path / 'out',
        model=model,
        params=params,
        tokenizer_dir=read.tokenizer_dir,
        max_length=LENGTH,
        model_card='',
        query_prompt=read.query_prompt,
        passage_prompt=read.passage_prompt,
    )
    for directory in ('in', 'out'):
        loaded = theirs(tmp_path / directory)
        for prompt, encode in (
            ('query: ', loaded.encode_query),
            ('passage: ', loaded.encode_document),
            ('', loaded.encode),
        ):
            found = embed(model, params, read, [prompt + text for text in TEXTS])
            np.testing.assert_allclose(found, encode(TEXTS), atol=1e-5, err_msg=directory)


@pytest.fixture(scope='module')
def saved(bert, tmp_path_factory):
    """A directory with each module, as version 6 writes it."""
    directory = tmp_path_factory.mktemp('saved') / 'model'
    sentence.save(bert, directory, 'mean', {'activation_function': TANH()}, True)
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'model')


@pytest.mark.parametrize(
    ('file', 'changes', 'message'),
    [
        ('1_Pooling', {'pooling_mode': 'weightedmean'}, 'pooling weightedmean; supported is one'),
        ('1_Pooling', {'pooling_mode': 'lasttoken'}, 'pooling lasttoken; .* one of mean, cls, max'),
        ('1_Pooling', {'pooling_mode': ['mean', 'max']}, 'asks for pooling mean and max'),
        ('1_Pooling', {'include_prompt': False}, 'include_prompt=False; only True is supported'),
        ('2_Dense', {'use_residual': True}, 'use_residual=True; only False'),
        ('2_Dense', {'activation_function': 'torch.nn.Mish'}, "'torch.nn.Mish'; supported are"),
        ('2_Dense', {'activation_function': 'mine.Tanh'}, "'mine.Tanh'; supported are torch"),
        ('2_Dense', {'out_features': 7}, r'implies .*\(7, 16\)'),
        ('2_Dense', {'module_input_name': 'token_embeddings'}, "only 'sentence_embedding'"),
        ('3_Normalize', {'module_output_name': 'x'}, "='x'; only 'sentence_embedding'"),
    ],
)
def test_modules_that_we_do_not_have(copy, file, changes, message):
    edit_json(copy / file / 'config.json', **changes)
    with pytest.raises(ValueError, match=message):
        pretrained.read_pretrained(copy)


@pytest.mark.parametrize('order', [(0, 1, 3, 2), (0, 1, 2, 2), (1,), (0, 2), (0, 3)])
def test_other_orders_of_modules(copy, order):
    modules = json.loads((copy / 'modules.json').read_text())
    (copy / 'modules.json').write_text(json.dumps([modules[i] for i in order]))
    with pytest.raises(ValueError, match='has the modules .*; supported are Transformer, Pooling'):
        pretrained.read_pretrained(copy)


def test_modules_of_others(copy):
    modules = json.loads((copy / 'modules.json').read_text())
    modules[1]['type'] = 'custom_st.Pooling'
    (copy / 'modules.json').write_text(json.dumps(modules))
    with pytest.raises(ValueError, match='modules Transformer, custom_st.Pooling, Dense, Norm'):
        pretrained.read_pretrained(copy)


def test_old_spellings(copy):
    modules = json.loads((copy / 'modules.json').read_text())
    for module in modules:
        module['type'] = 'sentence_transformers.models.' + module['type'].rsplit('.')[-1]
    (copy / 'modules.json').write_text(json.dumps(modules))
    flags = {'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False}
    (copy / '1_Pooling' / 'config.json').write_text(json.dumps(flags))
    (copy / '3_Normalize' / 'config.json').unlink()
    model, _, _ = ours(copy)
    assert (model.pooling, model.normalize) == ('cls', True)
    flags = {'pooling_mode_weightedmean_tokens': True}
    (copy / '1_Pooling' / 'config.json').write_text(json.dumps(flags))
    with pytest.raises(ValueError, match='pooling weightedmean;'):
        pretrained.read_pretrained(copy)


def test_a_directory_without_modules_tells_no_pooling(copy):
    (copy / 'modules.json').unlink()
    read = pretrained.read_pretrained(copy)
    assert (read.pooling, read.normalize, read.projection) == (None, True, None)


def test_a_projection_in_pickle_is_refused(copy):
    weights = copy / '2_Dense' / 'model.safetensors'
    weights.rename(weights.with_name('pytorch_model.bin'))
    with pytest.raises(FileNotFoundError, match='2_Dense has no .*pytorch_model.bin, convert them'):
        pretrained.read_pretrained(copy)


def test_lower_case_is_the_tokenizers(copy):
    edit_json(copy / 'sentence_bert_config.json', do_lower_case=True)
    pretrained.read_pretrained(copy)
    edit_json(copy / 'tokenizer_config.json', do_lower_case=False)
    with pytest.raises(ValueError, match='do_lower_case=True, but the tokenizer keeps case; give'):
        pretrained.read_pretrained(copy)


PAIRS = [('a cat', 'the cat sat on the mat'), ('dog :', 'A mat'), ('', 'cat , cat')]


def logits(directory):
    """(module, parameters, checkpoint, our logits of `PAIRS`)."""
    read = pretrained.read_pretrained(directory)
    model, params = CrossEncoder(read.config, 'linear'), {'transformer': read.params, **read.head}
    queries, passages = (tokenize(read, texts) for texts in zip(*PAIRS, strict=True))
    tokens, types = (x[:, :16] for x in join_pairs(queries, passages, read.config.pad_id))
    return model, params, read, jax.jit(model.apply)({'params': params}, tokens, types)


def predict(directory, **kwargs):
    model = sentence_transformers.CrossEncoder(str(directory), device='cpu')
    return model.predict(PAIRS, **kwargs)


def test_cross_encoders_agree_in_and_out(tmp_path, bert):
    # As transformers writes it, with the key of sentence-transformers 2 and 3, and as 6 does.
    old, new, out = (tmp_path / name for name in ('old', 'new', 'out'))
    shutil.copytree(bert / 'BertForSequenceClassification', old)
    sigmoid = 'torch.nn.modules.activation.Sigmoid'
    edit_json(old / 'config.json', sbert_ce_default_activation_function=sigmoid)
    loaded = sentence_transformers.CrossEncoder(str(old), device='cpu', max_length=16)
    loaded.save(str(new))
    expected = loaded.predict(PAIRS, activation_fn=IDENTITY())
    assert np.std(expected) > 0.01
    for directory in (old, new):
        model, params, read, found = logits(directory)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert read.max_length == 16 and read.pooling is None

    export.export_sentence_transformer(
        out,
        model=model,
        params=params,
        tokenizer_dir=read.tokenizer_dir,
        max_length=16,
        model_card='',
    )
    np.testing.assert_allclose(predict(out, activation_fn=IDENTITY()), expected, atol=1e-5)
    # And by default: no sigmoid.
    np.testing.assert_allclose(predict(out), expected, atol=1e-5)
    exported = sentence_transformers.CrossEncoder(str(out), device='cpu')
    assert (exported.num_labels, exported.max_seq_length) == (1, 16)
    _, info = transformers.BertForSequenceClassification.from_pretrained(
        out, output_loading_info=True
    )
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    _, again, again_read, _ = logits(out)
    assert again_read.config == read.config and again_read.max_length == 16
    jax.tree.map(np.testing.assert_array_equal, again, params)
