"""Saves and restores train state and data iterator together, with Orbax."""

import concurrent.futures
import contextlib
import pathlib
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from jdkd.runtime import distributed, files


class Checkpoints(contextlib.AbstractContextManager['Checkpoints']):
    """The checkpoints of one training, in a directory of its stage.

    The newest two are kept until training ends. A checkpoint that is damaged, or that a kill left
    incomplete, is removed, and training resumes from the one before it.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory.absolute()
        distributed.from_primary(lambda: _remove_damaged(self._directory), 'intact checkpoints')
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True),
        )
        self._sealer = concurrent.futures.ThreadPoolExecutor(1)
        self._sealing: concurrent.futures.Future[None] | None = None

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, None if there is none."""
        return distributed.from_primary(self._manager.latest_step, 'the latest checkpoint')

    def save(self, step: int, state: Any, iterator: Any) -> None:
        """Saves in the background after `step` updates; the next `save` or `wait` waits for it.

        The next batch of the Grain iterator is that of the next step; its state is the same on any
        number of processes.
        """
        self.wait()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), iterator=ocp.args.JsonSave(iterator.get_state())
            ),
            force=True,
        )

        def seal():
            self._manager.wait_until_finished()
            if distributed.is_primary():
                files.seal(self._directory / str(step))

        self._sealing = self._sealer.submit(seal)

    def wait(self) -> None:
        """Waits until the current save is on disk; raises its errors."""
        sealing, self._sealing = self._sealing, None
        if sealing:
            sealing.result()

    def restore(self, step: int, abstract_state: Any, iterator: Any) -> Any:
        """Restores the state to the shardings of `abstract_state`; sets the iterator in place."""
        state, position = ocp.args.StandardRestore(abstract_state), ocp.args.JsonRestore()
        items = ocp.args.Composite(state=state, iterator=position)
        restored = self._manager.restore(step, args=items)
        iterator.set_state(restored['iterator'])
        logging.info('restored step %d of %s', step, self._directory)
        return restored['state']

    def keep_only(self, step: int) -> None:
        """Removes all other checkpoints, at the end of a training."""
        self.wait()
        for other in self._manager.all_steps():
            if other != step:
                self._manager.delete(other)

    def __exit__(self, *_) -> None:
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._manager.close()


def restore_state(directory: pathlib.Path, step: int, abstract_state: Any) -> Any:
    """Restores the state of a finished training, or a part of it, and reads nothing else.

    The stage of the training has verified the files. `abstract_state` is a tree of shapes and
    shardings, with the names that the state has.
    """
    args = ocp.args.PyTreeRestore(
        abstract_state,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(directory.absolute() / str(step) / 'state', args)


def _remove_damaged(directory: pathlib.Path) -> None:
    """Removes incomplete and damaged checkpoints."""
    for path in directory.glob('*'):
        problem = files.check_seal(path) if path.name.isdigit() else f'{path} is incomplete'
        if problem:
            logging.warning('%s; resuming without that checkpoint.', problem)
            files.remove(path)
