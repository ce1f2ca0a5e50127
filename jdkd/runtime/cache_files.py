"""Files in the cache of a run in a bucket: those outside stages, and sealed parts of stages."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from jdkd.runtime import files, lock
from jdkd.runtime.files import MANIFEST

STATE = '.bucket.json'  # The cache's id, and which loose files are in the bucket.
OWN = (lock.FILE, lock.HOLDER, STATE)  # What the bucket does not have.
UNFINISHED = re.compile(r'\.tmp(-\w+)?$')


def is_replaced(name: str) -> bool:
    """Whether it is what was set aside."""
    return name.startswith(f'{lock.REPLACED}/')


Sealed = tuple[str, bytes]  # A seal by its relative path, and its content.


def find_sealed(directory: pathlib.Path) -> list[Sealed] | None:
    """Seals in the directory of an unfinished stage whose files are in place.

    None if the directory was moved meanwhile, so that not all were seen.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for seal in sorted(directory.rglob(f'*{files.SEAL}')):
            with contextlib.suppress(FileNotFoundError, ValueError):
                name, content = seal.relative_to(directory).as_posix(), seal.read_bytes()
                sealed = sealed_files(name, content)
                if all((directory / p).stat().st_size == e['size'] for p, e in sealed.items()):
                    found.append((name, content))
    return found if directory.exists() else None


def sealed_files(seal: str, content: bytes) -> dict[str, dict[str, Any]]:
    """Checksums by relative path of the files that a seal stands for."""
    item = seal.removesuffix(files.SEAL)
    return {f'{item}{path}': entry for path, entry in json.loads(content).items()}


def loose_files(cache: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of a workdir that are in no stage."""
    for directory, names, own in os.walk(cache):
        path = pathlib.Path(directory)
        in_replaced = is_replaced(f'{path.relative_to(cache).as_posix()}/')
        if MANIFEST in own and not in_replaced:
            names.clear()
            continue
        names[:] = [n for n in names if in_replaced or not UNFINISHED.search(n)]
        for name in own:
            is_own = path == cache and name in OWN
            is_link = (path / name).is_symlink()  # Such as a tracker's, to logs elsewhere.
            if not (is_own or is_link or UNFINISHED.search(name)):
                yield path / name
