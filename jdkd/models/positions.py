"""What attention knows of relative positions: logit biases by distance, rotations by position.

Both relative families depend on the distance of key and query alone, of which a row of L tokens
has 2L - 1. They are computed by distance and laid out over the L x L pairs by `skew`, a pad and
two reshapes, where gathers would be slow on a TPU, and slower still in the backward pass.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jdkd.models.config import Disentangled, RelativeBias


def distances(length: int) -> np.ndarray:
    """`[2L - 1]` distances, key minus query, that a row of L tokens has, in order."""
    return np.arange(1 - length, length)


def skew(by_distance: jax.Array) -> jax.Array:
    """`[..., L, 2L - 1]` values by query and distance to `[..., L, L]` by query and key."""
    *batch, length, width = by_distance.shape
    x = jnp.pad(by_distance, [(0, 0)] * (len(batch) + 1) + [(0, 1)])
    # With rows one longer than in the next reshape, each row starts one distance lower.
    x = x.reshape(*batch, length * (width + 1))[..., length - 1 :]
    x = x[..., : length * width].reshape(*batch, length, width)
    return x[..., :length]


def bias_buckets(distance: np.ndarray, relative: RelativeBias) -> np.ndarray:
    """Bucket of each distance: exact for small ones, then logarithmic up to `max_distance`."""
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
    """Row of the position embeddings for each distance."""
    offset = -distance  # Theirs is query minus key.
    if relative.num_buckets:
        mid = relative.num_buckets // 2
        near = np.maximum(np.abs(offset), mid).astype(np.float32)
        widest = np.log(np.float32((relative.max_distance - 1) / mid))
        far = np.ceil(np.log(near / np.float32(mid)) / widest * np.float32(mid - 1)) + mid
        offset = np.where(np.abs(offset) <= mid, offset, np.sign(offset) * far).astype(np.int32)
    return np.clip(offset + relative.span, 0, 2 * relative.span - 1)


def rotary_angles(length: int, size: int, theta: float) -> np.ndarray:
    """`[L, size / 2]` float32 angles of each position."""
    frequency = (1.0 / theta ** (np.arange(0, size, 2) / size)).astype(np.float32)
    return np.arange(length, dtype=np.float32)[:, None] * frequency


def rotate(x_BxLxHxd: jax.Array, angles: np.ndarray) -> jax.Array:
    """Queries or keys turned by `[L, d / 2]` angles, in float32."""
    cos, sin = (f(angles)[:, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x_BxLxHxd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxd.dtype)


def disentangled_bias(
    query: jax.Array, key: jax.Array, *, to_key: jax.Array | None, to_query: jax.Array | None
) -> jax.Array:
    """Logits, before scaling, that contents give to positions.

    Args:
        query: `[B, L, H, d]`.
        key: `[B, L, H, d]`.
        to_key: `[2L - 1, H, d]` keys of the distances, for c2p; None to leave it out.
        to_query: `[2L - 1, H, d]` queries of the distances, for p2c; None to leave it out.

    Returns:
        `[B, H, L, L]` float32.
    """

    def by_pair(contents, positions):
        logits = jnp.einsum(
            'blhd,chd->bhlc', contents, positions, preferred_element_type=jnp.float32
        )
        return skew(logits)

    bias = 0.0
    if to_key is not None:
        bias += by_pair(query, to_key)
    if to_query is not None:
        # Rows are keys here, from which distances run the other way.
        bias += by_pair(key, to_query[::-1]).swapaxes(-1, -2)
    return bias
