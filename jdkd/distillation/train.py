"""The one train loop: students of every round and assistants trained from labels go through it."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm
from jax.sharding import Mesh

from jdkd.distillation import nonfinite
from jdkd.distillation import step as steps
from jdkd.lists import packing
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import distributed, interrupts
from jdkd.runtime import mesh as meshes
from jdkd.runtime.checkpoint import Checkpoints
from jdkd.runtime.metrics import MetricsWriter


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Compiled functions of one training and the layout of its state.

    Attributes:
        mesh: Where it runs.
        step: `(state, batch) -> state, metrics`; the state is donated.
        loss: `(params, batch) -> metrics` without an update, for D_eval.
        probe: `(params, batch, progress) -> metrics`, the gradient's norm among them, without an
            update or dropout; see `blame.lists`.
        init: `params -> state` before the first step, on the mesh.
        abstract: Shapes and shardings of the state.
        rows: How the candidates of a batch are put into rows.
    """

    mesh: Mesh
    step: Callable
    loss: Callable
    probe: Callable
    init: Callable
    abstract: steps.TrainState
    rows: packing.RowSpec


def make_trainer(
    config: ml_collections.FrozenConfigDict,
    train_config: ml_collections.FrozenConfigDict,
    *,
    mesh: Mesh,
    model: Any,
    params: Any,
    scale: float,
    num_assistants: int,
    dropout: float = 0.0,
) -> Trainer:
    """Compiles a train step over the mesh.

    Args:
        config: `loss`, `selection`, `self_paced`, `rows`, `sharding`, `seed`.
        train_config: The optimizer's fields, see `steps.optimizer`.
        mesh: Batches are split over `data`, parameters as the sharding rules say.
        model: `DualEncoder` or `CrossEncoder`.
        params: Its tree of arrays or shapes.
        scale: Logits per unit of a dual-encoder's score.
        num_assistants: K; 0 without a pool.
        dropout: The model's rate; 0 spares the random bits.
    """
    meshes.check_rules(params, config.sharding)
    tx = steps.optimizer(train_config)
    num_choices = 0
    if steps.selects(config, num_assistants):
        num_choices = len(steps.assistants.fusion_weights(num_assistants, config.selection.fusion))

    def init(params):
        return steps.init_state(params, tx, num_choices=num_choices)

    shapes = jax.eval_shape(init, params)
    shardings = meshes.shardings(mesh, shapes, config.sharding)
    replicated, batch = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    start = jax.jit(init, out_shardings=shardings)
    share = isinstance(model, DualEncoder)
    rows = packing.resolve_rows(config.rows, mesh.shape['data'], share=share)
    loss_fn = steps.make_loss(config, steps.scores(model, scale, rows), num_assistants)
    train_step = steps.make_train_step(
        loss_fn,
        tx,
        total_steps=train_config.total_steps,
        dropout_seed=config.seed if dropout else None,
    )

    def on_mesh(fn):
        """Tells fused kernels, which XLA cannot partition, what mesh they run on."""

        def called(*args):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return fn(*args)

        return called

    return Trainer(
        mesh=mesh,
        step=jax.jit(
            on_mesh(train_step),
            in_shardings=(shardings, batch),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
        ),
        # Schedules as at the end of training, so that rounds compare.
        loss=jax.jit(
            on_mesh(lambda params, batch: loss_fn(params, batch, jnp.ones(()))[1]),
            in_shardings=(shardings.params, batch),
            out_shardings=replicated,
        ),
        probe=jax.jit(
            on_mesh(steps.make_probe(loss_fn)),
            in_shardings=(shardings.params, batch, replicated),
            out_shardings=replicated,
        ),
        init=lambda params: start(meshes.put(params, mesh)),
        abstract=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        ),
        rows=rows,
    )


