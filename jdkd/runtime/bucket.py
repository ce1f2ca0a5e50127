"""A run in a bucket: it works in a local cache, and the bucket keeps what is finished.

The bucket has the names of the workdir. A stage counts once its manifest is there, which is
uploaded last; until then `started.json` marks its directory. Of a resumable stage that is being
built, the bucket has the parts and checkpoints with their seals, each seal after what it seals.

Process 0 alone talks to the bucket, in one thread that uploads in the order of the work. Stages are
downloaded when they are read. A cache that was not the last to write to the bucket is brought to
its state first.
"""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import filelock
import fsspec
from absl import logging

from jdkd.runtime import distributed, files, lease, lock, object_store
from jdkd.runtime.cache import Cache
from jdkd.runtime.cache_files import (
    STATE,
    UNFINISHED,
    Sealed,
    find_sealed,
    is_replaced,
    loose_files,
    sealed_files,
)
from jdkd.runtime.files import MANIFEST, STARTED
from jdkd.runtime.lease import Lease
from jdkd.runtime.messages import shown
from jdkd.runtime.object_store import ObjectStore, is_url
from jdkd.runtime.uploads import GoneError, Uploads

SCAN_SECONDS = 30.0  # Between two looks for new parts, checkpoints and metrics.

_open: dict[pathlib.Path, 'Bucket'] = {}  # By cache.


def open_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """The directory that a run works in: `workdir`, or the cache of a URL on this machine.

    All processes call it; process 0 reads the bucket and brings the cache up to date.

    Raises:
        ImportError, ValueError, BucketError: see `ObjectStore`.
    """
    if not is_url(workdir):
        return pathlib.Path(workdir)
    protocol, _, path = os.fspath(workdir).rstrip('/').partition('://')
    protocol = protocol.lower()
    url = f'{protocol}://{path}'
    if protocol in ('file', 'local'):
        return pathlib.Path(fsspec.core.url_to_fs(url)[1])
    parts = pathlib.PurePosixPath(path).parts
    if '..' in parts or '::' in url or not path:
        raise ValueError(f'--workdir={url} names no place in a bucket; give gs://BUCKET/PATH.')
    cache = files.cache_home().joinpath(protocol, *parts)

    def connect():
        _open[cache] = Bucket(ObjectStore(url), cache)
        _open[cache].refresh()

    distributed.from_primary(connect, f'{url}: opened')
    return cache


def of(path: pathlib.Path) -> 'Bucket | None':
    """The bucket that keeps a file or directory; on process 0, in a workdir of a URL."""
    for cache, bucket in _open.items():
        if path.is_relative_to(cache):
            return bucket
    return None


@contextlib.contextmanager
def hold(workdir: pathlib.Path) -> Iterator[None]:
    """Takes the lease of a workdir's bucket, if it has one, and uploads while the context lasts.

    Raises:
        RuntimeError: if another machine holds it.
        BucketError: at the end, if not everything could be uploaded.
    """
    bucket = of(workdir.absolute())
    if bucket is None:
        yield
        return
    try:
        bucket.begin()
        yield
        bucket.flush()
    except Exception:
        with contextlib.suppress(Exception):  # The first error is the one to show.
            bucket.flush()
        raise
    finally:
        bucket.end()


def flush() -> None:
    """Uploads all that is finished, in every bucket that is held; see `Bucket.flush`."""
    for bucket in _open.values():
        bucket.flush()


def check() -> None:
    """Raises the error of an upload that failed in the background, if any."""
    for bucket in _open.values():
        bucket.check()


def _may_be_there(name: str) -> bool:
    """Whether an object may lie in a bucket before a run: a lease, or what the launcher pins."""
    return name.startswith(lease.PREFIX) or name == 'requirements.lock'


