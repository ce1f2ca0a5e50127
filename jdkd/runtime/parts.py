"""Parts of resumable stages: files that a later call of the same build need not write again."""

import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO

import numpy as np
from absl import logging

from jdkd.runtime import distributed, files, progress


def write_part(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Writes a file or directory of a resumable stage with `write`, unless it exists undamaged."""
    if path.exists():
        if not (problem := files.check_seal(path)):
            return
        logging.warning('%s; rebuilding it.', problem)
    temporary = path.with_name(path.name + '.tmp')
    files.remove(temporary)
    write(temporary)
    files.remove(path)
    files.seal(temporary, path)
    temporary.replace(path)


def write_parts(
    directory: pathlib.Path,
    name: str,
    count: int,
    write: Callable[[int, BinaryIO], None],
    *,
    desc: str | None = None,
) -> list[pathlib.Path]:
    """Writes the numbered files of a resumable stage, except those that exist undamaged.

    Process p writes the files whose number is p modulo the number of processes, then waits for the
    others.

    Args:
        directory: The directory that `build` is given.
        name: Name of the files, with `{}` for their number.
        count: Number of files of all processes; their paths are returned in order.
        write: Called with a number and the open file; its output depends on the number alone.
        desc: Of a progress bar, which several files get; None for none.
    """
    paths = [directory / name.format(f'{i:05d}') for i in range(count)]

    def write_file(i, path):
        with path.open('wb') as f:
            write(i, f)

    processes = distributed.process_count()
    own = range(distributed.process_index(), count, processes)
    done = {i for i in own if paths[i].exists()}
    quiet = desc is None or count < 2
    with progress.bar(count, desc, 'parts', done=len(done) * processes, quiet=quiet) as bar:
        for i in own:
            write_part(paths[i], functools.partial(write_file, i))
            bar.update(processes * (i not in done))
    await_parts(paths, str(directory / name))
    return paths


def await_parts(paths: Sequence[pathlib.Path], what: str) -> None:
    """Waits until all processes see the parts of all; `what` names them in messages.

    After that a process may remove parts.
    """
    distributed.barrier(f'{what}: written')
    distributed.await_files(paths)
    distributed.barrier(f'{what}: visible to all')


def join_rows(path: pathlib.Path, parts: Iterable[np.ndarray], count: int) -> None:
    """Writes `[count, ...]` as npy, of arrays that hold its rows one after another.

    Holds one of them at a time; all have one type and one width.
    """
    with path.open('wb') as f:
        for i, part in enumerate(parts):
            if not i:
                header = np.lib.format.header_data_from_array_1_0(part)
                header |= {'shape': (count, *part.shape[1:]), 'fortran_order': False}
                np.lib.format.write_array_header_1_0(f, header)
            np.ascontiguousarray(part).tofile(f)
