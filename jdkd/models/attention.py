"""Softmax attention, as every family computes it."""

import jax
import jax.numpy as jnp

_MASKED = -1e30


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    bias: jax.Array | None = None,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """softmax(scale * query key^T + bias) value, with the softmax in float32 whatever the dtype.

    This is `jax.nn.dot_product_attention`, and in float32, which is what CPUs run, equal to it but
    for rounding: weights are divided by their sum after the second product, on `[B, L, H, d]` and
    not on `[B, H, L, L]`, and heads come before tokens in all products, which takes a CPU half as
    long. Rows with every key masked attend to all alike and are no NaN.

    Args:
        query: `[B, L, H, d]`.
        key: `[B, L, H, d]`.
        value: `[B, L, H, d]`.
        mask: `[B, 1, 1, L]` bool, the keys that exist.
        bias: `[1 or B, H, L, L]` float32, added to the logits.
        scale: Of the products.
        window: Tokens to either side that a token attends to; None for all.

    Returns:
        `[B, L, H, d]` in the dtype of `value`.
    """
    if query.dtype != jnp.float32:
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=scale, local_window_size=window
        )
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    products = jnp.einsum('bhld,bhmd->bhlm', query, key)
    logits = scale * products if bias is None else scale * products + bias
    if window is not None:
        at = jnp.arange(key.shape[2])
        mask = mask & (jnp.abs(at[:, None] - at) <= window)
    logits = jnp.where(mask, logits, _MASKED)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    sums = jnp.einsum('bhlm,bhmd->bhld', weights, value)
    return jnp.swapaxes(sums / total, 1, 2)
