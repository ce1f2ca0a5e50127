"""The train loop of every training: of the student in each round, and of systems from labels."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import tqdm

from jdkd.distillation import nonfinite
from jdkd.distillation.step import TrainState
from jdkd.distillation.trainer import Trainer
from jdkd.runtime import distributed, interrupts
from jdkd.runtime import mesh as meshes
from jdkd.runtime.checkpoint import Checkpoints
from jdkd.runtime.metrics import MetricsWriter


def train_loop(
    trainer: Trainer,
    start: Callable[[], TrainState],
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
) -> TrainState:
    """Takes the steps of one round, or after a restart those that are left.

    A step's metrics are read while the next step runs, so the device never waits for the host.

    Args:
        trainer: The compiled training.
        start: Makes the state at `first_step`; called only without a later checkpoint.
        batches: Iterator of host batches from the first step on; a restart sets it forward.
        checkpoints: Written every `checkpoint_every` steps and after the last one.
        writer: Gets the metrics of every `log_every`-th step.
        first_step: Steps done before this round.
        last_step: Steps done after it.
        total_steps: Length of the whole training, for its schedules.
        query_ids: Ids of the split's queries, to name those of a batch that fails.
        log_every: In steps.
        checkpoint_every: In steps.
        choices: Names of the (fused) assistants, for the metrics.
        desc: Text of the progress bar.

    Returns:
        The state after `last_step`.

    Raises:
        FloatingPointError: at the first step whose loss, gradient or parameters are not finite,
            naming the term and the queries. No such state is saved.
    """
    step = checkpoints.latest_step()
    if step is not None and step >= last_step:
        return checkpoints.restore(last_step, trainer.abstract)
    if step is not None and step > first_step:
        state = checkpoints.restore(step, trainer.abstract, batches)
    else:
        state, step = start(), first_step
    sharding = meshes.batch_sharding(trainer.mesh)
    log = _StepLog(writer, step, last_step, log_every, choices, desc)
    pending = None  # The last step: its metrics, not read yet, its host batch and its size.

    def settle():
        """Checks and logs the pending step."""
        metrics, host_batch, batch_size = pending
        metrics = jax.device_get(metrics)
        if bad := nonfinite.nonfinite_metrics(metrics):
            with jax.transfer_guard('allow'):
                # The state is the one before that step; see `step.make_train_step`.
                done = log.step / total_steps
                rows = nonfinite.find_lists(trainer, state.params, host_batch, done, bad)
            kept = checkpoints.latest_step()
            left = 'No checkpoint was made yet.'
            if kept is not None:
                left = f'The checkpoint of step {kept} is kept.'
            ids = [query_ids[i] for i in host_batch['query_row']]
            failed = f'step {log.step + 1} ({desc})'
            raise FloatingPointError(nonfinite.message(failed, bad, rows, ids, left))
        log.finish_step(metrics, batch_size)

    watchdog, guard = distributed.hang_watchdog(desc), jax.transfer_guard('disallow')
    with log.bar, interrupts.defer_exit() as stop, watchdog as alive, guard:
        while step < last_step:
            alive()
            before = time.monotonic()
            host_batch = next(batches)
            log.waited += time.monotonic() - before
            batch = meshes.to_device(host_batch, sharding)
            state, metrics = trainer.step(state, batch)
            step += 1
            if pending:
                settle()
            pending = (metrics, host_batch, batch['group'].shape[0])
            stopping = distributed.stop_requested(stop.is_set())
            if step == last_step or step % checkpoint_every == 0 or stopping:
                settle()  # A non-finite state is never saved.
                pending = None
                with jax.transfer_guard('allow'):  # Orbax fetches the state as it likes.
                    checkpoints.save(step, state, batches)
            if stopping:
                checkpoints.wait()
                writer.close()
                distributed.barrier('all is saved')
                interrupts.exit_after_saving()
    return state


class _StepLog:
    """Progress bar and metrics of finished steps.

    Attributes:
        step: The last finished step.
        waited: Seconds that the loop waited for batches since the last line of metrics.
        bar: The progress bar, on process 0.
    """

    def __init__(self, writer, step: int, last_step: int, every: int, choices, desc: str):
        self._writer, self._choices = writer, choices
        self._every, self._last_step = every, last_step
        self.step, self.waited = step, 0.0
        self._line_step, self._line_time = step, time.monotonic()
        quiet = not distributed.is_primary()
        self.bar = tqdm.tqdm(total=last_step, initial=step, desc=desc, unit='step', disable=quiet)

    def finish_step(self, metrics: Mapping[str, Any], batch_size: int) -> None:
        """Shows the loss, and writes the metrics where it is their turn."""
        self.step += 1
        self.bar.set_postfix(loss=f'{metrics["loss"]:.3f}', refresh=False)
        self.bar.update(self.step - self.bar.n)
        if self.step % self._every and self.step != self._last_step:
            return
        now, num_steps = time.monotonic(), self.step - self._line_step
        scalars = {k: v for k, v in metrics.items() if np.ndim(v) == 0}
        if 'selected' in metrics:
            # Over all queries of the round so far: the share in one batch is noise, and a kill
            # would lose a count since the last line.
            shares = metrics['selected_so_far'] / metrics['selected_so_far'].sum()
            scalars |= {f'selected/{n}': s for n, s in zip(self._choices, shares, strict=True)}
        scalars['lists_per_second'] = batch_size * num_steps / (now - self._line_time)
        # What the host's data cost, beyond the steps that ran meanwhile.
        scalars['wait_seconds'] = self.waited / num_steps
        self._writer.write(self.step, scalars)
        self._line_step, self._line_time, self.waited = self.step, now, 0.0


def evaluate(
    trainer: Trainer, params: Any, host_batch: dict[str, np.ndarray], query_ids: Sequence[str]
) -> dict[str, Any]:
    """Metrics of one batch without an update, on the host.

    Args:
        trainer: The compiled training.
        params: Parameters to evaluate.
        host_batch: The batch.
        query_ids: Ids of the split's queries.

    Raises:
        FloatingPointError: if a metric is not finite, naming it and the queries.
    """
    batch = meshes.to_device(host_batch, meshes.batch_sharding(trainer.mesh))
    metrics = jax.device_get(trainer.loss(params, batch))
    if bad := nonfinite.nonfinite_metrics(metrics):
        rows = nonfinite.find_lists(trainer, params, host_batch, 1.0, bad)
        ids = [query_ids[i] for i in host_batch['query_row']]
        raise FloatingPointError(
            nonfinite.message('the loss on D_eval', bad, rows, ids, 'The trained state is kept.')
        )
    return metrics
