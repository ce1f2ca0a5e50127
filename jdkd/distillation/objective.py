"""The training objective: every method is this loss under another config.

    L_total = w_c InfoNCE + w_t D(T, M) + w_a D(TA*, M)                    on the originals
              + w_d sum_i v_i (w_t D_i(T, M) + w_a D_i(TA*, M)) / max(sum_i v_i, 1)
                                                             on the lists with dark examples
              + w_b KL(TA*, M)               on every query's list of all originals of the batch
              + w_e mean ||M(x) - A(x)||^2                   over the queries and originals x
              + w_p KL(T, M)                                 over the scored pool of each query

With `student.dims` InfoNCE and the terms of w_b and w_e are means over the full width and each of
these widths, at which embeddings are cut, and scaled to unit length if the model does so: after
Matryoshka representation learning (Kusupati et al., 2022, https://arxiv.org/abs/2205.13147), whose
loss is InfoNCE's sum; to do so with distillation is ours.

D is the listwise KL or Margin-MSE, TA* the (fused) assistant closest to the teacher (MTA4DPR,
Algorithm 1), v the self-paced weights (ADAM). Weights and temperatures are numbers or schedules; a
term whose weight is the number 0 is not computed. The weights are ours, and so are the last terms.
In the batch: unlike a cross-encoder, an assistant scores it all for almost nothing (compare the
in-batch distillation of TCT-ColBERT, Lin et al., 2021, and TAS-B, Hofstaetter et al., 2021). Of
embeddings: A(x) are the assistants' that the student is aligned with; see `algorithm/align.py`.
Over the pool: M(p) is the embedding that the student gave passage p before the round, so that a
hundred passages cost as little as one, and the gradient goes through the query alone.

In a list without a judged positive the teacher's best candidate stands in for it. The list's
candidates are negatives of others, and every term uses it except the contrastive one, which is 0
for such a list: a labelled list weighs the same, however few of them a batch has (ours).

A batch is a dict of global arrays, B queries with N candidates each, of which the first N_o are
originals (the positive at index 0, then hard negatives) and the rest dark examples:

    query_row       [B] int32          rows of the queries in their split, to name them
    query           [B, Lq] int32      token ids, padded
    tokens          tuple of [R, L]    int32 token ids of the candidates; see `lists/packing.py`
    segments        tuple of [R, L]    int32, which text of its row; absent with one text a row
    slots           [B, N] int32       number of each candidate's slot, over the global batch
    lengths         [B, N] int32       tokens of each candidate
    group           [B, N_o] int32     text group of each original
    relevant        [B, R] int32       groups of the judged passages, padded with -1; absent when
                                       learning embeddings alone
    false_negative  [B, N_o] bool      originals that are no negatives; absent likewise
    labelled        [B] bool           False where the positive is a stand-in; absent if all True
    teacher         [B, N] float32     logits; absent when training from labels alone
    assistants      [B, K, N] float32  logits; absent without a pool
    in_batch        [B, K, B * N_o] float32   logits of all originals; absent unless w_b > 0
    query_target    [B, D] float32     embedding that the query's is to be; absent unless w_e > 0
    passage_target  [B, N_o, D] float32   the same of the originals
    pool_embedding  [B, U, D] float32  of scored passages, as stored; absent unless w_p > 0
    pool_teacher    [B, U] float32     their logits
    pool_there      [B, U] bool        False where a query has fewer
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jdkd.config import Config, EncoderSpec, LossConfig, OptimizerConfig, SelectionConfig
from jdkd.distillation import assistants, losses, schedules, self_paced
from jdkd.distillation.assistants import Weights
from jdkd.distillation.batch_scores import Batch, BatchScores, Prefix, ScoreFn
from jdkd.distillation.losses import Scalar
from jdkd.models.dual_encoder import prefix

Metrics = dict[str, Any]
View = BatchScores | Prefix
PerList = Float[Array, ' lists']
Scores = Float[Array | np.ndarray, 'lists candidates']
PoolScores = Float[Array | np.ndarray, 'lists assistants candidates']


@dataclasses.dataclass(frozen=True)
class Objective:
    """What one training minimises, and its optimizer.

    Of the config, which is the run's but for its `loss`, `selection`, `self_paced`, `rows`,
    `sharding` and `seed` are read too.
    """

    config: Config
    optimizer: OptimizerConfig
    scale: float  # Logits per unit of a dual-encoder's score.
    dropout: float  # The model's rate; 0 spares the random bits.
    num_assistants: int = 0  # K; 0 without a pool.
    dims: tuple[int, ...] = ()  # Widths that embeddings may be cut to.
    frozen: str = 'none'  # The tower that is not trained.

    @classmethod
    def of_student(cls, config: Config) -> 'Objective':
        """Distillation of the student from teacher and assistants."""
        spec = config.student
        if spec.scale is None:
            raise ValueError('student.scale is None; set it: only systems have theirs fitted.')
        return cls(
            config,
            config.optimizer,
            spec.scale,
            spec.dropout,
            num_assistants=len(config.assistants),
            dims=spec.dims,
            frozen=spec.freeze,
        )

    @classmethod
    def of_embeddings(cls, config: Config, steps: int) -> 'Objective':
        """Alignment of the student with given embeddings, and nothing else, for some steps.

        Their number follows from the collection: the warm-up takes at most half of them, and of a
        schedule's cycle.
        """
        total = config.align.total_steps or steps
        shortest = min(steps, config.align.cycle_steps or total)
        optimizer = config.align.replace(
            total_steps=total, warmup_steps=min(config.align.warmup_steps, shortest // 2)
        )
        loss = LossConfig(contrastive=0.0, teacher=0.0, assistant=0.0, embedding=1.0)
        spec = config.student
        return cls(
            config.replace(loss=loss),
            optimizer,
            1.0,
            spec.dropout,
            dims=spec.dims,
            frozen=spec.freeze,
        )

    @classmethod
    def of_labels(cls, config: Config, spec: EncoderSpec) -> 'Objective':
        """Contrastive training from labels alone, for a system with the entry `spec`."""
        loss = LossConfig(teacher=0.0, assistant=0.0)
        return cls(config.replace(loss=loss), spec.train, spec.train.scale, spec.dropout)


def selects_assistants(config: Config, num_assistants: int) -> bool:
    """Whether training selects assistants: there are some, and a loss term distils them."""
    return bool(num_assistants and (config.loss.assistant or config.loss.in_batch))


def distils(config: Config) -> bool:
    """Whether some term of the student's loss teaches without labels."""
    loss = config.loss
    weights = loss.teacher, loss.embedding, loss.pool
    return any(weights) or selects_assistants(config, len(config.assistants))


