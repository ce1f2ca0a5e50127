"""Distillation and contrastive losses: pure functions in float32.

Scores are logits: the higher, the more relevant. A list holds the candidate passages of one query;
`where` is False for candidates that do not exist. Every function averages over lists, never over
elements, so longer lists do not shrink a loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_MASK_LOGIT = -1e30  # Finite: a fully masked list has a finite softmax and no NaN gradient.

Scalar = float | int | Array
Scores = Float[Array | np.ndarray, '*lists list_size']
Mask = Bool[Array | np.ndarray, '*lists list_size']
PerList = Float[Array, '*lists']


def log_distribution(
    logits: Scores, *, temperature: Scalar = 1.0, where: Mask | None = None
) -> Float[Array, '*lists list_size']:
    """Log of the score distribution, log_softmax(logits / temperature), over each list.

    A temperature above 1 flattens the distribution; masked candidates get a large negative number.

    >>> import jax.numpy as jnp
    >>> jnp.exp(log_distribution(jnp.array([0.0, 0.0]))).tolist()
    [0.5, 0.5]
    """
    logits = logits.astype(jnp.float32) / temperature
    if where is not None:
        logits = jnp.where(where, logits, _MASK_LOGIT)
    return jax.nn.log_softmax(logits, axis=-1)


def listwise_kl(
    student: Scores, teacher: Scores, *, temperature: Scalar = 1.0, where: Mask | None = None
) -> PerList:
    """tau^2 * KL(softmax(teacher / tau) || softmax(student / tau)) for each list.

    The factor tau^2 keeps the size of the gradient independent of tau (Hinton et al., 2015, 2.1).
    No gradient flows into the teacher; terms with p = 0 count as 0.

    >>> import jax.numpy as jnp
    >>> float(listwise_kl(jnp.array([0., 0.]), jnp.array([0., 0.])))
    0.0
    """
    log_p = log_distribution(jax.lax.stop_gradient(teacher), temperature=temperature, where=where)
    log_q = log_distribution(student, temperature=temperature, where=where)
    p = jnp.exp(log_p)
    # `p > 0` would turn a NaN into 0.
    terms = jnp.where(p == 0, 0.0, p * (log_p - log_q))
    if where is not None:
        terms = jnp.where(where, terms, 0.0)
    return temperature**2 * jnp.sum(terms, axis=-1)


def margin_mse(student: Scores, teacher: Scores) -> PerList:
    """Margin-MSE: mean_j ((s_0 - s_j) - (t_0 - t_j))^2 for each list, the positive at index 0.

    From Hofstaetter et al., 2020 (https://arxiv.org/abs/2010.02666), with each candidate after
    the positive as the negative once. Adding a constant to either side changes nothing; a factor
    does: margins are compared in units of the logits, without a temperature. No gradient flows
    into the teacher; a list with nothing beside its positive has loss 0.

    >>> import jax.numpy as jnp
    >>> float(margin_mse(jnp.array([3.0, 1.0]), jnp.array([2.0, 1.0])))
    1.0
    """
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    error = difference[..., :1] - difference[..., 1:]
    return jnp.sum(error**2, axis=-1) / max(error.shape[-1], 1)


def distillation(
    student: Scores, teacher: Scores, *, distance: str, temperature: Scalar
) -> PerList:
    """The student's distance to a teacher or assistant on each list: `kl` or `margin_mse`."""
    if distance == 'kl':
        return listwise_kl(student, teacher, temperature=temperature)
    if distance == 'margin_mse':
        return margin_mse(student, teacher)
    raise ValueError(f"loss.distance is '{distance}'; use 'kl' or 'margin_mse'.")


def info_nce(
    logits: Float[Array | np.ndarray, 'queries passages'],
    labels: Int[Array | np.ndarray, ' queries'],
    *,
    where: Bool[Array | np.ndarray, 'queries passages'] | None = None,
) -> Float[Array, ' queries']:
    """-log softmax(logits)[label] for each query (van den Oord et al., 2018).

    With in-batch negatives, `logits` scores every query of the global batch against every passage
    of it, and `where` masks the passages that are no negatives of a query. `labels` are the columns
    of the positives, which must not be masked.

    >>> import jax.numpy as jnp
    >>> round(float(info_nce(jnp.zeros((1, 4)), jnp.array([0]))[0]), 4)  # log 4
    1.3863
    """
    log_q = log_distribution(logits, where=where)
    return -jnp.take_along_axis(log_q, labels[:, None], axis=-1)[:, 0]


def embedding_distance(
    student: Float[Array, '*texts dim'], target: Float[Array | np.ndarray, '*texts dim']
) -> Float[Array, '*texts']:
    """Squared L2 distance of each text's embedding from its target.

    For unit vectors that is 2 - 2 cos. No gradient flows into the target.

    >>> import jax.numpy as jnp
    >>> embedding_distance(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])).tolist()
    [2.0]
    """
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(target).astype(jnp.float32)
    return jnp.sum(difference**2, axis=-1)


def negatives_mask(
    group: Int[Array | np.ndarray, 'queries list_size'],
    relevant: Int[Array | np.ndarray, 'queries relevant'],
    false_negative: Bool[Array | np.ndarray, 'queries list_size'],
) -> Bool[Array, 'queries columns']:
    """Columns of the in-batch score matrix that enter each query's contrastive softmax.

    A passage is masked wherever it stands in the batch if it is judged relevant to the query, has
    the text of such a passage, or is marked as a false negative in the query's own list. The
    query's own positive always stays.

    Args:
        group: Text group of every candidate (candidates with one text share one group); the
            positive is at index 0.
        relevant: Groups of the judged passages, padded with -1.
        false_negative: Marks for the query's own list.

    Returns:
        `[num_queries, num_queries * list_size]` bool.
    """
    num_queries, list_size = group.shape
    masked = jnp.concatenate([relevant, jnp.where(false_negative, group, -1)], axis=1)
    is_masked = jnp.any(group.reshape(1, -1, 1) == masked[:, None, :], axis=-1)
    is_own = jnp.eye(num_queries, dtype=bool)[:, :, None] & (jnp.arange(list_size) == 0)
    return is_own.reshape(num_queries, -1) | ~is_masked
