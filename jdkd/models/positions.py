"""Relative positions in attention: logit biases by distance and rotations by position.

Relative biases depend only on the distance between key and query, of which a row of L tokens has
2L - 1. They are computed once per distance, and `skew` lays them out over the L x L pairs with a
pad and two reshapes: gathers would be slow on a TPU, and slower still in the backward pass.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jdkd.models.attention import matmul_precision
from jdkd.models.config import Disentangled, RelativeBias


def skew(
    by_distance: Float[Array, '*batch length distances'],
) -> Float[Array, '*batch length length']:
    """Maps values by query and distance `[..., L, 2L - 1]` to values by query and key."""
    *batch, length, width = by_distance.shape
    x = jnp.pad(by_distance, [(0, 0)] * (len(batch) + 1) + [(0, 1)])
    # With rows one longer than in the next reshape, each row starts one distance lower.
    x = x.reshape(*batch, length * (width + 1))[..., length - 1 :]
    x = x[..., : length * width].reshape(*batch, length, width)
    return x[..., :length]


def bias_buckets(distance: np.ndarray, relative: RelativeBias) -> np.ndarray:
    """Returns each distance's bucket: exact when near, then logarithmic up to `max_distance`."""
    num_side = relative.num_buckets // 2
    num_exact = num_side // 2
    # In float32 as in the original, so that distances on a bucket's edge fall on the same side.
    ratio = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(num_exact))
    ratio /= np.float32(math.log(relative.max_distance / num_exact))
    far = num_exact + (ratio * np.float32(num_side - num_exact)).astype(np.int32)
    near = np.abs(distance)
    side = np.where(near < num_exact, near, np.minimum(far, num_side - 1))
    return side + num_side * (distance > 0)


def disentangled_rows(distance: np.ndarray, relative: Disentangled) -> np.ndarray:
    """Returns the row of DeBERTa's position embeddings for each distance."""
    offset = -distance  # DeBERTa counts query minus key.
    if relative.num_buckets:
        mid = relative.num_buckets // 2
        near = np.maximum(np.abs(offset), mid).astype(np.float32)
        widest = np.log(np.float32((relative.max_distance - 1) / mid))
        far = np.ceil(np.log(near / np.float32(mid)) / widest * np.float32(mid - 1)) + mid
        offset = np.where(np.abs(offset) <= mid, offset, np.sign(offset) * far).astype(np.int32)
    return np.clip(offset + relative.span, 0, 2 * relative.span - 1)


def rotary_angles(length: int, size: int, theta: float) -> np.ndarray:
    """Returns the `[L, size / 2]` float32 rotation angles of each position."""
    frequency = (1.0 / theta ** (np.arange(0, size, 2) / size)).astype(np.float32)
    return np.arange(length, dtype=np.float32)[:, None] * frequency


def rotate(
    x: Float[Array, 'batch length heads size'], angles: Float[np.ndarray, 'length size//2']
) -> Float[Array, 'batch length heads size']:
    """Rotates queries or keys by the angles of their positions, in float32."""
    cos, sin = (f(angles)[:, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def disentangled_bias(
    query: Float[Array, 'batch length heads size'],
    key: Float[Array, 'batch length heads size'],
    *,
    to_key: Float[Array, 'distances heads size'] | None,
    to_query: Float[Array, 'distances heads size'] | None,
) -> Float[Array, 'batch heads length length']:
    """Computes DeBERTa's float32 logits between contents and relative positions, before scaling.

    The 2L - 1 distances have keys for the c2p term and queries for the p2c term; None omits a term.
    """

    def by_pair(contents, positions):
        logits = jnp.einsum(
            'blhd,chd->bhlc',
            contents,
            positions,
            precision=matmul_precision(contents.dtype),
            preferred_element_type=jnp.float32,
        )
        return skew(logits)

    bias = jnp.float32(0)
    if to_key is not None:
        bias += by_pair(query, to_key)
    if to_query is not None:
        # Here rows are keys, so distances run the other way.
        bias += by_pair(key, to_query[::-1]).swapaxes(-1, -2)
    return bias
