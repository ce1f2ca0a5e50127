"""Softmax attention, as every family computes it."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.sharding import PartitionSpec

_MASKED = -1e30
_LANES = 128  # Of a TPU; its kernel takes rows of whole multiples.
_BLOCK = 512  # Most tokens of a row that the kernel holds at once.


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

    On a TPU, rows of a multiple of 128 tokens without bias and window go through JAX's fused
    kernel (Dao et al. 2022, https://arxiv.org/abs/2205.14135), which keeps the logits out of
    memory. Otherwise this is `jax.nn.dot_product_attention`, and in float32, which is what CPUs
    run, equal to it but for rounding: weights are divided by their sum after the second product,
    on `[B, L, H, d]` and not on `[B, H, L, L]`, and heads come before tokens in all products,
    which takes a CPU half as long.

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

    fusible = bias is None and window is None and query.shape[1] % _LANES == 0
    if not fusible or query.dtype == jnp.float32:
        return plain(query, key, value, segments)

    def fused(query, key, value, segments):
        return _fused(query, key, value, segments, scale)

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


def _fused(query, key, value, segments, scale):
    """The kernel on each device's rows and heads: XLA cannot partition it by itself."""
    size = min(query.shape[1], _BLOCK)
    names = flash_attention.BlockSizes.__dataclass_fields__
    blocks = flash_attention.BlockSizes(**{n: 1 if n == 'block_b' else size for n in names})

    def local(query, key, value, segments):
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        ids = flash_attention.SegmentIds(segments, segments)
        out = flash_attention.flash_attention(
            query, key, value, segment_ids=ids, sm_scale=scale, block_sizes=blocks
        )
        return jnp.swapaxes(out, 1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(query, key, value, segments)
    rows, heads = PartitionSpec('data'), PartitionSpec('data', None, 'model')
    return jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query, key, value, segments)
