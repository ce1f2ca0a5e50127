"""Softmax attention, as every family computes it."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jdkd.models import fused_attention

_MASKED = -1e30


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: jax.Array,
    packed: bool,
    bias: jax.Array | None = None,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """softmax(scale * query key^T + bias) value, with the softmax in float32 whatever the dtype.

    On a TPU, rows of 128, 256, 384 or 512 tokens without bias and window go through one kernel,
    which keeps the logits out of memory; see `fused_attention`. Otherwise this is
    `jax.nn.dot_product_attention`, and in float32, which is what CPUs run, equal to it but for
    rounding: weights are divided by their sum after the second product, on `[B, L, H, d]` and not
    on `[B, H, L, L]`, and heads come before tokens in all products, which takes a CPU half as
    long.

    Args:
        query: `[B, L, H, d]`.
        key: `[B, L, H, d]`.
        value: `[B, L, H, d]`.
        segments: `[B, L]` int32: 0 for padding, above it the text that a token belongs to.
        packed: Whether a row holds several texts: tokens then attend to those of their own only.
            Otherwise every token attends to all real ones.
        bias: `[1 or B, H, L, L]` float32, added to the logits.
        scale: Of the products.
        window: Tokens to either side that a token attends to; None for all.

    Returns:
        `[B, L, H, d]` in the dtype of `value`; finite for padding, where it means nothing.
    """

    def plain(query, key, value, segments):
        if packed:
            mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        else:
            mask = segments[:, None, None, :] > 0
        if query.dtype == jnp.float32:
            return _heads_first(query, key, value, mask, bias, scale, window)
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=scale, local_window_size=window
        )

    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape['model']
    (_, length, heads, head_size), dtype = query.shape, query.dtype
    fits = fused_attention.fits(length, heads // ways, head_size)
    if bias is not None or window is not None or dtype == jnp.float32 or not fits:
        return plain(query, key, value, segments)

    def fused(query, key, value, segments):
        return _fused(query, key, value, segments, packed, scale)

    return jax.lax.platform_dependent(query, key, value, segments, tpu=fused, default=plain)


def _heads_first(query, key, value, mask, bias, scale, window):
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


def _fused(query, key, value, segments, packed, scale):
    """The kernel on each device's rows and heads: XLA cannot partition it by itself."""

    def local(query, key, value, segments):
        shape = query.shape
        query, key, value = (x.reshape(*shape[:2], -1) for x in (query, key, value))
        if packed:
            ask = answer = segments
        else:
            ask, answer = jnp.ones_like(segments), (segments > 0).astype(jnp.int32)
        out = fused_attention.fused_attention(query, key, value, ask, answer, shape[3], scale)
        return out.reshape(shape)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(query, key, value, segments)
    rows, heads = PartitionSpec('data'), PartitionSpec('data', None, 'model')
    return jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query, key, value, segments)
