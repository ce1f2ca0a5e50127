"""Runs the command line once for all test processes."""

import fcntl
import os
import pathlib
from collections.abc import Callable

import pytest


def build_once(
    factory: pytest.TempPathFactory, name: str, build: Callable[[pathlib.Path], object]
) -> pathlib.Path:
    """A directory that `build(directory)` has filled, in whichever test process came first.

    Others wait for it. Tests only read it: those that write need a copy of their own.
    """
    root = factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        root = root.parent  # Each worker has a directory in the one of the session.
    directory, done = root / name, root / f'{name}.done'
    with (root / f'{name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            directory.mkdir()  # Fails in those that come after a failed build.
            build(directory)
            done.touch()
    return directory
