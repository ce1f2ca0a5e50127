"""Softmax attention as one TPU kernel a pass, for rows that its fast memory holds whole.

Heads stay side by side as dense layers leave them, `[B, L, H * d]`: states of heads of 64 units,
put on an axis of their own, fill half of the 128 lanes that a TPU stores and moves. The backward
pass computes the weights again, so that nothing but its inputs is kept: of the L^2 weights of a
head none is ever written (Dao et al. 2022, https://arxiv.org/abs/2205.14135, in one block).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # Of a TPU; blocks are whole multiples.
LONGEST = 512  # Tokens of a row: several arrays of L^2 float32 are held at once.
_MASKED = -1e30


def fits(length: int, heads: int, head_size: int) -> bool:
    """Whether the kernel takes rows of this length, and heads of this size, on each device."""
    whole = LANES % head_size == 0 or head_size % LANES == 0
    return length % LANES == 0 and length <= LONGEST and whole and heads * head_size % LANES == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def fused_attention(query, key, value, ask, answer, head_size, scale):
    """softmax(scale * query key^T) value, head by head, with the softmax in float32.

    Args:
        query: `[B, L, H * d]`; see `fits`.
        key: `[B, L, H * d]`.
        value: `[B, L, H * d]`.
        ask: `[B, L]` int32; a query attends to the keys whose `answer` equals its `ask`.
        answer: `[B, L]` int32.
        head_size: d.
        scale: Of the products.

    Returns:
        `[B, L, H * d]` in the dtype of `value`. Gradients flow to query, key and value.
    """
    arrays = (query, key, value)
    return _call(_forward, 'attention', arrays, ask, answer, 1, head_size, scale)[0]


def _vjp_forward(query, key, value, ask, answer, head_size, scale):
    out = fused_attention(query, key, value, ask, answer, head_size, scale)
    return out, (query, key, value, ask, answer)


def _vjp_backward(head_size, scale, saved, gradient):
    *arrays, ask, answer = saved
    # Weights are computed with keys along the rows: two of three products need no transpose.
    arrays = (*arrays, gradient)
    found = _call(_backward, 'attention_gradient', arrays, answer, ask, 3, head_size, scale)
    return *found, None, None


fused_attention.defvjp(_vjp_forward, _vjp_backward)


def _call(kernel, name, arrays, down, along, outputs, head_size, scale):
    """A kernel over the rows and the blocks of heads.

    Args:
        kernel: Takes `down` as `[L, 1]` and `along` as `[1, L]`, blocks `[L, W]` of arrays, and
            as many blocks to write as there are outputs.
        name: Of the kernel, in profiles.
        arrays: `[B, L, H * d]` each.
        down: `[B, L]` int32, what rows of the weights are compared by.
        along: `[B, L]` int32, the same of their columns.
        outputs: How many, each as the first of the arrays.
        head_size: d.
        scale: Of the products.
    """
    B, L, D = arrays[0].shape
    W = max(LANES, head_size)
    block = pl.BlockSpec((None, L, W), lambda row, heads: (row, 0, heads))
    products = 2 if outputs == 1 else 5
    return pl.pallas_call(
        functools.partial(kernel, head_size=head_size, scale=scale),
        grid=(B, D // W),
        in_specs=[
            pl.BlockSpec((None, L, 1), lambda row, heads: (row, 0, 0)),
            pl.BlockSpec((None, 1, L), lambda row, heads: (row, 0, 0)),
            *(block for _ in arrays),
        ],
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct((B, L, D), arrays[0].dtype)] * outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel')),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * B * L * L * D,
            transcendentals=B * L * L * D // head_size,
            bytes_accessed=(len(arrays) + outputs) * B * L * D * arrays[0].dtype.itemsize,
        ),
        name=name,
    )(down[:, :, None], along[:, None, :], *arrays)


def _forward(down, along, query, key, value, out, *, head_size, scale):
    query, key, value = query[...], key[...], value[...]
    allowed = down[...] == along[...]
    total = jnp.zeros(query.shape, jnp.float32)
    for own in _heads(query.shape, head_size):
        weights = _masked(_product(query, own(key), (1, 1), scale), allowed)
        weights = jnp.exp(weights - jnp.max(weights, axis=1, keepdims=True))
        sums = _product(weights.astype(value.dtype), own(value), (1, 0))
        total += sums / jnp.sum(weights, axis=1, keepdims=True)
    out[...] = total.astype(out.dtype)


def _backward(
    down, along, query, key, value, gradient, query_out, key_out, value_out, *, head_size, scale
):
    query, key, value, gradient = query[...], key[...], value[...], gradient[...]
    allowed = down[...] == along[...]
    totals = [jnp.zeros(query.shape, jnp.float32) for _ in range(3)]
    for own in _heads(query.shape, head_size):
        weights = _masked(_product(own(key), query, (1, 1), scale), allowed)
        weights = jnp.exp(weights - jnp.max(weights, axis=0, keepdims=True))
        weights /= jnp.sum(weights, axis=0, keepdims=True)
        towards = _product(own(value), gradient, (1, 1))
        mean = jnp.sum(weights * towards, axis=0, keepdims=True)
        change = (scale * weights * (towards - mean)).astype(key.dtype)
        totals[0] += _product(change, own(key), (0, 0))
        totals[1] += _product(change, own(query), (1, 0))
        totals[2] += _product(weights.astype(value.dtype), own(gradient), (1, 0))
    for total, out in zip(totals, (query_out, key_out, value_out), strict=True):
        out[...] = total.astype(out.dtype)


def _heads(shape, head_size):
    """For each head of a block, what sets the units of the others to 0.

    The products have the width of a block, which is the least that a TPU multiplies: it takes as
    long as cutting heads out would, and moves nothing.
    """
    if shape[1] == head_size:
        return [lambda x: x]
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    inside = [lane // head_size == h for h in range(shape[1] // head_size)]
    return [lambda x, of=of: jnp.where(of, x, jnp.zeros_like(x)) for of in inside]


def _product(a, b, axes, scale=1.0):
    contract = (((axes[0],), (axes[1],)), ((), ()))
    found = jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)
    return found if scale == 1.0 else scale * found


def _masked(logits, allowed):
    return jnp.where(allowed, logits, _MASKED)
