"""The one train step: every method is this function under another config.

    L_total = w_c InfoNCE + w_t D(T, M) + w_a D(TA*, M)                    on the originals
              + w_d sum_i v_i (w_t D_i(T, M) + w_a D_i(TA*, M)) / max(sum_i v_i, 1)
                                                             on the lists with dark examples
              + w_b KL(TA*, M)               on every query's list of all originals of the batch

D is the listwise KL or Margin-MSE, TA* the (fused) assistant closest to the teacher (MTA4DPR,
Algorithm 1), v the self-paced mask (ADAM). Weights and temperatures are numbers or schedules; a
term whose weight is the number 0 is not computed. They are ours, and so is the last term: unlike a
cross-encoder, an assistant scores the whole batch for almost nothing (compare the in-batch
distillation of TCT-ColBERT, Lin et al., 2021, and TAS-B, Hofstaetter et al., 2021).

A list without a judged positive has the teacher's best candidate in its place. Its candidates are
negatives of others, and every term takes it but the contrastive one, whose mean is over the
labelled lists (0 without any).

A batch is a dict of global arrays, B queries with N candidates each, of which the first N_o are
originals (the positive at index 0, then hard negatives) and the rest dark examples:

    query_row       [B] int32          rows of the queries in their split, to name them
    query           [B, Lq] int32      token ids, padded
    tokens          tuple of [R, L]    int32 token ids of the candidates; see `data/packing.py`
    segments        tuple of [R, L]    int32, which of a row's texts; absent where each has its row
    where           [B, N] int32       the slot of each candidate
    lengths         [B, N] int32       its tokens
    group           [B, N_o] int32     text group of each original
    relevant        [B, R] int32       groups of the judged passages, padded with -1
    false_negative  [B, N_o] bool      originals that are no negatives
    labelled        [B] bool           False where the positive is a stand-in; absent if all True
    teacher         [B, N] float32     logits; absent when training from labels alone
    assistants      [B, K, N] float32  logits; absent when there is no pool
    in_batch        [B, K, B * N_o] float32   logits of all originals; absent unless w_b > 0
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from jdkd.distillation import assistants, losses, schedules, self_paced
from jdkd.lists.packing import RowSpec
from jdkd.models import cross_encoder, dual_encoder

_PLAIN = RowSpec()

Batch = Mapping[str, Any]
Params = Any
# (params, batch, dropout key or None) -> list scores [B, N], contrastive scores [B, C],
# labels [B] and mask [B, C] of the contrastive softmax.
ScoreFn = Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]]


@flax.struct.dataclass
class TrainState:
    """All that a train step reads and writes.

    Attributes:
        step: Scalar int32, steps done; -1 after one that was not finite, which is not taken, nor
            is any after it: the rest of the state is the one before it.
        params: Parameters of the student (or of an assistant trained from labels).
        opt_state: State of the optax optimizer.
        selected: `[num_choices]` float32, how many queries each (fused) assistant was selected
            for in this round; one zero without a pool (Orbax saves no empty arrays).
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    selected: jax.Array


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to 0 and clipping by the global norm.

    Args:
        config: `learning_rate`, `warmup_steps`, `total_steps`, `weight_decay`, `clip_norm` and
            `accumulate`: an update takes the mean gradient of so many steps.
    """
    by_step = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.total_steps
    )
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            lambda updates: by_step(updates * config.accumulate),
            weight_decay=config.weight_decay,
            # Biases, scales and layer norms are vectors: they are not decayed.
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
    if config.accumulate == 1:
        return tx
    return optax.MultiSteps(tx, config.accumulate).gradient_transformation()


def init_state(params: Params, tx: optax.GradientTransformation, *, num_choices: int) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        selected=jnp.zeros(max(num_choices, 1), jnp.float32),
    )


def dual_encoder_scores(
    model: dual_encoder.DualEncoder, scale: float, rows: RowSpec = _PLAIN
) -> ScoreFn:
    """Scores of a dual-encoder: scaled inner products; contrastive over the global batch."""

    def scores(params, batch, key):
        def encode(tower):
            variables = {'params': dual_encoder.tower(params, tower)}

            def apply(*inputs, **dropout):
                return model.apply(variables, *inputs, num_segments=rows.texts, **dropout)

            return apply

        key_q, key_p = (None, None) if key is None else jax.random.split(key)
        B, num_originals = batch['group'].shape
        query_BxD = _in_chunks(encode('query'), (batch['query'],), key_q, rows)
        inputs = [batch[name] for name in ('tokens', 'segments') if name in batch]
        passage_BxNxD = _of_candidates(encode('passage'), inputs, batch['slots'], key_p, rows)
        # Scores are float32 products: TPUs would multiply in bfloat16 by default.
        exact = jax.lax.Precision.HIGHEST
        lists_BxN = scale * jnp.einsum('bd,bnd->bn', query_BxD, passage_BxNxD, precision=exact)
        # Every query against every original of the global batch: XLA gathers what is sharded.
        originals = passage_BxNxD[:, :num_originals].reshape(B * num_originals, -1)
        in_batch = scale * jnp.matmul(query_BxD, originals.T, precision=exact)
        mask = losses.negatives_mask(batch['group'], batch['relevant'], batch['false_negative'])
        return lists_BxN, in_batch, jnp.arange(B) * num_originals, mask

    return scores


def cross_encoder_scores(model: cross_encoder.CrossEncoder, rows: RowSpec = _PLAIN) -> ScoreFn:
    """Scores of a cross-encoder: one forward a pair; contrastive over a query's own list."""

    def scores(params, batch, key):
        def apply(*inputs, **dropout):
            return model.apply({'params': params}, *inputs, **dropout)[:, None]

        inputs = [batch['tokens'], batch['token_types']]
        lists_BxN = _of_candidates(apply, inputs, batch['slots'], key, rows)[..., 0]
        B, num_originals = batch['group'].shape
        own = lists_BxN[:, :num_originals]
        return lists_BxN, own, jnp.zeros(B, jnp.int32), ~batch['false_negative']

    return scores


