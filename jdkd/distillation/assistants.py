"""Assistants: fusing their score distributions and selecting the best one (MTA4DPR).

The paper says: several assistants, fused ones by plain averaging of score distributions; for each
training batch the one closest to the teacher is distilled, by KL divergence, Spearman's footrule
or rank-biased overlap. Which subsets are fused is ours (`fusion`), and so is how reciprocal rank
fusion, which it mentions, becomes a distribution (`reciprocal_ranks`).
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdkd.distillation import losses

FUSIONS = ('none', 'mean', 'subsets', 'rrf')


def fusion_weights(num_assistants: int, fusion: str) -> np.ndarray:
    """Rows that average assistants: the originals first, then the fused ones.

    Args:
        num_assistants: K, at least 1.
        fusion: `none`; `mean`, one fused assistant of all; `subsets` or `rrf`, one for every subset
            of at least two (for K above 4, where subsets are many, the one of all).

    Returns:
        `[num_choices, num_assistants]` float32, each row summing to 1.

    Raises:
        ValueError: if `fusion` is none of these.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"selection.fusion is '{fusion}'; use one of {', '.join(FUSIONS)}.")
    everyone = range(num_assistants)
    subsets = [(k,) for k in everyone]
    if fusion in ('subsets', 'rrf') and num_assistants <= 4:
        for size in range(2, num_assistants + 1):
            subsets += itertools.combinations(everyone, size)
    elif num_assistants > 1 and fusion != 'none':
        subsets.append(tuple(everyone))
    rows = np.zeros((len(subsets), num_assistants), np.float32)
    for row, subset in zip(rows, subsets, strict=True):
        row[list(subset)] = 1 / len(subset)
    return rows


def choice_names(names: Sequence[str], fusion: str) -> list[str]:
    """Names of the rows of `fusion_weights`: `a`, `b`, `a+b`."""
    rows = fusion_weights(len(names), fusion)
    return ['+'.join(name for name, w in zip(names, row, strict=True) if w) for row in rows]


