"""Self-paced mask over the lists with dark examples (ADAM).

The paper concentrates on instances of high quality, measured by the teacher's confidence. The
confidence and the quantile below are our reading of it; the share that is kept is a schedule.
"""

import jax
import jax.numpy as jnp


def confidence(teacher: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """p_T(positive | positive and hard negatives) for each list.

    Args:
        teacher: `[..., list_size]` logits over originals, the positive at index 0.
        temperature: Divides the logits.

    Returns:
        `[...]` float32 in (0, 1).
    """
    return jax.nn.softmax(teacher.astype(jnp.float32) / temperature, axis=-1)[..., 0]


def weights(
    confidence: jax.Array, share: jax.Array, *, weighting: str = 'hard'
) -> tuple[jax.Array, jax.Array]:
    """Weight v_i of each list and the threshold gamma; no gradient flows through either.

    gamma is the (1 - share) quantile of the batch's confidences. `hard`: v = [c >= gamma].
    `linear`: v = max(0, 1 - l / lambda) with loss l = 1 - c and age lambda = 1 - gamma (Kumar et
    al., 2010; Jiang et al., 2014), so a list at the threshold weighs nothing. At a share of 1 there
    is no pacing, and all weigh 1.

    Args:
        confidence: `[batch]`.
        share: Scalar in (0, 1].
        weighting: `hard` or `linear`.

    Returns:
        `[batch]` float32 weights in [0, 1] and the scalar threshold.

    Raises:
        ValueError: if `weighting` is neither.
    """
    confidence = jax.lax.stop_gradient(confidence)
    threshold = jnp.quantile(confidence, 1.0 - share, method='lower')
    if weighting == 'hard':
        kept = (confidence >= threshold).astype(jnp.float32)
    elif weighting == 'linear':
        age = jnp.maximum(1.0 - threshold, 1e-6)
        kept = jnp.maximum(0.0, 1.0 - (1.0 - confidence) / age)
    else:
        raise ValueError(f"self_paced.weighting is '{weighting}'; use 'hard' or 'linear'.")
    return jnp.where(share >= 1, 1.0, kept), threshold


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """sum_i v_i l_i / max(sum_i v_i, 1) over `[batch]`."""
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)
