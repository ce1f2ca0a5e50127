"""Softmax attention as one Pallas TPU kernel per pass, for rows that fit into fast memory whole.

Heads stay side by side as dense layers leave them, `[B, L, H * d]`: heads of 64 units on an axis
of their own would fill half of the 128 lanes that a TPU stores and moves. The backward pass
recomputes the weights, so only its inputs are kept and none of a head's L^2 weights is ever written
(Dao et al. 2022, https://arxiv.org/abs/2205.14135, in one block).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # Lanes of a TPU; blocks are whole multiples.
MAX_LENGTH = 512  # Tokens in a row: several arrays of L^2 float32 are held at once.
MASKED_LOGIT = -1e30  # Finite, so that a row without any allowed key gives no NaN.


def fits(length: int, heads: int, head_size: int) -> bool:
    """Whether the kernel supports this row length, heads per device and head size."""
    whole = LANES % head_size == 0 or head_size % LANES == 0
    return length % LANES == 0 and length <= MAX_LENGTH and whole and heads * head_size % LANES == 0


def _attention(query, key, value, query_segments, key_segments, head_size, scale) -> jax.Array:
    """Computes softmax(scale * query key^T) value for each head, with the softmax in float32.

    All three and the result are `[B, L, H * d]`, see `fits`; d is the `head_size`. A query attends
    to the keys of its segment, `[B, L]` int32. Gradients flow to query, key and value.
    """
    arrays, segments = (query, key, value), (query_segments, key_segments)
    return _call(_forward, 'attention', arrays, *segments, 1, head_size, scale)[0]


def _vjp_forward(query, key, value, query_segments, key_segments, head_size, scale):
    arrays = (query, key, value, query_segments, key_segments)
    return _attention(*arrays, head_size, scale), arrays


def _vjp_backward(head_size, scale, saved, gradient):
    *arrays, query_segments, key_segments = saved
    # The weights are computed transposed, with keys as rows: then two of the three products need
    # no transpose.
    arrays, segments = (*arrays, gradient), (key_segments, query_segments)
    gradients = _call(_backward, 'attention_gradient', arrays, *segments, 3, head_size, scale)
    return *gradients, None, None


fused_attention = jax.custom_vjp(_attention, nondiff_argnums=(5, 6))
fused_attention.defvjp(_vjp_forward, _vjp_backward)


def _call(kernel, name, arrays, row_segments, column_segments, num_outputs, head_size, scale):
    """Calls a kernel on each row of the batch and block of heads of arrays `[B, L, H * d]`.

    The kernel receives row segments `[L, 1]`, column segments `[1, L]` (`[B, L]` here, along the
    rows and columns of the weights), a block `[L, W]` of each array, and one to write per output.
    """
    B, L, D = arrays[0].shape
    W = max(LANES, head_size)
    block = pl.BlockSpec((None, L, W), lambda row, heads: (row, 0, heads))
    products = 2 if num_outputs == 1 else 5
    return pl.pallas_call(
        functools.partial(kernel, head_size=head_size, scale=scale),
        grid=(B, D // W),
        in_specs=[
            pl.BlockSpec((None, L, 1), lambda row, heads: (row, 0, 0)),
            pl.BlockSpec((None, 1, L), lambda row, heads: (row, 0, 0)),
            *(block for _ in arrays),
        ],
        out_specs=[block] * num_outputs,
        out_shape=[jax.ShapeDtypeStruct((B, L, D), arrays[0].dtype)] * num_outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel')),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * B * L * L * D,
            transcendentals=B * L * L * D // head_size,
            bytes_accessed=(len(arrays) + num_outputs) * B * L * D * arrays[0].dtype.itemsize,
        ),
        name=name,
    )(row_segments[:, :, None], column_segments[:, None, :], *arrays)


def _forward(row_segments, column_segments, query, key, value, out, *, head_size, scale):
    query, key, value = query[...], key[...], value[...]
    allowed = row_segments[...] == column_segments[...]
    total = jnp.zeros(query.shape, jnp.float32)
    for select in _head_selectors(query.shape, head_size):
        logits = _product(query, select(key), (1, 1), scale)
        weights = jnp.where(allowed, logits, MASKED_LOGIT)
        weights = jnp.exp(weights - jnp.max(weights, axis=1, keepdims=True))
        sums = _product(weights.astype(value.dtype), select(value), (1, 0))
        total += sums / jnp.sum(weights, axis=1, keepdims=True)
    out[...] = total.astype(out.dtype)


def _backward(row_segments, column_segments, query, key, value, gradient, *outs, head_size, scale):
    query, key, value, gradient = query[...], key[...], value[...], gradient[...]
    allowed = row_segments[...] == column_segments[...]
    totals = [jnp.zeros(query.shape, jnp.float32) for _ in range(3)]  # Of query, key and value.
    for select in _head_selectors(query.shape, head_size):
        logits = _product(select(key), query, (1, 1), scale)
        weights = jnp.where(allowed, logits, MASKED_LOGIT)
        weights = jnp.exp(weights - jnp.max(weights, axis=0, keepdims=True))
        weights /= jnp.sum(weights, axis=0, keepdims=True)
        d_weights = _product(select(value), gradient, (1, 1))
        mean = jnp.sum(weights * d_weights, axis=0, keepdims=True)
        d_logits = (scale * weights * (d_weights - mean)).astype(key.dtype)
        totals[0] += _product(d_logits, select(key), (0, 0))
        totals[1] += _product(d_logits, select(query), (1, 0))
        totals[2] += _product(weights.astype(value.dtype), select(gradient), (1, 0))
    for total, out in zip(totals, outs, strict=True):
        out[...] = total.astype(out.dtype)


def _head_selectors(shape, head_size):
    """Returns, for each head of a block, a function that zeroes the units of the other heads.

    Products span a whole block, the least that a TPU multiplies: they take as long as on heads cut
    out, and move nothing.
    """
    if shape[1] == head_size:
        return [lambda x: x]
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    masks = [lane // head_size == h for h in range(shape[1] // head_size)]
    return [lambda x, mask=mask: jnp.where(mask, x, jnp.zeros_like(x)) for mask in masks]


def _product(a, b, axes, scale=1.0):
    contract = (((axes[0],), (axes[1],)), ((), ()))
    product = jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)
    return product if scale == 1.0 else scale * product