def make_loss(
    config: Config, score_fn: ScoreFn, num_assistants: int
) -> Callable[..., tuple[Float[Array, ''], Metrics]]:
    """The loss of the module docstring, for K = num_assistants.

    Returns:
        `loss(params, batch, progress, key) -> scalar, metrics`, where progress is the finished
        part of training, in [0, 1], and key the dropout key or None.
    """
    loss, fusion_weights = config.loss, None
    if selects_assistants(config, num_assistants):
        fusion_weights = assistants.fusion_weights(num_assistants, config.selection.fusion)

    def loss_fn(
        params: Any, batch: Batch, progress: Scalar, key: Array | None = None
    ) -> tuple[Float[Array, ''], Metrics]:
        def now(name):
            return schedules.value(getattr(loss, name), progress)

        num_originals = batch['group'].shape[1]
        scores = score_fn(params, batch, key)
        views = scores, *scores.prefixes
        lists_BxN = scores.lists
        tau = now('temperature')
        terms, metrics, best_logits = {}, {}, None
        if loss.contrastive:
            nce_B = _mean_of(
                views,
                lambda view: losses.info_nce(view.contrastive, scores.labels, where=scores.mask),
            )
            if 'labelled' in batch:  # Each labelled list weighs the same, however few there are.
                nce_B = jnp.where(batch['labelled'], nce_B, 0.0)
            terms['contrastive'] = now('contrastive') * jnp.mean(nce_B)
        if fusion_weights is not None:
            best_logits, metrics = _select_assistants(config.selection, fusion_weights, batch, tau)

        def distil(num_candidates: int | None) -> dict[str, PerList]:
            """w_t D(T, M) and w_a D(TA*, M) for each list, on its first candidates."""
            towards = {}
            if loss.teacher:
                towards['teacher'] = batch['teacher'][:, :num_candidates]
            if loss.assistant and best_logits is not None:
                towards['assistant'] = best_logits(batch['assistants'][..., :num_candidates], tau)
            return {
                name: now(name)
                * losses.distillation(
                    lists_BxN[:, :num_candidates], logits, distance=loss.distance, temperature=tau
                )
                for name, logits in towards.items()
            }

        terms |= {name: jnp.mean(per_list) for name, per_list in distil(num_originals).items()}
        if loss.in_batch and best_logits is not None:
            wide = now('in_batch_temperature')
            best_BxC = best_logits(batch['in_batch'], wide)
            kl_B = _mean_of(
                views, lambda view: losses.listwise_kl(view.contrastive, best_BxC, temperature=wide)
            )
            terms['in_batch'] = now('in_batch') * jnp.mean(kl_B)
        if loss.embedding and scores.queries is not None:
            distance_BxN = _mean_of(views, lambda view: _target_distances(view, batch))
            terms['embedding'] = now('embedding') * jnp.mean(distance_BxN)
        if loss.pool and scores.pool is not None:
            kl_B = losses.listwise_kl(
                scores.pool, batch['pool_teacher'], temperature=tau, where=batch['pool_there']
            )
            terms['pool'] = now('pool') * jnp.mean(kl_B)
        if loss.dark and lists_BxN.shape[1] > num_originals and (dark := distil(None)):
            keep_B, threshold = self_paced.weights(
                self_paced.confidence(batch['teacher'][:, :num_originals], temperature=tau),
                schedules.value(config.self_paced.share, progress),
                cap=schedules.value(config.self_paced.cap, progress),
                weighting=config.self_paced.weighting,
            )
            dark_B = jnp.asarray(sum(dark.values()))
            terms['dark'] = now('dark') * self_paced.weighted_mean(dark_B, keep_B)
            metrics |= {'kept_share': jnp.mean(keep_B > 0), 'threshold': threshold}
        total = jnp.asarray(sum(terms.values()))
        metrics |= {f'loss/{name}': value for name, value in terms.items()} | {'loss': total}
        metrics |= {
            f'schedule/{name}': now(name)
            for name in schedules.WEIGHTS + schedules.TEMPERATURES
            if not schedules.is_constant(getattr(loss, name))
        }
        return total, metrics | _batch_metrics(batch, lists_BxN[:, :num_originals])

    return loss_fn


