"""What a config entry leaves to the checkpoint, and what it overrides."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
import tokenizers
from absl import logging
from flax import traverse_util

from jdkd.config import EncoderSpec, schema
from jdkd.configs import common
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.models import export
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.models.transformer import TransformerConfig
from jdkd.run import Queries
from jdkd.runtime import mesh, stages
from jdkd.systems import encoders, loading
from jdkd.systems.dual import DualEncoderSystem
from jdkd.tokens.store import TokenStore

TINY = TransformerConfig(
    vocab_size=8,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    intermediate_size=10,
    max_positions=40,
)
DUAL = DualEncoder(TINY, 'max', False, Projection(4, True, 'tanh'))


def write(directory, model, seed=0, **kwargs):
    """The model with random parameters, exported; returns its parameters."""
    source = directory.with_name('tokenizer')
    source.mkdir(exist_ok=True)
    vocab = {word: i for i, word in enumerate('[PAD] [UNK] [CLS] [SEP] [MASK] cat q p'.split())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(source / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
    (source / 'tokenizer_config.json').write_text(json.dumps(config))
    row = np.ones((1, 4), np.int32)
    rows = (row, row) if isinstance(model, CrossEncoder) else (row,)
    params = jax.device_get(model.init(jax.random.key(seed), *rows)['params'])
    export.export_sentence_transformer(
        directory,
        model=model,
        params=params,
        tokenizer_dir=source,
        max_length=24,
        model_card='',
        **kwargs,
    )
    return params


def entry(directory, **overrides):
    lengths = {'query_length': 10, 'passage_length': 15}
    c = common.encoder(str(directory), **{**lengths, **overrides})
    return schema.read(EncoderSpec, c.copy_and_resolve_references())


def test_all_is_as_the_checkpoint_says(tmp_path):
    written = write(tmp_path / 'model', DUAL, query_prompt='query: ', passage_prompt='passage: ')
    model, params, source = loading.read_model(entry(tmp_path / 'model'), 0)
    assert model == DUAL
    jax.tree.map(np.testing.assert_array_equal, params, written)
    spec = loading.resolve(entry(tmp_path / 'model'), source)
    assert (spec.pooling, spec.normalize) == ('max', False)
    assert (spec.query_prefix, spec.passage_prefix) == ('query: ', 'passage: ')


def test_overrides_win_and_an_empty_prefix_means_none(tmp_path):
    write(tmp_path / 'model', DUAL, query_prompt='query: ', passage_prompt='passage: ')
    asked = entry(
        tmp_path / 'model',
        pooling='cls',
        normalize=True,
        query_prefix='',
        passage_prefix='p ',
        passage_format='colon',
    )
    model, _, source = loading.read_model(asked, 0)
    assert (model.pooling, model.normalize, model.projection) == ('cls', True, DUAL.projection)
    assert loading.resolve(asked, source) == asked


def test_a_plain_encoder_is_pooled_by_mean_without_prefixes(tmp_path):
    write(tmp_path / 'model', DUAL)
    for name in ('modules.json', 'config_sentence_transformers.json'):
        (tmp_path / 'model' / name).unlink()
    model, params, source = loading.read_model(entry(tmp_path / 'model'), 0)
    # As by sentence-transformers, with the cosine.
    assert model == DualEncoder(TINY, 'mean', True) and set(params) == {'transformer'}
    spec = loading.resolve(entry(tmp_path / 'model'), source)
    assert (spec.query_prefix, spec.passage_prefix) == ('', '')


def test_a_cross_encoder_keeps_its_head(tmp_path):
    written = write(tmp_path / 'model', CrossEncoder(TINY, 'linear'))
    model, params, _ = loading.read_model(entry(tmp_path / 'model', kind='cross_encoder'), 0)
    assert model == CrossEncoder(TINY, 'linear')
    jax.tree.map(np.testing.assert_array_equal, params, written)


@pytest.mark.parametrize(
    ('overrides', 'warns'),
    [
        ({'passage_length': 24}, False),
        ({'passage_length': 25}, True),
        ({'passage_length': 25, 'train': {'steps': 9}}, False),
        ({'kind': 'cross_encoder', 'passage_length': 15}, False),
        ({'kind': 'cross_encoder', 'passage_length': 16}, True),
    ],
)
def test_lengths_beyond_the_checkpoints_are_warned_of(tmp_path, monkeypatch, overrides, warns):
    write(tmp_path / 'model', DUAL)
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
    loading.read_model(entry(tmp_path / 'model', **overrides), 0)
    assert bool(said) == warns
    assert all('was made for at most 24 tokens (its max_seq_length), but' in s for s in said)


def test_lengths_beyond_the_positions_are_an_error(tmp_path):
    write(tmp_path / 'model', DUAL)
    with pytest.raises(ValueError, match='has 40 positions, but query_length=10 and passage_len'):
        loading.read_model(entry(tmp_path / 'model', passage_length=41), 0)


def test_a_projection_of_another_width_is_an_error(tmp_path):
    write(tmp_path / 'model', DUAL)
    wide = DualEncoder(
        TransformerConfig(**{**TINY.__dict__, 'hidden_size': 12}), projection=DUAL.projection
    )
    write(tmp_path / 'wide', wide)
    shutil.copytree(tmp_path / 'wide/2_Dense', tmp_path / 'model/2_Dense', dirs_exist_ok=True)
    assert json.loads((tmp_path / 'model/2_Dense/config.json').read_text())['in_features'] == 12
    with pytest.raises(
        ValueError, match='Dense module of .* takes 12 dimensions, but the encoder has 8'
    ):
        loading.read_model(entry(tmp_path / 'model'), 0)


def fake_run(directory):
    return types.SimpleNamespace(
        config=types.SimpleNamespace(seed=0),
        mesh=mesh.make_mesh(),
        workdir=directory,
        passages=['cat cat', 'cat'],
        collection=types.SimpleNamespace(fingerprint='c'),
        stage=lambda path, *args, **kwargs: stages.build_stage(directory / path, *args, **kwargs),
    )


def test_prefixes_come_before_queries_and_passages(tmp_path):
    write(tmp_path / 'model', DUAL, query_prompt='q ', passage_prompt='p ')
    run = fake_run(tmp_path)
    queries = Queries('test', ['a'], ['cat'], [np.array([0])], [np.array([0])])
    q, p, cat = 6, 7, 5

    def tokens(**overrides):
        encoder = encoders.load_encoder(run, entry(tmp_path / 'model', **overrides))
        stores = encoder.query_tokens(run, queries), encoder.passage_tokens(run)
        return [store.rows(np.arange(len(store)), 3) for store in stores]

    for overrides, expected_queries, expected_passages in (
        ({}, [[q, cat, 0]], [[p, cat, cat], [p, cat, 0]]),
        ({'query_prefix': ''}, [[cat, 0, 0]], [[p, cat, cat], [p, cat, 0]]),
        ({'passage_prefix': 'q '}, [[q, cat, 0]], [[q, cat, cat], [q, cat, 0]]),
        # Alike but for a sign: not the same store.
        ({'query_prefix': 'q, '}, [[q, 1, cat]], [[p, cat, cat], [p, cat, 0]]),
    ):
        found_queries, found_passages = tokens(**overrides)
        np.testing.assert_array_equal(found_queries, expected_queries, err_msg=str(overrides))
        np.testing.assert_array_equal(found_passages, expected_passages, err_msg=str(overrides))


def test_tokenising_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    write(tmp_path / 'model', DUAL)
    run = fake_run(tmp_path)
    encoder = encoders.load_encoder(run, entry(tmp_path / 'model'))
    found, tokenizer = [], type(encoder.tokenizer)
    write_store = tokenizer.write_store

    def stop(self, out, *args, **kwargs):
        found.append((out / 'part').exists())
        if len(found) == 1:
            (out / 'part').touch()
            raise KeyboardInterrupt
        write_store(self, out, *args, **kwargs)

    monkeypatch.setattr(tokenizer, 'write_store', stop)
    with pytest.raises(KeyboardInterrupt):
        encoder.passage_tokens(run)
    assert len(encoder.passage_tokens(run)) == 2 and found == [False, True]


def test_dark_examples_have_the_prefix_and_length_of_whoever_reads_them(tmp_path):
    write(tmp_path / 'model', DUAL, passage_prompt='p ')
    run = fake_run(tmp_path)
    p, cat, mask = 7, 5, 4
    slices = np.array([[0, 0, 3], [-1, 4, 7], [1, 0, 3]])  # 'cat [MASK] cat'
    dark = SlicedTexts(slices, np.array([[1, 2]]))
    lists = Lists(np.zeros(1, np.int32), np.zeros((1, 1), np.int32), dark)
    for overrides, expected in (
        ({}, [[p, cat], [p, mask, cat]]),
        ({'passage_prefix': ''}, [[cat], [mask, cat]]),
        ({'passage_length': 3, 'passage_prefix': 'p p '}, [[p, p, cat], [p, p, mask]]),
    ):
        encoder = encoders.load_encoder(run, entry(tmp_path / 'model', **overrides))
        store = encoder.dark_tokens(run, lists)
        assert [store[0].tolist(), store[1].tolist()] == expected
        assert encoder.text_room(9) == min(9, encoder.spec.passage_length) - expected[0].count(p)


def test_the_digest_of_a_start_is_that_of_all_that_decides_its_embeddings(tmp_path):
    write(tmp_path / 'model', DUAL)
    run = types.SimpleNamespace(config=types.SimpleNamespace(seed=0), mesh=mesh.make_mesh())
    encoder = encoders.load_encoder(run, entry(tmp_path / 'model'))
    digest = encoders.start_digest(encoder)
    assert digest == encoders.start_digest(encoders.load_encoder(run, entry(tmp_path / 'model')))
    path = 'transformer/layer_0/ffn/up/kernel'
    other = traverse_util.flatten_dict(encoder.params, sep='/')
    other[path] = other[path].at[0, 0].add(1e-3)
    params = traverse_util.unflatten_dict(other, sep='/')
    spec = encoder.spec.replace(query_length=9)
    transformer = dataclasses.replace(encoder.model.transformer, activation='relu')
    model = encoder.model.clone(transformer=transformer)
    tokenizer = dataclasses.replace(encoder.tokenizer, fingerprint='another')
    changes = {'params': params, 'spec': spec, 'model': model, 'tokenizer': tokenizer}
    changed = [dataclasses.replace(encoder, **{name: x}) for name, x in changes.items()]
    assert len({digest, *map(encoders.start_digest, changed)}) == 5


def test_a_model_of_another_size_starts_from_scratch(tmp_path):
    write(tmp_path / 'model', DUAL)
    asked = entry(tmp_path / 'model', hidden_size=4)
    model, params, _ = loading.read_model(asked, 0)
    config = model.transformer
    assert (config.hidden_size, config.num_heads, config.intermediate_size) == (4, 1, 5)
    assert (config.vocab_size, model.projection) == (TINY.vocab_size, None)
    assert params['transformer']['embeddings']['word']['embedding'].shape == (8, 4)
    again, other = (loading.read_model(asked, seed)[1] for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    kernel = params['transformer']['layer_0']['ffn']['up']['kernel']
    assert (kernel != other['transformer']['layer_0']['ffn']['up']['kernel']).all()
    with pytest.raises(ValueError, match='hidden_size=6 is no multiple of the 4 units'):
        loading.read_model(entry(tmp_path / 'model', hidden_size=6), 0)


def test_an_added_projection_begins_as_the_identity(tmp_path):
    plain = dataclasses.replace(DUAL, projection=None)
    rows = np.array([[5, 6, 0], [4, 0, 0]], np.int32)
    params = write(tmp_path / 'plain', plain)
    write(tmp_path / 'model', DUAL)
    asked = entry(tmp_path / 'plain', projection=11, query_weights=str(tmp_path / 'plain'))
    model, towers, _ = loading.read_model(asked, 0)
    assert model.projection == Projection(11, bias=False)
    expected = plain.apply({'params': params}, rows)
    for tower in towers.values():
        found = model.apply({'params': tower}, rows)
        np.testing.assert_allclose(found[:, :8], expected, atol=1e-6)
        assert found.shape == (2, 11) and not found[:, 8:].any()
    sketched, shapes = loading.sketch_model(asked)
    assert sketched == model
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, towers)
    # Also from scratch, where the checkpoint's own is not used.
    _, scratch, _ = loading.read_model(entry(tmp_path / 'model', hidden_size=4, projection=5), 0)
    np.testing.assert_array_equal(scratch['projection']['kernel'], np.eye(4, 5))
    for changes, message in (
        ({'projection': 11}, r'ends in one \(Dense\) of 4 dimensions; leave projection out'),
        ({'projection': 3, 'hidden_size': 4}, 'narrower than the 4 units .* use student.dims'),
        ({'projection': 11, 'kind': 'cross_encoder', 'hidden_size': 4}, 'a cross-encoder has none'),
    ):
        with pytest.raises(ValueError, match=message):
            loading.read_model(entry(tmp_path / 'model', **changes), 0)


def test_queries_may_have_a_tower_of_their_own(tmp_path):
    passage = write(tmp_path / 'model', DUAL, passage_prompt='p ')
    query = write(tmp_path / 'query', DUAL, seed=1, query_prompt='q ')
    asked = entry(tmp_path / 'model', query_weights=str(tmp_path / 'query'))
    run = types.SimpleNamespace(config=types.SimpleNamespace(seed=0), mesh=mesh.make_mesh())
    encoder = encoders.load_encoder(run, asked)
    jax.tree.map(
        np.testing.assert_array_equal, encoder.params, {'query': query, 'passage': passage}
    )
    assert (encoder.spec.query_prefix, encoder.spec.passage_prefix) == ('q ', 'p ')
    system = DualEncoderSystem('a', 'digest', None, run, encoder)
    rows = np.array([[5, 6, 0]], np.int32)
    for name, params in (('query', query), ('passage', passage)):
        found = system.embed(TokenStore.from_rows(rows, TINY.pad_id), '', tower=name)
        np.testing.assert_allclose(found, DUAL.apply({'params': params}, rows), atol=1e-7)

    export.export_sentence_transformer(
        tmp_path / 'both',
        model=DUAL,
        params=encoder.params,
        tokenizer_dir=encoder.tokenizer.directory,
        max_length=24,
        model_card='',
    )
    _, params, _ = loading.read_model(entry(tmp_path / 'both'), 0)
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(encoder.params))
    _, swapped, _ = loading.read_model(
        entry(tmp_path / 'model', query_weights=str(tmp_path / 'both')), 0
    )
    jax.tree.map(np.testing.assert_array_equal, swapped['query'], query)
    with pytest.raises(ValueError, match='both. has a tower for queries, but a cross-encoder'):
        loading.read_model(entry(tmp_path / 'both', kind='cross_encoder'), 0)

    fresh = entry(tmp_path / 'both', hidden_size=4)
    _, params, _ = loading.read_model(fresh, 0)
    one, other = (params[n]['transformer']['layer_0']['ffn']['up']['kernel'] for n in params)
    assert one.shape == (4, 5) and (one != other).any()


def test_towers_that_are_not_alike_are_an_error(tmp_path):
    write(tmp_path / 'model', DUAL)
    write(tmp_path / 'query', DualEncoder(TINY, 'cls', False, DUAL.projection))
    asked = {'query_weights': str(tmp_path / 'query')}
    with pytest.raises(ValueError, match='query and .*model differ in pooling: cls and max; both'):
        loading.read_model(entry(tmp_path / 'model', **asked), 0)
    loading.read_model(entry(tmp_path / 'model', pooling='cls', **asked), 0)
    file = tmp_path / 'query/tokenizer.json'
    file.write_text(file.read_text().replace('"cat": 5', '"dog": 5'))
    run = types.SimpleNamespace(config=types.SimpleNamespace(seed=0), mesh=mesh.make_mesh())
    with pytest.raises(ValueError, match='have different tokenizers; give two of one tokenizer'):
        encoders.load_encoder(run, entry(tmp_path / 'model', pooling='cls', **asked))
