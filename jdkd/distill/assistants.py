"""Assistants: fusing their score distributions and selecting the best one (MTA4DPR).

The paper says: several assistants, fused ones by plain averaging of score distributions; for each
training batch the one closest to the teacher is distilled, by KL divergence, Spearman's footrule
or rank-biased overlap. Which subsets are fused is ours (`fusion`).
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdkd.distill import losses


def fusion_weights(num_assistants: int, fusion: str) -> np.ndarray:
    """Rows that average assistants: the originals first, then the fused ones.

    Args:
        num_assistants: K, at least 1.
        fusion: `none`; `mean`, one fused assistant of all; `subsets`, one for every subset of at
            least two (for K above 4, where subsets are many, the same as `mean`).

    Returns:
        `[num_choices, num_assistants]` float32, each row summing to 1.

    Raises:
        ValueError: if `fusion` is none of these.
    """
    if fusion not in ('none', 'mean', 'subsets'):
        raise ValueError(f"selection.fusion is '{fusion}'; use 'none', 'mean' or 'subsets'.")
    everyone = range(num_assistants)
    subsets = [(k,) for k in everyone]
    if num_assistants > 1 and fusion == 'subsets' and num_assistants <= 4:
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
    assistants: jax.Array, weights: jax.Array | np.ndarray, *, temperature: float = 1.0
) -> jax.Array:
    """Log of the mean of the assistants' softmaxes, for each row of `weights`.

    Distributions are averaged, not logits: assistants of different make have different scales.

    Args:
        assistants: `[K, ..., list_size]` logits.
        weights: `[num_choices, K]` from `fusion_weights`.
        temperature: Divides the logits.

    Returns:
        `[num_choices, ..., list_size]` log probabilities.
    """
    log_p = losses.log_distribution(assistants, temperature=temperature)
    log_w = jnp.log(jnp.asarray(weights))
    expand = log_w.reshape(log_w.shape + (1,) * (log_p.ndim - 1))
    return jax.nn.logsumexp(log_p[None] + expand, axis=1)


def fuse_selected(
    assistants: jax.Array,
    weights: jax.Array | np.ndarray,
    selected: jax.Array,
    *,
    temperature: float = 1.0,
) -> jax.Array:
    """`fuse`, of each list's selected choice alone.

    Args:
        assistants: `[K, batch, list_size]` logits.
        weights: `[num_choices, K]` from `fusion_weights`.
        selected: `[batch]` int, from `select`.
        temperature: Divides the logits.

    Returns:
        `[batch, list_size]` log probabilities.
    """
    log_p = losses.log_distribution(assistants, temperature=temperature)
    log_w_KxB = jnp.log(jnp.asarray(weights))[selected].T
    return jax.nn.logsumexp(log_p + log_w_KxB[..., None], axis=0)


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


def distances(log_choices: jax.Array, teacher: jax.Array, *, distance: str, temperature: float):
    """Distance of every (fused) assistant to the teacher on every list.

    Args:
        log_choices: `[num_choices, batch, list_size]` log probabilities from `fuse`.
        teacher: `[batch, list_size]` logits.
        distance: `kl` (the KL divergence of the assistant from the teacher), `footrule` or `rbo`.
        temperature: That of the distributions.

    Returns:
        `[num_choices, batch]` float32.

    Raises:
        ValueError: if `distance` is none of these.
    """
    teacher = jnp.broadcast_to(teacher, log_choices.shape)
    if distance == 'kl':
        # The choices' log probabilities are logits at temperature 1.
        log_p = losses.log_distribution(teacher, temperature=temperature)
        return losses.kl_from_log_target(log_choices, log_p)
    if distance == 'footrule':
        return footrule(log_choices, teacher)
    if distance == 'rbo':
        return rank_biased_distance(log_choices, teacher)
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