def _select_assistants(
    selection: SelectionConfig, weights_ChxK: Weights, batch: Batch, tau: Scalar
) -> tuple[Callable[..., Scores], Metrics]:
    """TASelect of Algorithm 1: the (fused) assistant closest to the teacher on the originals.

    Returns `best_logits(pool [B, K, M], temperature) -> [B, M]`, and metrics.
    """
    num_originals = batch['group'].shape[1]

    def by_assistant(pool_BxKxM: PoolScores) -> Float[Array, 'assistants lists candidates']:
        return jnp.swapaxes(jax.lax.stop_gradient(pool_BxKxM), 0, 1)

    choices_ChxBxN = assistants.fuse(
        by_assistant(batch['assistants'][..., :num_originals]),
        weights_ChxK,
        fusion=selection.fusion,
        temperature=tau,
    )
    distance_ChxB = assistants.distances(
        choices_ChxBxN,
        jax.lax.stop_gradient(batch['teacher'])[:, :num_originals],
        distance=selection.distance,
        temperature=tau,
        persistence=selection.persistence,
    )
    best_B = assistants.select(distance_ChxB, per=selection.per)

    def best_logits(pool_BxKxM: PoolScores, temperature: Scalar) -> Scores:
        return assistants.fuse_selected(
            by_assistant(pool_BxKxM),
            weights_ChxK,
            best_B,
            fusion=selection.fusion,
            temperature=temperature,
        )

    selected_distance_B = jnp.take_along_axis(distance_ChxB, best_B[None], axis=0)
    return best_logits, {
        'selected': jnp.sum(jax.nn.one_hot(best_B, len(weights_ChxK)), axis=0),
        'selected_distance': jnp.mean(selected_distance_B),
    }


def _mean_of(views: Sequence[View], term: Callable[[Any], Array]) -> Array:
    """Mean of a term over the widths of the embeddings."""
    return functools.reduce(operator.add, map(term, views)) / len(views)


def _target_distances(view: Any, batch: Batch) -> Float[Array, 'lists texts']:
    """Distances of the embeddings of each list's query and originals from their targets."""
    targets = batch['query_target'], batch['passage_target']
    if isinstance(view, Prefix):
        dim = view.queries.shape[-1]
        targets = [prefix(target, dim, normalize=view.normalize) for target in targets]
    distance_B = losses.embedding_distance(view.queries, targets[0])
    distance_BxN = losses.embedding_distance(view.originals, targets[1])
    return jnp.concatenate([distance_B[:, None], distance_BxN], axis=1)


def _mean_of_labelled(per_list_B: PerList, batch: Batch) -> Float[Array, '']:
    """Mean over the labelled lists, 0 without any."""
    if 'labelled' not in batch:
        return jnp.mean(per_list_B)
    return self_paced.weighted_mean(per_list_B, batch['labelled'].astype(jnp.float32))


def _batch_metrics(batch: Batch, originals_BxN: Scores) -> Metrics:
    """Metrics that do not depend on the loss terms."""
    num_tokens = sum(tile.size for tile in batch['tokens'])
    metrics = {'real_token_share': jnp.sum(batch['lengths']) / num_tokens}
    if 'relevant' in batch:
        is_first_B = jnp.all(originals_BxN[:, :1] > originals_BxN[:, 1:], axis=1)
        # How often the student already ranks the positive first in its own list.
        metrics['list_accuracy'] = _mean_of_labelled(is_first_B.astype(jnp.float32), batch)
    if 'labelled' in batch:
        metrics['labelled_share'] = jnp.mean(batch['labelled'])
    return metrics