def fuse(
    assistants: jax.Array,
    weights: jax.Array | np.ndarray,
    *,
    fusion: str,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """Logits of every (fused) assistant.

    Distributions are averaged, not logits: assistants of different make have different scales.
    A row's logits are temperature * log(mean of softmax(logits / temperature)), which are those of
    the assistant up to a shift where there is but one; `rrf` gives fused ones `reciprocal_ranks`.

    Args:
        assistants: `[K, ..., list_size]` logits.
        weights: `[num_choices, K]` from `fusion_weights`.
        fusion: As there.
        temperature: That of the distributions.

    Returns:
        `[num_choices, ..., list_size]` float32 logits.
    """
    rows = jnp.asarray(weights).reshape(np.shape(weights) + (1,) * (assistants.ndim - 1))
    return jax.vmap(lambda row: _fuse(assistants, row, fusion, temperature))(rows)


def fuse_selected(
    assistants: jax.Array,
    weights: jax.Array | np.ndarray,
    selected: jax.Array,
    *,
    fusion: str,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    """`fuse`, of each list's selected choice alone.

    Args:
        assistants: `[K, batch, list_size]` logits.
        weights: `[num_choices, K]` from `fusion_weights`.
        selected: `[batch]` int, from `select`.
        fusion: As in `fusion_weights`.
        temperature: That of the distributions.

    Returns:
        `[batch, list_size]` float32 logits.
    """
    weights_KxBx1 = jnp.asarray(weights)[selected].T[..., None]
    return _fuse(assistants, weights_KxBx1, fusion, temperature)


def _fuse(assistants, weights, fusion, temperature) -> jax.Array:
    """One choice a list; weights `[K, ..., 1]` broadcast over the lists."""
    log_p = losses.log_distribution(assistants, temperature=temperature)
    mean = temperature * jax.nn.logsumexp(log_p + jnp.log(weights), axis=0)
    if fusion != 'rrf':
        return mean
    is_fused = jnp.sum(weights > 0, axis=0) > 1
    return jnp.where(is_fused, reciprocal_ranks(assistants, weights), mean)


def reciprocal_ranks(assistants: jax.Array, weights: jax.Array, *, offset: int = 60) -> jax.Array:
    """Logits by reciprocal rank fusion, sum_m 1 / (offset + rank_m) (Cormack et al., 2009).

    Ranks count from 1; candidates of equal score share the mean of their ranks, lest the place in
    the list, where positives come first, decide. The sums differ so little that their softmax
    would be uniform: each list's are standardised and given the mean standard deviation of the
    members' logits (ours), so that ranks say who is ahead and members by how much in all.

    Args:
        assistants: `[K, ..., list_size]` logits.
        weights: Broadcast to `[K, ..., 1]`: equal for members, 0 for the others, with sum 1.
        offset: Of the ranks.

    Returns:
        `[..., list_size]` float32 logits; zeros where the ranks of members cancel out.
    """
    logits = assistants.astype(jnp.float32)
    shares = (weights > 0) / (offset + jax.scipy.stats.rankdata(-logits, axis=-1))
    scores = jnp.sum(shares, axis=0)
    spread = jnp.sum(weights * jnp.std(logits, axis=-1, keepdims=True), axis=0)
    deviation = jnp.std(scores, axis=-1, keepdims=True)
    # What is left of sums that are equal but for rounding is no order.
    scale = jnp.where(deviation > 1e-7, spread / jnp.maximum(deviation, 1e-7), 0.0)
    return scale * (scores - jnp.mean(scores, axis=-1, keepdims=True))


def ranks(scores: jax.Array) -> jax.Array:
    """Rank of each candidate in its list, 0 the best; ties by passage order.

    Args:
        scores: `[..., list_size]`.
    """
    order = jnp.argsort(-scores, axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def footrule(a: jax.Array, b: jax.Array) -> jax.Array:
    """Spearman's footrule sum_i |rank_a(i) - rank_b(i)| over its maximum floor(n^2 / 2), in [0, 1].

    A list of one has distance 0.

    Args:
        a: `[..., list_size]` scores.
        b: `[..., list_size]` scores.

    Returns:
        `[...]` float32.
    """
    n = a.shape[-1]
    moved = jnp.sum(jnp.abs(ranks(a) - ranks(b)), axis=-1)
    return moved.astype(jnp.float32) / max(n * n // 2, 1)


def rank_biased_distance(a: jax.Array, b: jax.Array, *, persistence: float = 0.9) -> jax.Array:
    """1 - rank-biased overlap, truncated to the list and normalised, in [0, 1].

    sum_d p^(d-1) A_d / sum_d p^(d-1) with A_d = |top-d(a) and top-d(b)| / d (Webber et al., 2010,
    without the extrapolation, which would hide reversals on short lists).

    Args:
        a: `[..., list_size]` scores.
        b: `[..., list_size]` scores.
        persistence: p in (0, 1); the smaller, the more the top counts.

    Returns:
        `[...]` float32.
    """
    n = a.shape[-1]
    depth = jnp.arange(1, n + 1)
    # A candidate is in both top-d lists as soon as d reaches the worse of its two ranks.
    worse = jnp.maximum(ranks(a), ranks(b))
    agreement = jnp.mean(worse[..., None, :] < depth[:, None], axis=-1) * n / depth
    decay = persistence ** (depth - 1.0)
    return 1.0 - jnp.sum(agreement * decay, axis=-1) / jnp.sum(decay)


def distances(
    choices: jax.Array, teacher: jax.Array, *, distance: str, temperature: float | jax.Array
) -> jax.Array:
    """Distance of every (fused) assistant to the teacher on every list.

    Args:
        choices: `[num_choices, batch, list_size]` logits from `fuse`.
        teacher: `[batch, list_size]` logits.
        distance: `kl` (the KL divergence of the assistant from the teacher), `footrule` or `rbo`.
        temperature: That of the distributions.

    Returns:
        `[num_choices, batch]` float32.

    Raises:
        ValueError: if `distance` is none of these.
    """
    teacher = jnp.broadcast_to(teacher.astype(jnp.float32), choices.shape)
    if distance == 'kl':
        return losses.listwise_kl(choices / temperature, teacher / temperature)
    if distance == 'footrule':
        return footrule(choices, teacher)
    if distance == 'rbo':
        return rank_biased_distance(choices, teacher)
    raise ValueError(f"selection.distance is '{distance}'; use 'kl', 'footrule' or 'rbo'.")


def select(distances: jax.Array, *, per: str = 'batch') -> jax.Array:
    """Index of the closest choice for each list: the argmin over choices; ties take the first.

    Args:
        distances: `[num_choices, batch]`.
        per: `batch`, one choice for the whole (global) batch by the mean distance; or `query`.

    Returns:
        `[batch]` int32.

    Raises:
        ValueError: if `per` is neither.
    """
    if per == 'batch':
        best = jnp.argmin(jnp.mean(distances, axis=1))
        return jnp.full(distances.shape[1], best, jnp.int32)
    if per == 'query':
        return jnp.argmin(distances, axis=0).astype(jnp.int32)
    raise ValueError(f"selection.per is '{per}'; use 'batch' or 'query'.")
