"""Assistants: fuses their score distributions and selects the one closest to the teacher (MTA4DPR).

From the paper: several assistants; fused ones by averaging score distributions; for each training
batch, distillation from the assistant closest to the teacher by KL divergence, Spearman's footrule
or rank-biased overlap. Ours: which subsets are fused (`fusion`), and how reciprocal rank fusion,
which the paper mentions, becomes a distribution (`reciprocal_ranks`). Ours too: how distances by
rank treat candidates of equal score, so that the order of the list, where positives come first,
never decides.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jdkd.config.method import FUSIONS
from jdkd.distillation import losses
from jdkd.distillation.losses import PerList, Scalar, Scores

Pool = Float[Array | np.ndarray, 'assistants *lists list_size']
Weights = Float[Array | np.ndarray, 'choices assistants']
_RANK_OFFSET = 60  # Of reciprocal rank fusion.


def fusion_weights(
    num_assistants: int, fusion: str
) -> Float[np.ndarray, 'choices {num_assistants}']:
    """Weights that average assistants: one row for each assistant, then one for each fused one.

    `mean` fuses all; `subsets` and `rrf` fuse every subset of at least two (above K = 4, where
    subsets are many, all); `none` fuses none.

    >>> fusion_weights(2, 'subsets').tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    """
    if fusion not in FUSIONS:
        raise ValueError(f"selection.fusion is '{fusion}'; use one of {', '.join(FUSIONS)}.")
    everyone = range(num_assistants)
    subsets: list[tuple[int, ...]] = [(k,) for k in everyone]
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
    """Names of the rows of `fusion_weights`.

    >>> choice_names(['a', 'b'], 'mean')
    ['a', 'b', 'a+b']
    """
    rows = fusion_weights(len(names), fusion)
    return ['+'.join(name for name, w in zip(names, row, strict=True) if w) for row in rows]


def fuse(
    assistants: Pool, weights: Weights, *, fusion: str, temperature: Scalar = 1.0
) -> Float[Array, 'choices *lists list_size']:
    """Logits of every (fused) assistant.

    Averages distributions, not logits, whose scales differ between models. A choice's logits are
    temperature * log(mean of softmax(logits / temperature)), which for a single assistant are its
    own up to a constant; `rrf` gives fused ones `reciprocal_ranks`.

    >>> import jax.numpy as jnp
    >>> pool = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
    >>> fused = fuse(pool, fusion_weights(2, 'mean'), fusion='mean')
    >>> [round(float(p), 4) for p in jnp.exp(fused[2])]
    [0.7, 0.3]
    """
    rows = jnp.asarray(weights).reshape(np.shape(weights) + (1,) * (assistants.ndim - 1))
    return jax.vmap(lambda row: _fuse(assistants, row, fusion, temperature))(rows)


def fuse_selected(
    assistants: Float[Array | np.ndarray, 'assistants batch list_size'],
    weights: Weights,
    selected: Int[Array | np.ndarray, ' batch'],
    *,
    fusion: str,
    temperature: Scalar = 1.0,
) -> Float[Array, 'batch list_size']:
    """Logits of each list's choice from `select`: `fuse` without the other choices."""
    weights_KxBx1 = jnp.asarray(weights)[selected].T[..., None]
    return _fuse(assistants, weights_KxBx1, fusion, temperature)


def _fuse(assistants, weights, fusion, temperature) -> jax.Array:
    """Logits `[..., list_size]` of one choice a list; weights are `[K, ..., 1]`."""
    log_p = losses.log_distribution(assistants, temperature=temperature)
    mean = temperature * jax.nn.logsumexp(log_p + jnp.log(weights), axis=0)
    if fusion != 'rrf':
        return mean
    is_fused = jnp.sum(weights > 0, axis=0) > 1
    return jnp.where(is_fused, reciprocal_ranks(assistants, weights), mean)


def reciprocal_ranks(
    assistants: Pool, weights: Float[Array | np.ndarray, 'assistants *_ 1']
) -> Float[Array, '*lists list_size']:
    """Logits by reciprocal rank fusion, sum_m 1 / (60 + rank_m) (Cormack et al., 2009).

    Ranks count from 1; candidates of equal score share the mean of their ranks, so that the order
    of the list, where positives come first, does not decide. The sums differ so little that their
    softmax would be uniform: each list's are standardised and scaled to the mean standard deviation
    of the members' logits (ours), so that ranks give the order and members the spread.

    `weights` are equal for members, 0 for the others, with sum 1. Where the members' ranks cancel
    out, logits are 0.
    """
    logits = assistants.astype(jnp.float32)
    shares = (weights > 0) / (_RANK_OFFSET + _ranks(logits))
    scores = jnp.sum(shares, axis=0)
    spread = jnp.sum(weights * jnp.std(logits, axis=-1, keepdims=True), axis=0)
    deviation = jnp.std(scores, axis=-1, keepdims=True)
    # Sums that differ by rounding alone have no order.
    scale = jnp.where(deviation > 1e-7, spread / jnp.maximum(deviation, 1e-7), 0.0)
    return scale * (scores - jnp.mean(scores, axis=-1, keepdims=True))


