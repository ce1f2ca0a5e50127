"""The objects under a URL, through fsspec; waits while the network is gone."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import fsspec
from absl import logging

from jdkd.runtime import files
from jdkd.runtime.messages import brief

RETRY_SECONDS = 600  # That a network may be gone, or a server busy, during a run.
START_SECONDS = 30  # And before it.
_THREADS = 8
_SMALL = 2**24  # Bytes of a file that is read at once.
_EXTRAS = {'gs': 'gcs', 'gcs': 'gcs', 's3': 's3', 's3a': 's3'}
_FULL = re.compile(r'quota|storage.?full|insufficient.?storage|\b507\b', re.IGNORECASE)
_BUSY = re.compile(r'rate.?limit|slow.?down|per minute|\b429\b', re.IGNORECASE)  # Of quotas, too.
# gcsfs and botocore have errors of their own for these.
_DENIED = re.compile('forbidden|accessdenied|unauthorized|credential', re.IGNORECASE)
_REFUSED = ('EntityTooLarge', 'NotImplemented', 'InvalidBucketName', 'MethodNotAllowed')


class BucketError(OSError):
    """A bucket that cannot be used; the message names its URL and the remedy."""


def is_url(path: str | os.PathLike[str]) -> bool:
    return bool(re.match(r'[a-z][a-z0-9+.-]+://', os.fspath(path), re.IGNORECASE))


class ObjectStore:
    """Objects by their names relative to a URL. Threads may share it.

    Raises:
        ImportError: if the package of the URL's protocol is not installed.
        ValueError: if fsspec does not know the protocol.
        BucketError: from all methods, if the store cannot be used.
    """

    def __init__(self, url: str):
        self.url = url.rstrip('/')
        protocol = url.partition('://')[0].lower()
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as e:
            package = f'"jdkd[{_EXTRAS[protocol]}]"' if protocol in _EXTRAS else f'{e.name}'
            raise ImportError(
                f'{url} needs a package that is not installed: pip install {package}.'
            ) from None
        except ValueError:
            raise ValueError(
                f'--workdir={url}: {protocol}:// is no protocol that fsspec knows; use gs://, '
                's3:// or a directory.'
            ) from None
        self._root = root.rstrip('/')
        self.patience = START_SECONDS
        self.sent = self.received = 0  # Bytes of files.

    def list(self, under: str = '') -> list[str]:
        """Names of all objects, or of those in the folder `under`."""
        folder = f'{self._root}/{under}'.rstrip('/')
        found = self._retry(lambda: self._fs.find(folder))
        return [
            path.removeprefix(f'{self._root}/')
            for path in found
            if not path.endswith('/')  # So that consoles mark folders.
        ]

    def read(self, names: Collection[str]) -> dict[str, bytes]:
        """Contents by name; raises FileNotFoundError if an object is missing."""

        def read(name: str) -> bytes:
            return self._retry(lambda: self._fs.cat_file(self._path(name)), reads=True)

        return {name: content for name, content in zip(names, _all(read, names), strict=True)}

    def write(self, name: str, content: bytes, *, new: bool = False) -> bool:
        """Writes an object; with `new`, only if there is none of that name, else returns False.

        That is atomic on S3 and Google Cloud Storage; other stores may overwrite.
        """
        create = {'mode': 'create'} if new else {}
        try:
            self._retry(lambda: self._fs.pipe_file(self._path(name), content, **create))
        except FileExistsError:
            return False
        self.sent += len(content)
        return True

    def upload(self, paths: Mapping[str, pathlib.Path]) -> None:
        """Uploads files by name of their object; FileNotFoundError if one of them is gone."""

        def upload(name: str, path: pathlib.Path) -> None:
            size = path.stat().st_size
            if size <= _SMALL:  # As it is now: it may grow meanwhile.
                content = path.read_bytes()
                self._retry(lambda: self._fs.pipe_file(self._path(name), content), path)
            else:
                self._retry(lambda: self._fs.put_file(str(path), self._path(name)), path)
            self.sent += size

        _all(upload, paths, paths.values())

    def download(self, paths: Mapping[str, pathlib.Path]) -> None:
        """Downloads objects to files; raises FileNotFoundError if an object is missing."""

        def download(name: str, path: pathlib.Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._retry(lambda: self._fs.get_file(self._path(name), str(path)), reads=True)
            self.received += path.stat().st_size

        _all(download, paths, paths.values())

    def copy(self, names: Mapping[str, str]) -> None:
        """Copies objects within the store."""

        def copy(old: str, new: str) -> None:
            self._retry(lambda: self._fs.cp_file(self._path(old), self._path(new)))

        _all(copy, names, names.values())

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects, as far as they exist."""
        paths = [self._path(name) for name in names]
        try:
            if paths:
                self._retry(lambda: self._fs.rm(paths), reads=True)
        except FileNotFoundError:  # Of one of them, perhaps the only one that was deleted.
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    self._retry(lambda path=path: self._fs.rm_file(path), reads=True)

    def _path(self, name: str) -> str:
        return f'{self._root}/{name}'

    def _retry(
        self, call: Callable[[], Any], file: pathlib.Path | None = None, *, reads: bool = False
    ) -> Any:
        """Result of a call, repeated with growing pauses while that may help.

        Args:
            file: What is uploaded; it may be deleted meanwhile.
            reads: Whether it reads objects, so that one may be missing, or this disk be full.
        """
        pause, end = 1.0, time.monotonic() + self.patience
        while True:
            try:
                return call()
            except (BucketError, FileExistsError):
                raise
            except Exception as e:
                is_missing = isinstance(e, FileNotFoundError)
                if is_missing and (reads or (file and not file.exists())):
                    raise
                if reads and files.is_disk_full(e):
                    raise
                if problem := _problem(e):
                    raise BucketError(f'{self.url} {problem} ({brief(e)}).') from e
                if time.monotonic() + pause > end:
                    raise BucketError(
                        f'{self.url} cannot be reached ({brief(e)}); check the network and run the '
                        'same command again: it resumes.'
                    ) from e
                logging.warning('%s: %s; trying again in %.0f s', self.url, brief(e), pause)
                time.sleep(pause)
                pause = min(2 * pause, 60)


def _all(call: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """Results of calls in threads; the first error ends them."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(call, *each) for each in zip(*arguments, strict=True)]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def _problem(e: Exception) -> str | None:
    """What is wrong and how to mend it, if trying again would not help."""
    text = f'{type(e).__name__} {e}'
    if _BUSY.search(text):
        return None
    if files.is_disk_full(e) or _FULL.search(text):
        return (
            'is full, or its quota is used up; free some space there and run the same command again'
        )
    if isinstance(e, PermissionError) or _DENIED.search(text):
        return (
            'cannot be read or written with these credentials; log in, or ask for the permission '
            'to list, read, write and delete objects there, and run the same command again'
        )
    if isinstance(e, FileNotFoundError):
        return 'does not exist; create the bucket, or correct --workdir'
    is_refused = any(name in f'{text} {e.__cause__!r}' for name in _REFUSED)
    if is_refused or isinstance(e, (TypeError, ValueError, NotImplementedError)):
        return 'cannot hold a run; use another bucket or path'
    return None
