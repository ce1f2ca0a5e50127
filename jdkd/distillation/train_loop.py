"""The training of every encoder: of the student in each round, and of systems from labels."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jdkd.distillation import nonfinite
from jdkd.distillation.step import TrainState
from jdkd.distillation.trainer import Trainer
from jdkd.run import Run
from jdkd.runtime import bucket, distributed, interrupts, progress
from jdkd.runtime import mesh as meshes
from jdkd.runtime.checkpoint import Checkpoints
from jdkd.runtime.metrics import MetricsWriter

CHECKPOINTS = 'checkpoints'  # Directory in a stage that trains.
_LAST_SECONDS = 1.0  # Process 0 ends last: it tells the others that they have all met.


def train_loop(
    run: Run,
    name: str,
    directory: pathlib.Path,
    trainer: Trainer,
    start: Callable[[], TrainState],
    batches: grain.DatasetIterator,
    *,
    steps: range,
    planned_steps: int,
    total_steps: int,
    choices: Sequence[str] = (),
    desc: str,
    eval_every: int = 0,
    eval_metrics: Callable[[Any], Mapping[str, float]] = lambda params: {},
) -> TrainState:
    """Trains an encoder in the directory of a resumable stage, and leaves its last checkpoint.

    A step's metrics are read while the next step runs, so the device never waits for the host.

    Args:
        name: The encoder's, for its metrics.
        directory: A restart goes on from the checkpoints there.
        start: Makes the state before the first of `steps`.
        batches: Host batches from there on; a restart sets the iterator forward.
        steps: Steps to take, counted over all rounds.
        planned_steps: All steps that the run takes, for the metrics.
        total_steps: Length of the schedules.
        choices: Names of the (fused) assistants, for the metrics.
        eval_every: Steps from one evaluation to the next, before the last step; 0 for none.
        eval_metrics: Parameters -> metrics of an evaluation, those of the series `<name>_eval`.

    Raises:
        FloatingPointError: at the first step whose loss, gradient or parameters are not finite,
            naming the term and the queries. No such state is saved.
    """
    sharding, every = meshes.batch_sharding(trainer.mesh), run.config.checkpoint_every
    with Checkpoints(directory / CHECKPOINTS) as checkpoints, contextlib.ExitStack() as writers:
        step = checkpoints.latest_step() or steps.start
        spans = {'last_step': steps.stop, 'total_steps': planned_steps}

        def open_writer(series):
            writer = MetricsWriter(run.workdir, series, resume_step=step, **spans)
            return writers.enter_context(writer)

        writer = open_writer(name)
        eval_writer = open_writer(f'{name}_eval') if eval_every else None
        resumes = step != steps.start
        state = checkpoints.restore(step, trainer.abstract, batches) if resumes else start()
        log = _StepLog(writer, step, steps.stop, run.config.log_every, choices, desc)
        checked = _CheckedSteps(run, trainer, checkpoints, log, total_steps, desc)
        watchdog, guard = distributed.hang_watchdog(desc), jax.transfer_guard('disallow')
        with log.bar, interrupts.defer_exit() as stop, watchdog as alive, guard:
            while step < steps.stop:
                alive()
                host_batch = log.wait_for(batches)
                batch = meshes.to_device(host_batch, sharding)
                state, metrics = trainer.step(state, batch)
                step += 1
                checked.settle(state)  # The step before, while this one runs.
                checked.put(metrics, host_batch, batch['group'].shape[0])
                stopping = distributed.stop_requested(stop.is_set())
                evaluates = eval_every and step % eval_every == 0 and step != steps.stop
                saves = step == steps.stop or step % every == 0 or stopping
                if evaluates or saves:
                    checked.settle(state)  # A non-finite state is never saved.
                if evaluates and eval_writer:
                    with jax.transfer_guard('allow'), log.paused():
                        eval_writer.write(step, eval_metrics(state.params))
                if saves:
                    bucket.check()
                    with jax.transfer_guard('allow'):  # Orbax fetches the state as it likes.
                        checkpoints.save(step, state, batches)
                if stopping:
                    checkpoints.wait()
                    writers.close()
                    bucket.flush()
                    distributed.barrier('all is saved')
                    if distributed.is_primary() and distributed.process_count() > 1:
                        time.sleep(_LAST_SECONDS)
                    interrupts.exit_after_saving()
        checkpoints.keep_only(steps.stop)
    return state


class _CheckedSteps:
    """The last step: its metrics are read, checked and logged when it settles."""

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        checkpoints: Checkpoints,
        log: '_StepLog',
        total_steps: int,
        desc: str,
    ):
        self._run, self._trainer, self._checkpoints = run, trainer, checkpoints
        self._log, self._total_steps, self._desc = log, total_steps, desc
        self._last: tuple[Any, dict[str, np.ndarray], int] | None = None

    def put(self, metrics: Any, host_batch: dict[str, np.ndarray], batch_size: int) -> None:
        """Takes a step that has begun: its metrics on the device, its batch and that one's size."""
        self._last = metrics, host_batch, batch_size

    def settle(self, state: TrainState) -> None:
        """Waits for the last step, if there is one, and checks it; `state` is the latest one.

        Raises:
            FloatingPointError: as `train_loop`.
        """
        if self._last is None:
            return
        (metrics, host_batch, batch_size), self._last = self._last, None
        metrics = jax.device_get(metrics)
        if bad := nonfinite.nonfinite_metrics(metrics):
            # The state is the one before that step; see `step.make_train_step`.
            raise FloatingPointError(self._explain(state.params, host_batch, bad))
        self._log.finish_step(metrics, batch_size)

    def _explain(self, params: Any, host_batch: dict[str, np.ndarray], bad: Sequence[str]) -> str:
        with jax.transfer_guard('allow'):
            done = self._log.step / self._total_steps
            rows = nonfinite.find_lists(self._trainer, params, host_batch, done, bad)
        kept = self._checkpoints.latest_step()
        left = 'No checkpoint was made yet.'
        if kept is not None:
            left = f'The checkpoint of step {kept} is kept.'
        ids = [self._run.train.ids[int(i)] for i in host_batch['query_row']]
        return nonfinite.message(f'step {self._log.step + 1} ({self._desc})', bad, rows, ids, left)


class _StepLog:
    """Progress bar and metrics of finished steps, the last of which is `step`."""

    def __init__(self, writer, step: int, last_step: int, every: int, choices, desc: str):
        self._writer, self._choices = writer, choices
        self._every, self._last_step = every, last_step
        self.step = step
        self.waited = 0.0  # Seconds without a batch since the last line of metrics.
        self._line_step, self._line_time = step, time.monotonic()
        self.bar = progress.bar(last_step, desc, 'steps', done=step)

    def wait_for(self, batches: grain.DatasetIterator) -> dict[str, np.ndarray]:
        """The next batch."""
        begun = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - begun
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done meanwhile out of the speed of training."""
        begun = time.monotonic()
        yield
        self._line_time += time.monotonic() - begun

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

    Raises:
        FloatingPointError: if a metric is not finite, naming it and the queries.
    """
    batch = meshes.to_device(host_batch, meshes.batch_sharding(trainer.mesh))
    metrics = jax.device_get(trainer.loss(params, batch))
    if bad := nonfinite.nonfinite_metrics(metrics):
        rows = nonfinite.find_lists(trainer, params, host_batch, 1.0, bad)
        ids = [query_ids[int(i)] for i in host_batch['query_row']]
        raise FloatingPointError(
            nonfinite.message('the loss on D_eval', bad, rows, ids, 'The trained state is kept.')
        )
    return metrics
