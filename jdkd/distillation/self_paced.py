"""Self-paced weights for the lists with dark examples (ADAM).

The paper concentrates on instances of high quality, measured by the teacher's confidence. The
confidence and the quantile below are our reading of it; the kept share is a schedule. The cap is
ours: the surest lists are those with least to teach.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jdkd.distillation.losses import PerList, Scalar, Scores


def confidence(teacher: Scores, *, temperature: Scalar = 1.0) -> PerList:
    """p_T(positive | positive and hard negatives) for each list of originals, positives first.

    >>> import jax.numpy as jnp
    >>> float(confidence(jnp.array([1.0, 1.0, 1.0, 1.0])))
    0.25
    """
    return jax.nn.softmax(teacher.astype(jnp.float32) / temperature, axis=-1)[..., 0]


def weights(
    confidence: Float[Array | np.ndarray, ' batch'],
    share: Scalar,
    *,
    cap: Scalar = 1.0,
    weighting: str = 'hard',
) -> tuple[Float[Array, ' batch'], Float[Array, '']]:
    """Weight v_i of each list and the threshold gamma; no gradient flows through either.

    A list whose confidence is above the cap weighs nothing: there the teacher says little beside
    the label. gamma is the (1 - share) quantile of the batch's other confidences. `hard`:
    v = [c >= gamma]. `linear`: v = max(0, 1 - l / lambda) with loss l = 1 - c and age
    lambda = 1 - gamma (Kumar et al., 2010; Jiang et al., 2014), so a list at the threshold weighs
    nothing. A share of 1 turns pacing off: all lists weigh 1. Where all lists are above the cap, it
    does not count.

    >>> import jax.numpy as jnp
    >>> weights(jnp.array([0.9, 0.1, 0.6, 0.4]), 0.5)[0].tolist()
    [1.0, 0.0, 1.0, 1.0]
    >>> weights(jnp.array([0.99, 0.1, 0.6, 0.4]), 0.5, cap=0.9)[0].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    confidence = jax.lax.stop_gradient(confidence)
    below_cap = confidence <= cap
    below_cap |= ~jnp.any(below_cap)
    others = jnp.where(below_cap, confidence, jnp.nan)
    threshold = jnp.nanquantile(others, 1.0 - share, method='lower')
    if weighting == 'hard':
        kept = (confidence >= threshold).astype(jnp.float32)
    elif weighting == 'linear':
        age = jnp.maximum(1.0 - threshold, 1e-6)
        kept = jnp.maximum(0.0, 1.0 - (1.0 - confidence) / age)
    else:
        raise ValueError(f"self_paced.weighting is '{weighting}'; use 'hard' or 'linear'.")
    return jnp.where(share >= 1, 1.0, kept * below_cap), threshold


def weighted_mean(
    losses: Float[Array | np.ndarray, ' batch'], weights: Float[Array | np.ndarray, ' batch']
) -> Float[Array, '']:
    """sum_i v_i l_i / max(sum_i v_i, 1) over `[batch]`.

    >>> import jax.numpy as jnp
    >>> float(weighted_mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([1.0, 1.0, 0.0])))
    1.5
    """
    return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1.0)
