"""Distillation and contrastive losses, as pure functions in float32.

Scores are logits: the higher, the more relevant. Shapes are written `[..., list_size]`, where a
list holds the candidate passages of one query. Every function averages over lists, never over
elements, so that a loss does not shrink when lists grow.
"""

import jax
import jax.numpy as jnp

_MASKED = -1e30  # Finite, so that a fully masked list has a finite softmax and no NaN gradient.


def log_distribution(
    logits: jax.Array, *, temperature: float = 1.0, where: jax.Array | None = None
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


def kl_from_log_target(
    student: jax.Array,
    log_target: jax.Array,
    *,
    temperature: float = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """tau^2 * KL(target || student) for each list, the target given as log probabilities.

    Args:
        student: `[..., list_size]` logits.
        log_target: `[..., list_size]` log probabilities, already at `temperature`.
        temperature: tau, applied to the student's logits here.
        where: `[..., list_size]` bool, False for candidates that do not exist.

    Returns:
        `[...]` one non-negative number per list. Terms with p = 0 count as 0.
    """
    log_p = log_target.astype(jnp.float32)
    log_q = log_distribution(student, temperature=temperature, where=where)
    p = jnp.exp(log_p)
    terms = jnp.where(p > 0, p * (log_p - log_q), 0.0)
    if where is not None:
        terms = jnp.where(where, terms, 0.0)
    return temperature**2 * jnp.sum(terms, axis=-1)


def listwise_kl(
    student: jax.Array,
    teacher: jax.Array,
    *,
    temperature: float = 1.0,
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
        `[...]` one number per list.
    """
    log_p = log_distribution(jax.lax.stop_gradient(teacher), temperature=temperature, where=where)
    return kl_from_log_target(student, log_p, temperature=temperature, where=where)


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
    negative wherever in the batch it stands; nor is one of the query's own list that was found to
    be a false negative. The query's own positive always stays.

    Args:
        group: `[num_queries, list_size]` int, the text group of every candidate (candidates with
            one text share one group); the positive is at index 0.
        relevant: `[num_queries, max_relevant]` int, groups of the judged passages, padded with -1.
        false_negative: `[num_queries, list_size]` bool, of the query's own list.

    Returns:
        `[num_queries, num_queries * list_size]` bool.
    """
    num_queries, list_size = group.shape
    is_relevant = jnp.any(group.reshape(1, -1, 1) == relevant[:, None, :], axis=-1)
    own_list = jnp.eye(num_queries, dtype=bool)[:, :, None]
    own_false = (own_list & false_negative[:, None, :]).reshape(num_queries, -1)
    own_positive = (own_list & (jnp.arange(list_size) == 0)).reshape(num_queries, -1)
    return own_positive | ~(is_relevant | own_false)
