"""Files that are whole or absent, and checksums that tell whether they still are what was written.

What is written in one go takes its place by a rename. What a long computation leaves on its way (a
part of a token store, a shard of an index, a checkpoint) is sealed: its checksums stand beside a
file, or inside a directory.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from absl import logging

SEAL = '.checksums'  # How the names of files of checksums end.
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The last two are those of TFDS and numpy.
_FULL_TEXT = re.compile(
    '|'.join(map(os.strerror, _FULL)) + r'|Not enough disk space|\d+ requested and \d+ written'
)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, mode: str = 'w') -> Iterator[IO]:
    """Opens a file that takes the place of `path` when all is written: never half of it is there.

    Args:
        path: The file, which may exist.
        mode: 'w' (UTF-8) or 'wb'.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open(mode, encoding=None if 'b' in mode else 'utf-8') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: pathlib.Path) -> str:
    """Of a file's bytes."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def fingerprint(
    paths: Iterable[pathlib.Path], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What files hold, by path: `size`, `mtime_ns` and `sha256`.

    Args:
        paths: Which.
        known: What this function returned before: a file of the same size and time is not read,
            and one that is gone counts as unchanged.

    Raises:
        FileNotFoundError: if a file is missing that is not known.
    """
    found = {}
    for file in paths:
        if str(file) in known and not file.exists():
            logging.warning('%s is gone; going on with what was made of it.', file)
            found[str(file)] = known[str(file)]
            continue
        stat = file.stat()
        entry = {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns}
        before = known.get(str(file), {})
        same = entry.items() <= before.items()
        entry['sha256'] = before['sha256'] if same else sha256(file)
        found[str(file)] = entry
    return found


def checksums(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """`size` and `sha256` of every file of a directory, by relative path; of a file alone as ''.

    Files of checksums do not count.
    """
    found = sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]
    kept = [p for p in found if not p.name.endswith(SEAL)]
    names = ['' if p == path else str(p.relative_to(path)) for p in kept]
    sizes = [p.stat().st_size for p in kept]
    with concurrent.futures.ThreadPoolExecutor(_threads()) as threads:
        sums = threads.map(sha256, kept)
        return {
            name: {'size': size, 'sha256': digest}
            for name, size, digest in zip(names, sizes, sums, strict=True)
        }


def find_damage(path: pathlib.Path, recorded: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What differs from the checksums of `path` that were recorded, None if nothing does.

    Sizes are compared before anything is read.
    """
    files = {name: path / name if name else path for name in recorded}
    for name, file in files.items():
        size = file.stat().st_size if file.is_file() else None
        if size != recorded[name]['size']:
            found = 'is missing' if size is None else f'has {size} bytes'
            return f'{file} {found} (it was written with {recorded[name]["size"]} bytes)'

    def differs(name):
        try:
            found = sha256(files[name])
        except OSError as e:
            return f'{files[name]} cannot be read ({e.strerror})'
        if found == recorded[name]['sha256']:
            return None
        written = recorded[name]['sha256']
        return f'{files[name]} has changed (sha256 {found[:12]}..., written {written[:12]}...)'

    with concurrent.futures.ThreadPoolExecutor(_threads()) as threads:
        return next(filter(None, threads.map(differs, files)), None)


def seal(path: pathlib.Path, name: pathlib.Path | None = None) -> None:
    """Writes the checksums of a finished file or directory, for `sealed`.

    Args:
        path: Which.
        name: What a file is going to be called; None if that is its name.
    """
    found = checksums(path)
    with atomic_write(_seal(path, name or path)) as f:
        json.dump(found, f)


def check_seal(path: pathlib.Path) -> str | None:
    """Why something cannot be relied on: it has changed since `seal`, or was not sealed."""
    try:
        recorded = json.loads(_seal(path, path).read_text(encoding='utf-8'))
        return find_damage(path, recorded)
    except FileNotFoundError:
        return f'{path} has no checksums: its writing was interrupted'
    except (ValueError, KeyError, TypeError, AttributeError):
        return f'the checksums of {path} are damaged'


def remove(path: pathlib.Path) -> None:
    """Removes a file, a directory with all in it, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that of a full disk.

    Libraries wrap it in errors of their own, which keep but the text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _seal(path: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
    return path / SEAL if path.is_dir() else name.with_name(name.name + SEAL)


def _threads() -> int:
    return min(os.cpu_count() or 1, 8)
