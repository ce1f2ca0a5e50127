"""One process at a time writes into a workdir."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

FILE = 'lock'


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir, made if need be, for as long as the context lasts.

    The operating system frees it when the process ends, however it ends.

    Raises:
        RuntimeError: if another process holds it, naming its number.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / FILE).open('a+', encoding='ascii') as file:
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
        yield