def fit(
    trainer: Trainer,
    start: Callable[[], steps.TrainState],
    batches: grain.DatasetIterator,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    *,
    first_step: int,
    last_step: int,
    total_steps: int,
    query_ids: Sequence[str],
    log_every: int,
    checkpoint_every: int,
    choices: Sequence[str] = (),
    desc: str,
) -> steps.TrainState:
    """Takes the steps of one round, or those that are left of it after a restart.

    Args:
        trainer: What to run.
        start: Makes the state at `first_step`; called only where no later checkpoint exists.
        batches: Iterator of host batches from the first step on; set forward by a restart.
        checkpoints: Saved to every `checkpoint_every` steps and at the last one.
        writer: Gets the metrics of every `log_every`-th step.
        first_step: Steps done before this round.
        last_step: Steps done after it.
        total_steps: Of the whole training, for its schedules.
        query_ids: Ids of the split's queries, to name those of a batch that fails.
        log_every: In steps.
        checkpoint_every: In steps.
        choices: Names of the (fused) assistants, for the log.
        desc: Of the progress bar.

    Returns:
        The state after `last_step`.

    Raises:
        FloatingPointError: at the first step whose loss, gradient or parameters are not finite,
            naming the term and the queries. No such state is saved.
    """
    latest = checkpoints.latest_step()
    if latest is not None and latest >= last_step:
        return checkpoints.restore_state(last_step, trainer.abstract)
    state, step = None, first_step
    if latest is not None and latest > first_step:
        state = checkpoints.restore(latest, trainer.abstract, batches)
        step = latest
    else:
        state = start()
    sharding = meshes.batch_sharding(trainer.mesh)
    quiet = not distributed.is_primary()
    bar = tqdm.tqdm(total=last_step, initial=step, desc=desc, unit='step', disable=quiet)
    pending = None
    clock, clock_step, waited = time.monotonic(), step, 0.0

    def settle(pending):
        """Checks, logs and shows the metrics of a step that was dispatched before."""
        nonlocal clock, clock_step, waited
        at, metrics, host_batch, batch_size = pending
        metrics = jax.device_get(metrics)
        if bad := nonfinite.not_finite(metrics):
            with jax.transfer_guard('allow'):
                # The state is the one before that step; see `step.make_train_step`.
                done = (at - 1) / total_steps
                rows = nonfinite.lists(trainer, state.params, host_batch, done, bad)
            kept = checkpoints.latest_step()
            raise FloatingPointError(
                nonfinite.message(
                    f'step {at} ({desc})',
                    bad,
                    rows,
                    [query_ids[i] for i in host_batch['query_row']],
                    'No checkpoint was made yet.'
                    if kept is None
                    else f'The checkpoint of step {kept} is kept.',
                )
            )
        bar.set_postfix(loss=f'{metrics["loss"]:.3f}', refresh=False)
        bar.update(at - bar.n)
        if at % log_every == 0 or at == last_step:
            now = time.monotonic()
            scalars = {k: v for k, v in metrics.items() if np.ndim(v) == 0}
            if 'selected' in metrics:
                # Of all queries of the round so far, the share that each choice was selected for:
                # one batch would be chance, and a count since the last line is lost by a kill.
                shares = metrics['selected_so_far'] / metrics['selected_so_far'].sum()
                scalars |= {f'selected/{n}': s for n, s in zip(choices, shares, strict=True)}
            scalars['lists_per_second'] = batch_size * (at - clock_step) / (now - clock)
            # What the host's data cost, beyond the steps that ran meanwhile.
            scalars['wait_seconds'] = waited / (at - clock_step)
            writer.write(at, scalars)
            clock, clock_step, waited = now, at, 0.0

    watch = distributed.hang_watchdog(desc)
    guard = jax.transfer_guard('disallow')
    with bar, interrupts.defer_exit() as stop, watch as alive, guard:
        while step < last_step:
            alive()
            asked = time.monotonic()
            host_batch = next(batches)
            waited += time.monotonic() - asked
            batch = meshes.to_device(host_batch, sharding)
            state, metrics = trainer.step(state, batch)
            step += 1
            if pending:
                settle(pending)
            pending = (step, metrics, host_batch, batch['group'].shape[0])
            stopping = distributed.stop_requested(stop.is_set())
            if step == last_step or step % checkpoint_every == 0 or stopping:
                settle(pending)  # A state that is not finite is never saved.
                pending = None
                with jax.transfer_guard('allow'):  # Orbax fetches the state as it likes.
                    checkpoints.save(step, state, batches)
            if stopping:
                checkpoints.wait()
                writer.close()
                distributed.barrier('all is saved')
                interrupts.exit_after_saving()
    return state


def evaluate(
    trainer: Trainer, params: Any, host_batch: dict[str, np.ndarray], query_ids: Sequence[str]
) -> dict[str, Any]:
    """Metrics of one batch without an update, on the host.

    Args:
        trainer: What to run.
        params: Of the model.
        host_batch: The batch.
        query_ids: Ids of the split's queries.

    Raises:
        FloatingPointError: if one is not finite, naming it and the queries.
    """
    batch = meshes.to_device(host_batch, meshes.batch_sharding(trainer.mesh))
    metrics = jax.device_get(trainer.loss(params, batch))
    if bad := nonfinite.not_finite(metrics):
        rows = nonfinite.lists(trainer, params, host_batch, 1.0, bad)
        ids = [query_ids[i] for i in host_batch['query_row']]
        raise FloatingPointError(
            nonfinite.message('the loss on D_eval', bad, rows, ids, 'The trained state is kept.')
        )
    return metrics


def student_trainer(config, mesh: Mesh, model: Any, params: Any) -> Trainer:
    """What trains the student of a config.

    Args:
        config: The run's.
        mesh: Where to.
        model: The student's module.
        params: Its parameters, for their shapes.
    """
    return make_trainer(
        config,
        config.optimizer,
        mesh=mesh,
        model=model,
        params=params,
        scale=config.student.scale,
        num_assistants=len(config.assistants),
        dropout=config.student.dropout,
    )


def labels_trainer(config, spec, mesh, model, params) -> Trainer:
    """What trains an encoder on the labels; `abstract` is the state that its checkpoints hold.

    Args:
        config: The run's.
        spec: The encoder's entry.
        mesh: Where to.
        model: The encoder's module.
        params: Its parameters, or their shapes.
    """
    # Labels alone: the other terms of the loss need a teacher.
    loss = {key: 0.0 for key in config.loss} | {'contrastive': 1.0, 'temperature': 1.0}
    return make_trainer(
        ml_collections.FrozenConfigDict({**config.to_dict(), 'loss': loss}),
        spec.train,
        mesh=mesh,
        params=params,
        model=model,
        scale=spec.train.scale,
        num_assistants=0,
        dropout=spec.dropout,
    )