def scores(model: Any, scale: float, rows: RowSpec) -> ScoreFn:
    """How a model scores a batch, by its kind."""
    if isinstance(model, cross_encoder.CrossEncoder):
        return cross_encoder_scores(model, rows)
    return dual_encoder_scores(model, scale, rows)


def _of_candidates(apply, inputs, where, key, rows: RowSpec) -> jax.Array:
    """`[B, N, D]`, what `apply` finds for the candidates in rows of several lengths."""
    found = []
    for i, tile in enumerate(zip(*inputs, strict=True)):
        key_i = None if key is None else jax.random.fold_in(key, i)
        out = _in_chunks(apply, tile, key_i, rows)
        found.append(out.reshape(-1, out.shape[-1]))
    return jnp.concatenate(found)[where]


def _in_chunks(apply, inputs, key, rows: RowSpec) -> jax.Array:
    """`apply(*inputs)`, row by row, in chunks that are computed again in the backward pass.

    Memory holds the activations of one chunk, and gradients are exact, dropout included: gradient
    caching (Gao et al., 2021, https://arxiv.org/abs/2101.06983).
    """

    def apply_to(numbers, *inputs):
        if key is None:
            return apply(*inputs)
        return apply(*inputs, dropout_rows=numbers, rngs={'dropout': key})

    inputs = (jnp.arange(len(inputs[0])), *inputs)
    if rows.chunks == 1:
        return apply_to(*inputs)

    def cut(x):
        # Each part, and so each device, has its share of each chunk.
        x = x.reshape(rows.parts, rows.chunks, -1, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(rows.chunks, -1, *x.shape[3:])

    chunk = jax.checkpoint(lambda chunk: apply_to(*chunk))
    out = jax.lax.map(chunk, tuple(map(cut, inputs)))
    out = out.reshape(rows.chunks, rows.parts, -1, *out.shape[2:])
    return jnp.swapaxes(out, 0, 1).reshape(-1, *out.shape[3:])


def selects(config: ml_collections.ConfigDict, num_assistants: int) -> bool:
    """Whether a training selects assistants: there are some, and a term distils them."""
    return bool(num_assistants and (config.loss.assistant or config.loss.in_batch))


def make_loss(
    config: ml_collections.ConfigDict, score_fn: ScoreFn, num_assistants: int
) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of the module docstring.

    Args:
        config: The run's config: its `loss`, `selection` and `self_paced` are read.
        score_fn: `dual_encoder_scores` or `cross_encoder_scores`.
        num_assistants: K; 0 without a pool.

    Returns:
        `loss(params, batch, progress, key) -> scalar, metrics`, where progress is the part of
        training that is done, in [0, 1], and key the dropout key or None.
    """
    loss, fusion, rows = config.loss, config.selection.fusion, None
    if selects(config, num_assistants):
        rows = assistants.fusion_weights(num_assistants, fusion)

    def loss_fn(params, batch, progress, key=None):
        def now(name):
            """The number that a schedule of `config.loss` says."""
            return schedules.value(loss[name], progress)

        num_originals = batch['group'].shape[1]
        lists, contrastive, labels, mask = score_fn(params, batch, key)
        tau = now('temperature')
        terms, metrics = {}, {}

        def over_labelled(per_list):
            """Mean over the labelled lists, 0 without any."""
            if 'labelled' not in batch:
                return jnp.mean(per_list)
            return self_paced.weighted_mean(per_list, batch['labelled'].astype(jnp.float32))

        if loss.contrastive:
            nce = losses.info_nce(contrastive, labels, where=mask)
            terms['contrastive'] = now('contrastive') * over_labelled(nce)
        if rows is not None:
            teacher = jax.lax.stop_gradient(batch['teacher'])
            pool_KxBxN = jnp.swapaxes(jax.lax.stop_gradient(batch['assistants']), 0, 1)
            distance = assistants.distances(
                assistants.fuse(
                    pool_KxBxN[..., :num_originals], rows, fusion=fusion, temperature=tau
                ),
                teacher[:, :num_originals],
                distance=config.selection.distance,
                temperature=tau,
            )
            best = assistants.select(distance, per=config.selection.per)
            metrics['selected'] = jnp.sum(jax.nn.one_hot(best, len(rows)), axis=0)
            metrics['selected_distance'] = jnp.mean(
                jnp.take_along_axis(distance, best[None], axis=0)
            )

        def best_logits(pool_KxBxN, temperature):
            return assistants.fuse_selected(
                pool_KxBxN, rows, best, fusion=fusion, temperature=temperature
            )

        def distil(num_candidates):
            """w_t D(T, M) and w_a D(TA*, M) for each list, on its first candidates."""
            towards = {}
            if loss.teacher:
                towards['teacher'] = batch['teacher'][:, :num_candidates]
            if loss.assistant and rows is not None:
                towards['assistant'] = best_logits(pool_KxBxN[..., :num_candidates], tau)
            return {
                name: now(name)
                * losses.distillation(
                    lists[:, :num_candidates], logits, distance=loss.distance, temperature=tau
                )
                for name, logits in towards.items()
            }

        terms |= {name: jnp.mean(per_list) for name, per_list in distil(num_originals).items()}
        if loss.in_batch and rows is not None:
            pool_KxBxC = jnp.swapaxes(jax.lax.stop_gradient(batch['in_batch']), 0, 1)
            wide = now('in_batch_temperature')
            kl = losses.listwise_kl(contrastive, best_logits(pool_KxBxC, wide), temperature=wide)
            terms['in_batch'] = now('in_batch') * jnp.mean(kl)
        has_dark = lists.shape[1] > num_originals
        dark = distil(lists.shape[1]) if has_dark else {}
        if loss.dark and dark:
            keep, threshold = self_paced.weights(
                self_paced.confidence(batch['teacher'][:, :num_originals], temperature=tau),
                schedules.value(config.self_paced.share, progress),
                weighting=config.self_paced.weighting,
            )
            terms['dark'] = now('dark') * self_paced.weighted_mean(sum(dark.values()), keep)
            metrics['kept_share'] = jnp.mean(keep > 0)
            metrics['threshold'] = threshold
        size = sum(rows.size for rows in batch['tokens'])
        metrics['real_token_share'] = jnp.sum(batch['lengths']) / size
        total = sum(terms.values())
        metrics |= {f'loss/{name}': value for name, value in terms.items()}
        metrics['loss'] = total
        metrics |= {
            f'schedule/{name}': now(name)
            for name in schedules.WEIGHTS + schedules.TEMPERATURES
            if not schedules.is_constant(loss[name])
        }
        # How often the student already ranks the positive first in its own list.
        originals = lists[:, :num_originals]
        first = jnp.all(originals[:, :1] > originals[:, 1:], axis=1)
        metrics['list_accuracy'] = over_labelled(first.astype(jnp.float32))
        if 'labelled' in batch:
            metrics['labelled_share'] = jnp.mean(batch['labelled'])
        return total, metrics

    return loss_fn


def make_train_step(
    loss_fn: Callable, tx: optax.GradientTransformation, *, total_steps: int, dropout_seed=None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, batch) -> state, metrics`, pure; to be jitted by the caller.

    Args:
        loss_fn: From `make_loss`.
        tx: The optimizer.
        total_steps: Length of training, for the schedules.
        dropout_seed: Seed of the dropout masks, each a function of (seed, step); None turns
            dropout off.
    """

    def train_step(state, batch):
        key = None
        if dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
        progress = state.step / total_steps
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, progress, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        after = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            selected=state.selected + metrics.get('selected', 0.0),
        )
        if 'selected' in metrics:
            metrics['selected_so_far'] = after.selected
        metrics['grad_norm'] = optax.tree.norm(grads)
        metrics['param_norm'] = optax.tree.norm(after.params)
        # A state that is not finite never exists: what went wrong can still be asked of the one
        # before it, when the host, a step later, sees that something did.
        finite = [jnp.isfinite(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')]
        taken = (state.step >= 0) & jnp.all(jnp.stack(finite))
        before = state.replace(step=jnp.full_like(state.step, -1))
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), after, before), metrics

    return train_step


def make_probe(loss_fn: Callable) -> Callable[..., dict[str, jax.Array]]:
    """`probe(params, batch, progress) -> metrics` with the gradient's norm, without an update."""

    def probe(params, batch, progress):
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, batch, progress)
        return metrics | {'grad_norm': optax.tree.norm(grads)}

    return probe
