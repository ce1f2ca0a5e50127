"""Atomic writes, and checksums that detect damaged files.

A file that is written at once is renamed into place. Intermediate results of long computations
(parts of a token store, shards of an index, checkpoints) are sealed: their checksums are written
beside a file, or inside a directory.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Literal

import numpy as np
from absl import logging

GIT_LFS = b'version https://git-lfs'  # Head of what Git has in place of a large file.
CACHE = 'JDKD_CACHE'  # Environment variable: the directory of all caches.
SEAL = '.checksums'  # Suffix of the files that hold checksums.
MANIFEST = 'manifest.json'  # Of a finished stage.
STARTED = 'started.json'  # The inputs of a stage that is being built.
_THREADS = min(os.cpu_count() or 1, 8)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The last two are messages of TFDS and numpy.
_FULL_TEXT = re.compile(
    '|'.join(map(os.strerror, _FULL)) + r'|Not enough disk space|\d+ requested and \d+ written'
)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, mode: str = 'w') -> Iterator[IO[Any]]:
    """Opens a file, with mode 'w' (UTF-8) or 'wb', that replaces `path` unless an error occurs."""
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


def map_array(path: pathlib.Path, mode: Literal['r', 'c'] = 'r') -> np.ndarray:
    """Memory-maps an npy file; with mode 'c' it can be written to, in memory alone.

    A plain view: indexing np.memmap is slow, and its type spreads to what is computed from it.
    """
    return np.asarray(np.load(path, mmap_mode=mode))


def cache_home() -> pathlib.Path:
    """The directory of all caches: that of the environment variable, or ~/.cache/jdkd."""
    return pathlib.Path(os.environ.get(CACHE) or '~/.cache/jdkd').expanduser().absolute()


def check_output(
    path: pathlib.Path, is_replaceable: Callable[[pathlib.Path], bool], problem: str
) -> None:
    """Checks that what a command is to write loses nothing.

    Args:
        path: The file or directory to write.
        is_replaceable: Whether what is there may be replaced; asked if there is something.
        problem: What it is otherwise, such as 'is no file of pairs'.

    Raises:
        FileExistsError: if something else is there.
    """
    if os.path.lexists(path) and not is_replaceable(path):
        raise FileExistsError(f'{path} {problem}; give another --output, or move it away.')


def require_local(path: str | os.PathLike[str], name: str) -> None:
    """Raises a ValueError if a path is the address of a bucket or another URL.

    As a path it would name a directory such as `gs:` here. pathlib makes `gs:/` of `gs://`.
    """
    if re.match(r'[a-z][a-z0-9+.-]+:/', os.fspath(path), re.IGNORECASE):
        raise ValueError(
            f'{name}={str(path)!r} is no local directory; of a bucket only the --workdir of a run '
            'can be, as gs://BUCKET/PATH. Give a disk here.'
        )


def sha256(path: pathlib.Path) -> str:
    """sha256 of the bytes of a file."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def fingerprint(
    paths: Iterable[pathlib.Path], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Returns `size`, `mtime_ns` and `sha256` of files by path.

    `known` is an earlier result: files of the same size and time are not read again, and missing
    files count as unchanged. Raises a FileNotFoundError if a file is missing and not known.
    """
    prints = {}
    for file in paths:
        before = known.get(str(file), {})
        if before and not file.exists():
            logging.warning('%s is gone; its imported contents are kept.', file)
            prints[str(file)] = before
            continue
        stat = file.stat()
        entry: dict[str, Any] = {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns}
        unchanged = entry.items() <= before.items()
        prints[str(file)] = entry | {'sha256': before['sha256'] if unchanged else sha256(file)}
    return prints


def checksums(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """`size` and `sha256` of every file of a directory by relative path, or of one file as ''.

    Seals are left out.
    """
    files = sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]
    files = [p for p in files if not p.name.endswith(SEAL)]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return {
            '' if p == path else str(p.relative_to(path)): {'size': p.stat().st_size, 'sha256': sha}
            for p, sha in zip(files, threads.map(sha256, files), strict=True)
        }


def find_damage(path: pathlib.Path, recorded: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Describes the first difference between `path` and its recorded checksums, None if intact.

    Compares sizes before it reads any file.
    """
    files = {name: path / name for name in recorded}
    for name, file in files.items():
        size = file.stat().st_size if file.is_file() else None
        if size != recorded[name]['size']:
            state = 'is missing' if size is None else f'has {size} bytes'
            return f'{file} {state} (it was written with {recorded[name]["size"]} bytes)'

    def compare_contents(name):
        try:
            current, written = sha256(files[name]), recorded[name]['sha256']
        except OSError as e:
            return f'{files[name]} cannot be read ({e.strerror})'
        if current == written:
            return None
        return f'{files[name]} has changed (sha256 {current[:12]}..., written {written[:12]}...)'

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        return next(filter(None, threads.map(compare_contents, files)), None)


def seal(path: pathlib.Path, name: pathlib.Path | None = None) -> None:
    """Writes the checksums of a finished file or directory, which will be renamed to `name`."""
    sums = checksums(path)
    with atomic_write(_seal(path, name or path)) as f:
        json.dump(sums, f)


def check_seal(path: pathlib.Path) -> str | None:
    """Says why a file or directory is not what `seal` saw; None if it is."""
    try:
        recorded = json.loads(_seal(path, path).read_text(encoding='utf-8'))
        return find_damage(path, recorded)
    except FileNotFoundError:
        return f'{path} has no checksums: its writing was interrupted'
    except (ValueError, KeyError, TypeError, AttributeError):
        return f'the checksums of {path} are damaged'


def remove(path: pathlib.Path) -> None:
    """Removes a file, a link or a directory tree, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def detach(path: pathlib.Path) -> None:
    """Makes a file that has other names, as hard links have, a copy of its own to write into."""
    if path.exists() and path.stat().st_nlink > 1:
        content = path.read_bytes()
        with atomic_write(path, 'wb') as f:
            f.write(content)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the disk is full.

    Libraries wrap the error in their own, which keep only its text.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or _FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _seal(path: pathlib.Path, name: pathlib.Path) -> pathlib.Path:
    return path / SEAL if path.is_dir() else name.with_name(name.name + SEAL)
