"""One process at a time writes into a workdir; what it replaces there, it keeps."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Iterator

from absl import logging

FILE = 'lock'
REPLACED = 'replaced'  # What was damaged or made from another config, by number.


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A workdir that this process holds.

    Attributes:
        workdir: Absolute path.
        update: Whether what was made from another config may be replaced.
        number: Of the directory in `replaced/` for what this process replaces.
    """

    workdir: pathlib.Path
    update: bool
    number: int


_held: list[Held] = []


def current() -> Held | None:
    """The workdir that this process holds."""
    return _held[-1] if _held else None


@contextlib.contextmanager
def hold(workdir: pathlib.Path, *, update: bool = False) -> Iterator[None]:
    """Holds a workdir, made if need be, for as long as the context lasts.

    The operating system frees it when the process ends, however it ends.

    Args:
        workdir: Which.
        update: Whether what was made from another config may be replaced.

    Raises:
        RuntimeError: if another process holds it, naming its number.
        ValueError: if a symbolic link leads out of it.
        OSError: if it cannot be made or written.
    """
    workdir = pathlib.Path(workdir).absolute()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / FILE).open('a+', encoding='ascii')
    except OSError as e:
        raise OSError(
            f'{workdir} cannot be made or written ({e.strerror}: {e.filename}); choose another '
            '--workdir, or mend that.'
        ) from e
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RuntimeError(
                f'{workdir} is in use by process {file.read() or "of unknown number"}; wait until '
                'that has ended, or choose another --workdir.'
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        check(workdir)
        numbers = [int(p.name) for p in workdir.glob(f'{REPLACED}/*') if p.name.isdigit()]
        _held.append(Held(workdir, update, 1 + max(numbers, default=0)))
        try:
            yield
        finally:
            _held.pop()


def check(workdir: pathlib.Path) -> None:
    """Before work begins: all of a workdir can be written, and nothing leads out of it.

    Raises:
        ValueError: naming the symbolic link that leads elsewhere.
        PermissionError: naming the directory that is not writable.
    """
    root = workdir.resolve()
    for directory, names, files in os.walk(workdir):
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f'{directory} is not writable; change its permissions.')
        for path in (pathlib.Path(directory, name) for name in (*names, *files)):
            if path.is_symlink() and root not in path.resolve().parents:
                raise ValueError(
                    f'{path} is a symbolic link that leads out of the workdir, to '
                    f'{path.resolve()}, where nothing is to be written; put what it leads to in '
                    'its place, or make the whole workdir a link.'
                )


def set_aside(path: pathlib.Path, why: str) -> None:
    """Moves a file or directory of the workdir that this process holds to `replaced/<number>/`.

    Args:
        path: What.
        why: For the log.
    """
    workdir, number = current().workdir, current().number
    relative = path.absolute().relative_to(workdir)
    while (target := workdir / REPLACED / f'{number:04d}' / relative).exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    logging.warning('%s; moved to %s.', why, target)