def footrule(a: Scores, b: Scores) -> PerList:
    """Spearman's footrule over its maximum, in [0, 1].

    `sum_i |rank_a(i) - rank_b(i)| / floor(n^2 / 2)`

    Candidates of equal score share the mean of their ranks (the profile metric of Fagin et al.,
    2006), so that equal scores throughout have distance 1/2 to every strict order. A list of one
    has distance 0.

    >>> import jax.numpy as jnp
    >>> float(footrule(jnp.array([3.0, 2.0, 1.0]), jnp.array([1.0, 2.0, 3.0])))
    1.0
    """
    n = a.shape[-1]
    displacement = jnp.sum(jnp.abs(_ranks(a) - _ranks(b)), axis=-1)
    return displacement.astype(jnp.float32) / max(n * n // 2, 1)


def rank_biased_distance(a: Scores, b: Scores, *, persistence: float = 0.9) -> PerList:
    """1 - rank-biased overlap, truncated to the list and normalised, in [0, 1].

    `sum_d p^(d-1) A_d / sum_d p^(d-1)` with `A_d = |top-d(a) and top-d(b)| / d` (Webber et al.,
    2010, without the extrapolation, which would hide reversals on short lists). The smaller the
    persistence p in (0, 1), the more the top counts.

    Where scores are equal, `A_d` is its mean over all orders of the equal candidates (RBO^a of
    Corsi and Urbano, 2024), so that equal scores throughout are as far away as a random order.

    >>> import jax.numpy as jnp
    >>> float(rank_biased_distance(jnp.array([3.0, 2.0, 1.0]), jnp.array([9.0, 8.0, 7.0])))
    0.0
    """
    depth = jnp.arange(1, a.shape[-1] + 1)
    overlap = jnp.sum(_share_in_top(a, depth) * _share_in_top(b, depth), axis=-1)
    decay = persistence ** (depth - 1.0)
    return 1.0 - jnp.sum(overlap / depth * decay, axis=-1) / jnp.sum(decay)


def _ranks(scores: Scores, method: str = 'average') -> Float[Array, '*lists list_size']:
    """Rank of each candidate in its list, 1 the best; of equal scores as the method says."""
    return jax.scipy.stats.rankdata(-scores.astype(jnp.float32), method=method, axis=-1)


def _share_in_top(
    scores: Scores, depth: Int[Array, ' depths']
) -> Float[Array, '*lists depths list_size']:
    """Share of the orders of equal candidates that put each candidate into the top d."""
    first, last = _ranks(scores, 'min')[..., None, :], _ranks(scores, 'max')[..., None, :]
    return jnp.clip((depth[:, None] - first + 1) / (last - first + 1), 0, 1)


def distances(
    choices: Float[Array | np.ndarray, 'choices batch list_size'],
    teacher: Float[Array | np.ndarray, 'batch list_size'],
    *,
    distance: str,
    temperature: Scalar,
    persistence: float = 0.9,
) -> Float[Array, 'choices batch']:
    """Distance of every (fused) assistant to the teacher on every list.

    That is `kl` (the KL divergence of the assistant from the teacher), `footrule` or `rbo`, whose
    persistence is given.
    """
    teacher = jnp.broadcast_to(teacher.astype(jnp.float32), choices.shape)
    if distance == 'kl':
        return losses.listwise_kl(choices / temperature, teacher / temperature)
    if distance == 'footrule':
        return footrule(choices, teacher)
    if distance == 'rbo':
        return rank_biased_distance(choices, teacher, persistence=persistence)
    raise ValueError(f"selection.distance is '{distance}'; use 'kl', 'footrule' or 'rbo'.")


def select(
    distances: Float[Array | np.ndarray, 'choices batch'], *, per: str = 'batch'
) -> Int[Array, ' batch']:
    """Index of the closest choice, per `query` or by the mean distance per (global) `batch`.

    Ties take the first.

    >>> import jax.numpy as jnp
    >>> distances = jnp.array([[0.1, 0.9], [0.4, 0.2]])
    >>> select(distances).tolist(), select(distances, per='query').tolist()
    ([1, 1], [0, 1])
    """
    if per == 'batch':
        best = jnp.argmin(jnp.mean(distances, axis=1))
        return jnp.full(distances.shape[1], best, jnp.int32)
    if per == 'query':
        return jnp.argmin(distances, axis=0).astype(jnp.int32)
    raise ValueError(f"selection.per is '{per}'; use 'batch' or 'query'.")
