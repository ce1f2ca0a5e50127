"""Distances, buckets and rotations against loops and against the code they must agree with."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.models import positions
from jdkd.models.config import Disentangled, RelativeBias


@pytest.mark.parametrize('length', [1, 2, 5])
def test_skew_is_a_lookup_by_distance(length):
    values = np.random.default_rng(0).normal(size=(3, length, 2 * length - 1))
    found = positions.skew(jnp.asarray(values))
    column = {distance: i for i, distance in enumerate(np.arange(1 - length, length))}
    for query in range(length):
        for key in range(length):
            expected = values[:, query, column[key - query]]
            np.testing.assert_allclose(found[:, query, key], expected, rtol=1e-6)


def test_disentangled_bias_by_hand():
    rng = np.random.default_rng(0)
    query, key = jnp.asarray(rng.normal(size=(2, 1, 4, 2, 3)), jnp.float32)
    to_key, to_query = jnp.asarray(rng.normal(size=(2, 7, 2, 3)), jnp.float32)
    found = positions.disentangled_bias(query, key, to_key=to_key, to_query=to_query)
    for head in range(2):
        for q in range(4):
            for k in range(4):
                row = k - q + 3
                expected = query[0, q, head] @ to_key[row, head]
                expected += key[0, k, head] @ to_query[row, head]
                np.testing.assert_allclose(found[0, head, q, k], expected, rtol=1e-4)
    half = positions.disentangled_bias(query, key, to_key=to_key, to_query=None)
    np.testing.assert_allclose(half[0, 0, 1, 3], query[0, 1, 0] @ to_key[5, 0], rtol=1e-4)


def test_bias_buckets_by_hand():
    distance = np.array([-1000, -128, -16, -8, -1, 0, 1, 7, 8, 16, 32, 64, 127, 1000])
    buckets = positions.bias_buckets(distance, RelativeBias())
    assert buckets.tolist() == [15, 15, 10, 8, 1, 0, 17, 23, 24, 26, 28, 30, 31, 31]


def test_bias_buckets_are_those_of_transformers():
    torch = pytest.importorskip('torch')
    mpnet = pytest.importorskip('transformers.models.mpnet.modeling_mpnet')
    distance = np.arange(-999, 1000)
    expected = mpnet.MPNetEncoder.relative_position_bucket(torch.tensor(distance))
    np.testing.assert_array_equal(
        positions.bias_buckets(distance, RelativeBias()), expected.numpy()
    )


def test_disentangled_rows_by_hand():
    # Keys from 3 before to 3 after, each its own row; row `span` is the query's own position.
    plain = Disentangled(max_distance=4)
    assert positions.disentangled_rows(np.arange(-6, 7), plain).tolist() == [
        7, 7, 7, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0,
    ]  # fmt: skip
    buckets = positions.disentangled_rows(np.array([-511, -128, 0, 128, 511]), Disentangled(256))
    assert buckets.tolist() == [511, 384, 256, 128, 1]


@pytest.mark.parametrize(('num_buckets', 'max_distance'), [(256, 512), (32, 100), (16, 44)])
def test_disentangled_rows_are_those_of_transformers(num_buckets, max_distance):
    torch = pytest.importorskip('torch')
    deberta = pytest.importorskip('transformers.models.deberta_v2.modeling_deberta_v2')
    distance = np.arange(1 - max_distance, max_distance)
    buckets = deberta.make_log_bucket_position(torch.tensor(-distance), num_buckets, max_distance)
    expected = torch.clamp(buckets.long() + num_buckets, 0, 2 * num_buckets - 1)
    found = positions.disentangled_rows(distance, Disentangled(num_buckets, max_distance))
    np.testing.assert_array_equal(found, expected.numpy())


def test_rotation_depends_on_distance_alone():
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    rows = [jnp.broadcast_to(x, (1, 20, 1, 8)) for x in (query, key)]
    angles = positions.rotary_angles(20, 8, 10_000.0)
    q, k = (np.asarray(positions.rotate(x, angles))[0, :, 0] for x in rows)
    np.testing.assert_allclose(q[3] @ k[7], q[12] @ k[16], rtol=1e-4)
    np.testing.assert_allclose(q[0], query[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), np.linalg.norm(query), rtol=1e-5)


def test_rotary_angles_are_those_of_transformers():
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    modernbert = pytest.importorskip('transformers.models.modernbert.modeling_modernbert')
    config = transformers.ModernBertConfig(hidden_size=128, num_attention_heads=2)
    rotary = modernbert.ModernBertRotaryEmbedding(config)
    cos, _ = rotary(torch.zeros(1), torch.arange(8192)[None], 'full_attention')
    found = np.cos(positions.rotary_angles(8192, 64, 160_000.0))
    np.testing.assert_allclose(found, cos[0, :, :32].numpy(), atol=1e-3)
