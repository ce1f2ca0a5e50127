"""Orbax checkpoints of a training: train state and data iterator, together."""

import pathlib
from typing import Any

import grain
import orbax.checkpoint as ocp
from absl import logging


class Checkpoints:
    """The checkpoints of one training, numbered by its step.

    The newest one is kept for resuming and those at the ends of rounds for good: evaluation and
    the pool restore from them.
    """

    def __init__(self, directory: pathlib.Path, *, keep_period: int):
        self._manager = ocp.CheckpointManager(
            pathlib.Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, keep_period=keep_period, enable_async_checkpointing=True
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: Any) -> None:
        """Saves in the background; the next save or `close` waits for it.

        Args:
            step: Updates done.
            state: Tree of arrays.
            iterator: Grain iterator that gives the batch after this step.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                iterator=grain.checkpoint.CheckpointSave(iterator),
            ),
            force=True,
        )

    def restore(self, step: int, abstract_state: Any, iterator: Any) -> Any:
        """The state on the shardings of `abstract_state`; the iterator is set in place."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract_state),
                iterator=grain.checkpoint.CheckpointRestore(iterator),
            ),
        )
        logging.info('restored step %d of %s', step, self._manager.directory)
        return restored.state

    def restore_state(self, step: int, abstract_state: Any) -> Any:
        """The state alone, for evaluation."""
        if step not in self._manager.all_steps():
            raise FileNotFoundError(
                f'{self._manager.directory} has no checkpoint of step {step}; '
                'finish training first, or point --workdir at a finished run.'
            )
        return self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        ).state

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
