import jax
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.models import attention as attentions
from jdkd.models import fused_attention
from jdkd.models.attention import attention

B, L, H, D = 3, 7, 2, 4


@pytest.mark.parametrize('window', [None, 2])
@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('packed', [False, True])
def test_float32_is_what_jax_computes_gradients_too(window, has_bias, packed):
    rng = np.random.default_rng(0)
    query, key, value, seed = jnp.asarray(rng.normal(size=(4, B, L, H, D)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(1, H, L, L)), jnp.float32) if has_bias else None
    segments = (np.arange(L) < np.array([[7], [3], [0]])).astype(np.int32)
    mask = segments[:, None, None] > 0
    if packed:
        segments[0, 4:] = 2
        mask = segments[:, None, :, None] == segments[:, None, None]

    segments = jnp.asarray(segments)

    def theirs(query, key, value):
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=0.3, local_window_size=window
        )

    def ours(query, key, value):
        how = dict(bias=bias, scale=0.3, window=window)
        return attention(query, key, value, segments=segments, packed=packed, **how)

    expected, expected_grads = jax.vjp(theirs, query, key, value)
    found, grads = jax.vjp(ours, query, key, value)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-6)
    seed = seed.at[2].set(0.0)  # Of a row with nothing in it, only that it is finite matters.
    for a, b in zip(grads(seed), expected_grads(seed), strict=True):
        np.testing.assert_allclose(a[:2], b[:2], atol=1e-6)
        assert jnp.isfinite(a).all()


@pytest.mark.slow
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('head_size', [32, 128])
def test_the_kernel_for_tpus_agrees_in_its_interpreter(head_size, packed):
    rng = np.random.default_rng(0)
    shape = (2, 128, 256 // head_size, head_size)
    query, key, value, seed = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(4))
    segments = np.repeat(np.array([[1, 2, 0], [1, 1, 0]], np.int32), [50, 60, 18], axis=1)
    segments = jnp.asarray(segments)
    how = dict(segments=segments, packed=packed, scale=0.2)
    expected, expected_grads = jax.vjp(lambda *x: attention(*x, **how), query, key, value)
    with pltpu.force_tpu_interpret_mode():
        found, grads = jax.vjp(
            lambda *x: attentions._fused(*x, segments, packed=packed, scale=0.2), query, key, value
        )
        # Padding has no gradient.
        seed = jnp.where(segments[..., None, None] > 0, seed, 0)
        grads = grads(seed)
    real = segments[..., None, None] > 0
    for a, b in zip((found, *grads), (expected, *expected_grads(seed)), strict=True):
        a, b = (np.where(real, x, 0).astype(np.float32) for x in (a, b))
        assert np.abs(b).mean() > 0.05
        np.testing.assert_allclose(a, b, atol=0.05)


@pytest.mark.parametrize(
    ('length', 'heads', 'head_size', 'expected'),
    [(256, 12, 64, True), (512, 12, 32, True), (128, 3, 128, True)]
    + [(144, 12, 64, False), (1024, 12, 64, False), (128, 3, 64, False), (128, 4, 96, False)],
)
def test_which_rows_and_heads_the_kernel_takes(length, heads, head_size, expected):
    assert fused_attention.fits(length, heads, head_size) == expected
