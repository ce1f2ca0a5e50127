"""Distillation and contrastive losses, as pure functions in float32.

Scores are logits: the higher, the more relevant. Shapes are written `[..., list_size]`, where a
list holds the candidate passages of one query. Every function averages over lists, never over
elements, so that a loss does not shrink when lists grow.
"""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # Finite, so that a fully masked list has a finite softmax and no NaN gradient.


def log_distribution(
    logits: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """Log of the score distribution: log_softmax(logits / temperature) over the last axis.

    Args:
        logits: `[..., list_size]`.
        temperature: Divides the logits; above 1 it flattens the distribution.
        where: `[..., list_size]` bool, False for candidates that do not exist.

    Returns:
        `[..., list_size]` float32; masked candidates hold a large negative number.
    """
    logits = logits.astype(jnp.float32) / temperature
    if where is not None:
        logits = jnp.where(where, logits, _MASKED)
    return jax.nn.log_softmax(logits, axis=-1)


def listwise_kl(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)) for each list.

    The factor tau^2 keeps the size of the gradient independent of tau (Hinton et al., 2015, 2.1).

    >>> import jax.numpy as jnp
    >>> float(listwise_kl(jnp.array([0., 0.]), jnp.array([0., 0.])))
    0.0

    Args:
        student: `[..., list_size]` logits.
        teacher: `[..., list_size]` logits; no gradient flows into them.
        temperature: tau, shared by both.
        where: `[..., list_size]` bool, False for candidates that do not exist.

    Returns:
        `[...]` one non-negative number per list, 0 for a list of one. Terms with p = 0 count as 0.
    """
    log_p = log_distribution(jax.lax.stop_gradient(teacher), temperature=temperature, where=where)
    log_q = log_distribution(student, temperature=temperature, where=where)
    p = jnp.exp(log_p)
    # Not `p > 0`, which would make nothing of a NaN.
    terms = jnp.where(p == 0, 0.0, p * (log_p - log_q))
    if where is not None:
        terms = jnp.where(where, terms, 0.0)
    return temperature**2 * jnp.sum(terms, axis=-1)


def margin_mse(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """mean_j ((s_0 - s_j) - (t_0 - t_j))^2 for each list: Margin-MSE.

    From Hofstaetter et al., 2020 (https://arxiv.org/abs/2010.02666), with each candidate after
    the positive as the negative once. A shift of either side's scores changes nothing, but a
    factor does: margins are compared in the units of the logits, with no temperature.

    Args:
        student: `[..., list_size]` logits, the positive at index 0.
        teacher: `[..., list_size]` logits; no gradient flows into them.
        where: `[..., list_size]` bool, False for candidates that do not exist.

    Returns:
        `[...]` float32, 0 for a list with nothing beside its positive.
    """
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    error = difference[..., :1] - difference[..., 1:]
    counts = jnp.ones(error.shape, bool) if where is None else where[..., :1] & where[..., 1:]
    # Selected before they are squared: a candidate that does not exist may score anything.
    error = jnp.where(counts, error, 0.0)
    return jnp.sum(error**2, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def distillation(
    student: jax.Array, teacher: jax.Array, *, distance: str, temperature: float | jax.Array
) -> jax.Array:
    """How far the student is from a teacher on each list.

    Args:
        student: `[..., list_size]` logits, the positive at index 0.
        teacher: `[..., list_size]` logits of a teacher or of a (fused) assistant.
        distance: `kl` or `margin_mse`.
        temperature: Of the distributions that `kl` compares.

    Returns:
        `[...]` float32.

    Raises:
        ValueError: if `distance` is neither.
    """
    if distance == 'kl':
        return listwise_kl(student, teacher, temperature=temperature)
    if distance == 'margin_mse':
        return margin_mse(student, teacher)
    raise ValueError(f"loss.distance is '{distance}'; use 'kl' or 'margin_mse'.")


def info_nce(logits: jax.Array, labels: jax.Array, *, where: jax.Array | None = None) -> jax.Array:
    """-log softmax(logits)[label] for each query (van den Oord et al., 2018).

    With in-batch negatives `logits` holds the scores of every query of the global batch against
    every passage of it; `where` takes out passages that are no negatives of a query.

    Args:
        logits: `[num_queries, num_passages]`.
        labels: `[num_queries]` int, the column of each query's positive.
        where: `[num_queries, num_passages]` bool; the positive's column must be True.

    Returns:
        `[num_queries]` float32.
    """
    log_q = log_distribution(logits, where=where)
    return -jnp.take_along_axis(log_q, labels[:, None], axis=-1)[:, 0]


def negatives_mask(group: jax.Array, relevant: jax.Array, false_negative: jax.Array) -> jax.Array:
    """Which columns of the in-batch score matrix enter a query's contrastive softmax.

    A passage that is judged relevant for the query, or whose text equals such a passage's, is no
    negative wherever in the batch it stands; nor is one that was found to be a false negative in
    the query's own list. The query's own positive always stays.

    Args:
        group: `[num_queries, list_size]` int, the text group of every candidate (candidates with
            one text share one group); the positive is at index 0.
        relevant: `[num_queries, max_relevant]` int, groups of the judged passages, padded with -1.
        false_negative: `[num_queries, list_size]` bool, of the query's own list.

    Returns:
        `[num_queries, num_queries * list_size]` bool.
    """
    num_queries, list_size = group.shape
    out = jnp.concatenate([relevant, jnp.where(false_negative, group, -1)], axis=1)
    is_out = jnp.any(group.reshape(1, -1, 1) == out[:, None, :], axis=-1)
    is_own = jnp.eye(num_queries, dtype=bool)[:, :, None] & (jnp.arange(list_size) == 0)
    return is_own.reshape(num_queries, -1) | ~is_out