class Bucket:
    """The bucket of a run, and its cache."""

    def __init__(self, store: ObjectStore, cache: pathlib.Path):
        self.store, self.cache = store, cache
        self._local = Cache(store, cache)
        self._uploads = Uploads(store)
        self._manifests: dict[str, bytes] = {}  # Of finished stages.
        self._lease_seen: dict[str, Any] = {}
        self._building: dict[str, pathlib.Path] = {}  # Stages and where they are built.
        self._seals: dict[str, dict[str, bytes]] = {}  # Of each unfinished stage, in the bucket.
        self._state: dict[str, Any] = {'id': secrets.token_hex(8), 'loose': {}}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._state = json.loads((cache / STATE).read_text('utf-8'))
            loose = self._state['loose']  # Of a cache that was moved, no path is known.
            own = {p: e for p, e in loose.items() if pathlib.Path(p).is_relative_to(cache)}
            self._state['loose'] = own

    # What process 0 calls before and after the work.

    def refresh(self) -> None:
        """Reads what the bucket has; brings a cache to its state that was not the last to write.

        A cache that another process of this machine works in is left as it is.
        """
        self._uploads.names = set(self.store.list())
        manifests = [
            name
            for name in self._uploads.names
            if name.endswith(f'/{MANIFEST}') and not is_replaced(name)
        ]
        contents = self.store.read(manifests)
        self._manifests = {name.removesuffix(f'/{MANIFEST}'): contents[name] for name in manifests}
        self._lease_seen = lease.read(self.store, self._uploads.names)
        if self._lease_seen.get('owner') == self._state['id']:
            return
        if 'config.json' not in self._uploads.names:  # The first that a run uploads.
            if foreign := [n for n in self._uploads.names if not _may_be_there(n)]:
                raise ValueError(
                    f'{self.store.url} holds {shown(min(foreign))} and no run; choose another '
                    'place, where nothing is, or move what is there.'
                )
            if (self.cache / 'config.json').exists():
                raise ValueError(
                    f'{self.store.url} holds no run, but its cache {self.cache} does; copy that to '
                    'the bucket to restore the run, or remove it to begin anew.'
                )
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(filelock.Timeout):
            with filelock.FileLock(self.cache / lock.FILE).acquire(blocking=False):
                loose = self._local.replace(self._uploads.names, self._manifests)
                self._state['loose'] = files.fingerprint(loose, {})
                self._write_state()

    def begin(self) -> None:
        """Takes the lease and starts uploading, first of all what the bucket lacks."""
        self._write_state()
        self.store.patience = object_store.RETRY_SECONDS
        own = Lease(self.store, self._state['id'], self._lease_seen)
        self._uploads.begin(own, self._scan, SCAN_SECONDS)
        for manifest in sorted(self.cache.rglob(MANIFEST)):
            name = self._name(manifest.parent)
            is_stage = not UNFINISHED.search(name) and not is_replaced(name)
            if is_stage and self._manifests.get(name) != manifest.read_bytes():
                self.finished(manifest.parent)

    def flush(self) -> None:
        """Uploads all that is finished; raises the error of an upload that failed."""
        if self._uploads.is_running:
            self._uploads.run(self._scan)

    def end(self) -> None:
        """Stops uploading and releases the lease."""
        self._uploads.end()
        logging.info(
            '%s: uploaded %s and downloaded %s bytes of files',
            self.store.url,
            f'{self.store.sent:,}',
            f'{self.store.received:,}',
        )

    def check(self) -> None:
        """Raises the error of an upload that failed."""
        self._uploads.check()

    # What stages call.

    def manifest(self, directory: pathlib.Path) -> bytes | None:
        """The manifest of a finished stage in the bucket, if any."""
        return self._manifests.get(self._name(directory))

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The manifests of all stages, by their paths in the workdir."""
        return {name: json.loads(content) for name, content in dict(self._manifests).items()}

    def fetch(self, directory: pathlib.Path, outputs: Mapping[str, Any]) -> str | None:
        """Downloads a finished stage; says what is damaged if its files are not `outputs`."""
        name = self._name(directory)
        return self._local.fetch(name, outputs, self._manifests[name])

    def resume(self, temporary: pathlib.Path, inputs: Mapping[str, Any]) -> bool:
        """Downloads the parts of a stage begun from `inputs` that its directory lacks.

        From now on its parts are uploaded. Returns whether there were any.
        """
        if not self._uploads.is_running:
            return False
        name = self._name(temporary).removesuffix('.tmp')
        mark, found = f'{name}/{STARTED}', False
        if mark in self._uploads.names and name not in self._manifests:
            started = json.loads(self.store.read([mark])[mark])
            if found := started == inputs:
                self._download_parts(name, temporary)
            elif started:
                logging.warning('%s/%s was begun from other inputs', self.store.url, name)
                self.moved(temporary, lock.replaced_path(temporary))
            else:  # What a kill left of an upload or of a deletion.
                self._uploads.run(lambda: self._uploads.remove_below(name))
        self._building[name] = temporary
        return found

    def finished(self, directory: pathlib.Path) -> None:
        """Uploads a finished stage, in the background."""
        name = self._name(directory)
        if self._uploads.is_running:
            self._building.pop(name, None)
            self._uploads.put(lambda: self._upload_stage(name, directory))

    def deleted(self, directory: pathlib.Path) -> None:
        """Deletes a stage, or all stages below a directory, in the background."""
        if not self._uploads.is_running:
            return
        name = self._name(directory)
        for stage in [n for n in list(self._manifests) if f'{n}/'.startswith(f'{name}/')]:
            del self._manifests[stage]

        def delete():
            self._upload_loose()  # Above all what says that the stage was deleted.
            self._uploads.remove_below(name)

        self._uploads.put(delete)

    def moved(self, path: pathlib.Path, target: pathlib.Path) -> None:
        """Moves a stage that was set aside."""
        if not self._uploads.is_running:
            return
        name = self._name(path).removesuffix('.tmp')
        self._manifests.pop(name, None)
        self._seals.pop(name, None)

        def move():
            new = self._name(target)
            moves = {n: f'{new}/{n.removeprefix(f"{name}/")}' for n in self._uploads.below(name)}
            self._uploads.copy(moves)
            self._uploads.remove_below(name)

        self._uploads.run(move)

    # Jobs.

    def _scan(self) -> None:
        """Uploads new parts and checkpoints of unfinished stages, and changed loose files."""
        found = {
            name: (temporary, sealed)
            for name, temporary in list(self._building.items())
            if (sealed := find_sealed(temporary)) is not None
        }
        self._upload_loose()  # What a checkpoint continues must have its metrics.
        for name, (temporary, sealed) in found.items():
            with contextlib.suppress(GoneError):  # The stage is finished now.
                self._upload_parts(name, temporary, sealed)

    def _upload_parts(self, name: str, temporary: pathlib.Path, sealed: list[Sealed]) -> None:
        if sealed and f'{name}/{STARTED}' not in self._uploads.names:
            self._uploads.upload({f'{name}/{STARTED}': temporary / STARTED})
        known = self._seals.setdefault(name, {})
        for seal, content in sealed:
            if known.get(seal) != content:
                paths = sealed_files(seal, content)
                self._uploads.upload({f'{name}/{path}': temporary / path for path in paths})
                self._uploads.write(f'{name}/{seal}', content)
                known[seal] = content
        for seal in known.keys() - dict(sealed).keys():
            gone = seal, *sealed_files(seal, known.pop(seal))
            self._uploads.remove(f'{name}/{path}' for path in gone)

    def _upload_stage(self, name: str, directory: pathlib.Path) -> None:
        """Uploads a stage, its manifest last; nothing if it has been deleted meanwhile."""
        self._upload_loose()
        known = {
            path: entry
            for seal, content in self._seals.pop(name, {}).items()
            for path, entry in sealed_files(seal, content).items()
        }
        with contextlib.suppress(FileNotFoundError):
            manifest = (directory / MANIFEST).read_bytes()
            outputs = json.loads(manifest)['outputs']
            if f'{name}/{STARTED}' not in self._uploads.names:
                self._uploads.write(f'{name}/{STARTED}', b'{}')
            self._uploads.remove([f'{name}/{MANIFEST}'])
            paths = [path for path, entry in outputs.items() if known.get(path) != entry]
            with contextlib.suppress(GoneError):
                self._uploads.upload({f'{name}/{path}': directory / path for path in paths})
                self._uploads.write(f'{name}/{MANIFEST}', manifest)
                kept = {f'{name}/{path}' for path in (*outputs, MANIFEST)}
                self._uploads.remove(n for n in self._uploads.below(name) if n not in kept)
                if (directory / MANIFEST).exists():
                    self._manifests[name] = manifest

    def _upload_loose(self) -> None:
        """Uploads changed files outside stages, and deletes those that are gone."""
        while True:
            with contextlib.suppress(GoneError, FileNotFoundError):  # A new look knows better.
                known = self._state['loose']
                now = files.fingerprint(loose_files(self.cache), known)
                changed = {
                    self._name(pathlib.Path(path)): pathlib.Path(path)
                    for path, entry in now.items()
                    if entry['sha256'] != known.get(path, {}).get('sha256')
                }
                # What was set aside was moved in the bucket, too.
                moved = [n for n in changed if is_replaced(n) and n in self._uploads.names]
                self._uploads.upload({name: changed[name] for name in changed.keys() - moved})
                self._uploads.remove(self._name(pathlib.Path(p)) for p in known.keys() - now.keys())
                if now != known:
                    self._state['loose'] = now
                    self._write_state()
                return

    def _download_parts(self, name: str, temporary: pathlib.Path) -> None:
        """Downloads sealed parts that the directory lacks, each seal after what it seals."""
        seals = [n for n in self._uploads.below(name) if n.endswith(files.SEAL)]
        contents = self.store.read(seals)
        known = self._seals.setdefault(name, {})
        for object_name in seals:
            seal, content = object_name.removeprefix(f'{name}/'), contents[object_name]
            known[seal] = content
            if self._local.inside(temporary / seal).exists():
                continue
            logging.info('fetching %s/%s', self.store.url, object_name.removesuffix(files.SEAL))
            sealed = sealed_files(seal, content)
            with contextlib.suppress(FileNotFoundError):  # Without its seal it is made again.
                self._local.download({f'{name}/{path}': temporary / path for path in sealed})
                with files.atomic_write(temporary / seal, 'wb') as f:
                    f.write(content)

    def _write_state(self) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(self.cache / STATE) as f:
            json.dump(self._state, f)

    def _name(self, path: pathlib.Path) -> str:
        return self._local.name(path)
