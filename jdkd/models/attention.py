"""Softmax attention, shared by all model families."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jdkd.models import fused_attention


def matmul_precision(dtype: jax.typing.DTypeLike) -> jax.lax.Precision | None:
    """Precision of matrix products of a dtype: float32 is not TF32 on GPUs nor bfloat16 on TPUs."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def attention(
    query: Float[Array, 'batch length heads size'],
    key: Float[Array, 'batch length heads size'],
    value: Float[Array, 'batch length heads size'],
    *,
    segments: Int[Array | np.ndarray, 'batch length'],
    packed: bool,
    bias: Float[Array, '#batch heads length length'] | None = None,
    scale: float,
    window: int | None = None,
) -> Float[Array, 'batch length heads size']:
    """Computes softmax(scale * query key^T + bias) value, with the softmax in float32.

    On a TPU, rows of 128, 256, 384 or 512 tokens without bias and window go through one kernel
    that never writes the logits to memory; see `fused_attention`. Float32 inputs, as on CPUs, use
    our own products: they put heads before tokens and divide by the sum of weights after the
    second product, on `[B, L, H, d]` instead of `[B, H, L, L]`, which halves the time on a CPU and
    differs only by rounding. All else is `jax.nn.dot_product_attention`.

    Args:
        segments: int32; 0 for padding, above 0 the index of the token's text in its row.
        packed: Whether tokens attend within their own text only, not to all real tokens of the row.
        bias: float32, added to the logits.
        window: Number of tokens to either side that a token attends to; None for all.

    Returns:
        Attended values in the dtype of `value`; finite but meaningless at padding.
    """
    mesh = jax.sharding.get_abstract_mesh()
    model_devices = 1 if mesh.empty else mesh.shape['model']
    (_, length, heads, head_size), dtype = query.shape, query.dtype
    fits = fused_attention.fits(length, heads // model_devices, head_size)
    plain = functools.partial(_plain, packed=packed, bias=bias, scale=scale, window=window)
    if bias is not None or window is not None or dtype == jnp.float32 or not fits:
        return plain(query, key, value, segments)
    fused = functools.partial(_fused, packed=packed, scale=scale)
    return jax.lax.platform_dependent(query, key, value, segments, tpu=fused, default=plain)


def _plain(query, key, value, segments, *, packed, bias, scale, window):
    if packed:
        mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    else:
        mask = segments[:, None, None, :] > 0
    if query.dtype == jnp.float32:
        return _heads_first(query, key, value, mask, bias, scale, window)
    return jax.nn.dot_product_attention(
        query, key, value, bias=bias, mask=mask, scale=scale, local_window_size=window
    )


def _heads_first(query, key, value, mask, bias, scale, window):
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    products = jnp.einsum('bhld,bhmd->bhlm', query, key, precision=matmul_precision(query.dtype))
    logits = scale * products if bias is None else scale * products + bias
    if window is not None:
        position = jnp.arange(key.shape[2])
        mask = mask & (jnp.abs(position[:, None] - position) <= window)
    logits = jnp.where(mask, logits, fused_attention.MASKED_LOGIT)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    sums = jnp.einsum('bhlm,bhmd->bhld', weights, value, precision=matmul_precision(value.dtype))
    return jnp.swapaxes(sums / total, 1, 2)


def _fused(query, key, value, segments, *, packed, scale):
    """Runs the kernel on each device's rows and heads, since XLA cannot partition it."""

    def local(query, key, value, segments):
        shape = query.shape
        query, key, value = (x.reshape(*shape[:2], -1) for x in (query, key, value))
        query_segments = segments if packed else jnp.ones_like(segments)
        key_segments = segments if packed else (segments > 0).astype(jnp.int32)
        attended = fused_attention.fused_attention(
            query, key, value, query_segments, key_segments, shape[3], scale
        )
        return attended.reshape(shape)

    if jax.sharding.get_abstract_mesh().empty:
        return local(query, key, value, segments)
    rows, heads = PartitionSpec('data'), PartitionSpec('data', None, 'model')
    return jax.shard_map(
        local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query, key, value, segments)
