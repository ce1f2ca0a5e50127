"""Encoding: order, padding, batching and interruptions leave no trace in the result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.config.systems import DTYPES
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.models.transformer import TransformerConfig
from jdkd.retrieval import encode, vectors
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.tokens.pairs import join_pairs
from jdkd.tokens.store import TokenStore

CONFIG = TransformerConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32
)
MODEL = DualEncoder(CONFIG)


def rows(n, length, seed=0):
    rng = np.random.default_rng(seed)
    tokens = np.zeros((n, length), np.uint16)
    for row in tokens:
        size = rng.integers(2, length + 1)
        row[:size] = rng.integers(4, 64, size)
    return tokens


@pytest.fixture(scope='module')
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']


@pytest.mark.slow
def test_rows_of_any_length_encode_as_they_do_alone(params):
    tokens = rows(83, 70)
    store = TokenStore.from_rows(tokens, 0)
    expected = MODEL.apply({'params': params}, tokens.astype(np.int32))
    for num_devices in (1, 8):
        mesh = meshes.make_mesh(devices=jax.devices()[:num_devices])
        on_mesh = jax.device_put(params, meshes.replicated(mesh))
        found = encode.embed(MODEL, on_mesh, store, mesh=mesh, desc='test')
        np.testing.assert_allclose(found, expected, atol=2e-6)
        some = encode.embed(MODEL, on_mesh, store, rows=range(20, 30), mesh=mesh, desc='test')
        np.testing.assert_allclose(some, expected[20:30], atol=2e-6)


def test_batches_have_few_shapes_and_little_padding():
    lengths = np.random.default_rng(0).integers(8, 145, 5000)
    shapes = []

    def take(numbers, bucket):
        shapes.append((len(numbers), bucket))
        return {'tokens': np.zeros((len(numbers), bucket), np.uint16)}

    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    encode.map_rows(
        lambda tokens: tokens[:, 0],
        take,
        lengths=lengths,
        max_length=144,
        mesh=mesh,
        desc='test',
    )
    assert len(set(shapes)) <= len([b for b in encode.BUCKETS if b < 144]) + 1
    assert sum(n * bucket for n, bucket in shapes) < 1.12 * lengths.sum()


def test_one_row_is_a_batch_of_one():
    shapes = []

    def take(numbers, bucket):
        shapes.append((len(numbers), bucket))
        return {'tokens': np.zeros((len(numbers), bucket), np.uint16)}

    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    encode.map_rows(
        lambda tokens: tokens[:, 0],
        take,
        lengths=np.array([9]),
        max_length=40,
        mesh=mesh,
        desc='test',
    )
    assert shapes == [(1, 16)]


def test_nothing_to_encode_is_an_error(params):
    empty = TokenStore(np.zeros(0, np.uint16), np.zeros(1, np.int64), 8, 0)
    with pytest.raises(ValueError, match='test: nothing to encode'):
        encode.embed(MODEL, params, empty, mesh=meshes.make_mesh(), desc='test')


def write(directory, params, *, store='float32'):
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    tokens = TokenStore.from_rows(rows(83, 40), 0)
    stages.build_stage(
        directory,
        {'store': store},
        lambda out: encode.write_embeddings(
            out, MODEL, params, tokens, store=store, mesh=mesh, desc='test', file_rows=16
        ),
        resumable=True,
    )
    return vectors.load(directory)


def test_an_interrupted_encoding_ends_as_one_that_was_not(params, tmp_path, monkeypatch):
    whole = write(tmp_path / 'whole', params)
    embed, parts = encode.embed, []

    def goes_down(*args, rows, **kwargs):
        parts.append(rows.start)
        if len(parts) == 4:
            raise KeyboardInterrupt
        return embed(*args, rows=rows, **kwargs)

    monkeypatch.setattr(encode, 'embed', goes_down)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / 'resumed', params)
    resumed = write(tmp_path / 'resumed', params)
    assert parts == [0, 16, 32, 48, 48, 64, 80]
    assert whole.shape == resumed.shape == (83, 16)
    np.testing.assert_array_equal(whole[:], resumed[:])


def test_embeddings_may_be_kept_in_bfloat16(params, tmp_path):
    exact, rounded = (write(tmp_path / s, params, store=s) for s in DTYPES)
    assert rounded[:].dtype == np.float32
    np.testing.assert_array_equal(rounded[:], exact[:].astype(jnp.bfloat16).astype(np.float32))
    assert sum(p.nbytes for p in rounded.parts) * 2 == sum(p.nbytes for p in exact.parts)
    with pytest.raises(ValueError, match="index.store is 'int4'; use one of float32, bfloat16"):
        write(tmp_path / 'int4', params, store='int4')


def test_signs_are_refused_where_lengths_count_or_do_not_fill_bytes(params, tmp_path, monkeypatch):
    write(tmp_path / 'signs', params, store='binary')
    for projection, normalize, message in (
        (None, False, 'keeps signs alone, and these embeddings are compared by inner product'),
        (Projection(12), True, 'packs 8 dimensions into a byte, and 12 is no multiple of 8'),
    ):
        other = DualEncoder(MODEL.transformer, 'mean', normalize, projection)
        monkeypatch.setattr(f'{__name__}.MODEL', other)
        with pytest.raises(ValueError, match=message):
            write(tmp_path / 'refused', params, store='binary')


@pytest.mark.slow
def test_pairs_score_as_joined_rows_do():
    queries, passages = rows(6, 10, seed=1), rows(9, 40, seed=2)
    query_rows = np.repeat(np.arange(6), 4)
    passage_rows = np.random.default_rng(3).integers(0, 9, 24)
    model = CrossEncoder(CONFIG)
    for separators in (1, 2):
        joined = join_pairs(queries[query_rows], passages[passage_rows], 0, separators)
        tokens, types = (x.astype(np.int32) for x in joined)
        params = model.init(jax.random.key(0), tokens, types)['params']
        found = encode.score_pairs(
            model,
            params,
            TokenStore.from_rows(queries, 0),
            query_rows,
            TokenStore.from_rows(passages, 0),
            passage_rows,
            separators=separators,
            mesh=meshes.make_mesh(devices=jax.devices()[:1]),
            desc='test',
        )
        expected = model.apply({'params': params}, tokens, types)
        np.testing.assert_allclose(found, expected, atol=1e-5)
