"""Locks a workdir for one writer, and keeps the files that it replaces."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import filelock
from absl import logging

FILE = 'lock'
HOLDER = 'lock.pid'  # The id of the process that holds it.
REPLACED = 'replaced'  # Numbered directories of damaged and outdated files.
FOREIGN = ('wandb',)  # Directories in the workdir that other programs keep.


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A workdir that this process holds."""

    workdir: pathlib.Path  # Absolute.
    update: bool  # Whether files of another config may be replaced.
    number: int  # Of the directory in `replaced/` for the files that this process replaces.


_held: list[Held] = []


def current() -> Held | None:
    """The workdir that this process holds, if any."""
    return _held[-1] if _held else None


@contextlib.contextmanager
def hold(workdir: pathlib.Path, *, update: bool = False) -> Iterator[None]:
    """Holds a workdir while the context lasts; creates it if necessary.

    The operating system releases it when the process ends, even by a kill. With `update`, files of
    another config may be replaced.

    Raises:
        RuntimeError: if another process holds it, with its process id.
        ValueError: if a symbolic link leads out of it.
        OSError: if it cannot be created or written.
    """
    workdir = pathlib.Path(workdir).absolute()
    held_by = workdir / HOLDER
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(workdir / FILE).acquire(blocking=False)
    except filelock.Timeout:
        holder = held_by.read_text('ascii') if held_by.is_file() else ''
        raise RuntimeError(
            f'{workdir} is in use by process {holder or "of unknown id"}; wait until it ends, or '
            'choose another directory.'
        ) from None
    except OSError as e:
        raise OSError(
            f'{workdir} cannot be created or written ({e.strerror}: {e.filename}); choose another '
            'directory, or fix that.'
        ) from e
    with held:
        held_by.write_text(str(os.getpid()), 'ascii')
        _check_workdir(workdir)
        numbers = [int(p.name) for p in workdir.glob(f'{REPLACED}/*') if p.name.isdigit()]
        _held.append(Held(workdir, update, 1 + max(numbers, default=0)))
        try:
            yield
        finally:
            _held.pop()


def _check_workdir(workdir: pathlib.Path) -> None:
    """Raises an error that names an unwritable directory, or a link that leads out of a workdir."""
    root = workdir.resolve()
    for directory, names, files in os.walk(workdir):
        if directory == str(workdir):  # Trackers link to their logs elsewhere.
            names[:] = [name for name in names if name not in FOREIGN]
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f'{directory} is not writable; change its permissions.')
        for path in (pathlib.Path(directory, name) for name in (*names, *files)):
            if path.is_symlink() and root not in path.resolve().parents:
                raise ValueError(
                    f'{path} is a symbolic link that leads out of the workdir, to '
                    f'{path.resolve()}; a run writes only inside its workdir. Replace the link by '
                    'its target, or make the whole workdir a link.'
                )


def replaced_path(path: pathlib.Path) -> pathlib.Path:
    """Where in `replaced/<number>/` a file or directory of the held workdir goes."""
    held = _held[-1]
    relative, number = path.absolute().relative_to(held.workdir), held.number
    while (target := held.workdir / REPLACED / f'{number:04d}' / relative).exists():
        number += 1
    return target


def set_aside(path: pathlib.Path, reason: str) -> pathlib.Path:
    """Moves what exists of the held workdir to its `replaced_path`, which is returned."""
    target = replaced_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(target)
    logging.warning('%s; moved to %s.', reason, target)
    return target
