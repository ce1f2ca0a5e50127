import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.models.attention import attention

B, L, H, D = 3, 7, 2, 4


@pytest.mark.parametrize('window', [None, 2])
@pytest.mark.parametrize('has_bias', [False, True])
def test_float32_is_what_jax_computes_gradients_too(window, has_bias):
    rng = np.random.default_rng(0)
    query, key, value, seed = rng.normal(size=(4, B, L, H, D)).astype(np.float32)
    bias = rng.normal(size=(1, H, L, L)).astype(np.float32) if has_bias else None
    mask = (np.arange(L) < np.array([[7], [3], [0]]))[:, None, None]

    def theirs(query, key, value):
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=0.3, local_window_size=window
        )

    def ours(query, key, value):
        return attention(query, key, value, mask=mask, bias=bias, scale=0.3, window=window)

    expected, expected_grads = jax.vjp(theirs, query, key, value)
    found, grads = jax.vjp(ours, query, key, value)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-6)
    seed[2] = 0.0  # Of a row with nothing in it, only that it is finite matters.
    for a, b in zip(grads(seed), expected_grads(seed), strict=True):
        np.testing.assert_allclose(a[:2], b[:2], atol=1e-6)
        assert jnp.isfinite(a).all()
