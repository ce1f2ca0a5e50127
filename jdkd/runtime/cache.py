"""The cache of a run in a bucket: what this machine has of it, and what it downloads."""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from jdkd.runtime import files, lease, lock
from jdkd.runtime.cache_files import OWN, UNFINISHED, is_replaced, loose_files
from jdkd.runtime.files import MANIFEST, STARTED
from jdkd.runtime.messages import brief
from jdkd.runtime.object_store import BucketError, ObjectStore


class Cache:
    """A directory with files of a bucket, under the names that they have there."""

    def __init__(self, store: ObjectStore, directory: pathlib.Path):
        self.store, self.directory = store, directory

    def name(self, path: pathlib.Path) -> str:
        """The name of a file's object."""
        return path.relative_to(self.directory).as_posix()

    def inside(self, path: pathlib.Path) -> pathlib.Path:
        """The path of an object, whose name may come from somebody else.

        Raises:
            BucketError: if it lies outside of the cache.
        """
        if '..' in path.parts or not path.is_relative_to(self.directory):
            raise BucketError(
                f"{self.store.url} names the file '{brief(path)}', which lies outside of the run; "
                'this is no run of jdkd.'
            )
        return path

    def download(self, paths: Mapping[str, pathlib.Path]) -> None:
        """Downloads objects, {name: path}."""
        self.store.download({name: self.inside(path) for name, path in paths.items()})

    def fetch(self, name: str, outputs: Mapping[str, Any], manifest: bytes) -> str | None:
        """Downloads a finished stage; says what is damaged if its files are not `outputs`."""
        directory = self.directory / name
        temporary = directory.with_name(f'{directory.name}.tmp-fetch{os.getpid()}')
        size = sum(output['size'] for output in outputs.values())
        logging.info('fetching %s/%s (%s bytes)', self.store.url, name, f'{size:,}')
        files.remove(temporary)
        temporary.mkdir(parents=True)
        try:
            self.download({f'{name}/{path}': temporary / path for path in outputs})
            problem = files.find_damage(temporary, outputs)
        except FileNotFoundError as e:
            problem = f'{e} is missing'
        if problem:
            files.remove(temporary)
            return problem.replace(str(temporary), f'{self.store.url}/{name}')
        (temporary / MANIFEST).write_bytes(manifest)
        try:
            temporary.rename(directory)
        except OSError:
            if not (directory / MANIFEST).exists():
                raise
            files.remove(temporary)  # Another process was first.
        return None

    def replace(self, names: Collection[str], manifests: Mapping[str, bytes]) -> list[pathlib.Path]:
        """Removes what the bucket does not have like this, and downloads its loose files.

        `names` are those of all its objects, `manifests` those of its finished stages. Returns the
        paths of the loose files.
        """
        self._remove_stale(manifests)
        marks = (f'/{MANIFEST}', f'/{STARTED}')
        stages = {name.rpartition('/')[0] for name in names if name.endswith(marks)}

        def is_loose(name):
            folders = (str(folder) for folder in pathlib.PurePosixPath(name).parents)
            is_other = is_replaced(name) or name.startswith(lease.PREFIX) or name in OWN
            return not is_other and stages.isdisjoint(folders)

        loose = {name: self.directory / name for name in names if is_loose(name)}
        self.download(loose)
        for name in names:  # What is set aside here must not meet what is there.
            if is_replaced(name):
                folder = '/'.join(name.split('/')[:2])
                (self.directory / folder).mkdir(parents=True, exist_ok=True)
        return list(loose.values())

    def _remove_stale(self, manifests: Mapping[str, bytes]) -> None:
        for directory, names, own in os.walk(self.directory):
            path = pathlib.Path(directory)
            if path == self.directory and lock.REPLACED in names:
                names.remove(lock.REPLACED)
            stale = UNFINISHED.search(directory) is not None
            if MANIFEST in own:
                stale = manifests.get(self.name(path)) != (path / MANIFEST).read_bytes()
            if stale or MANIFEST in own:
                names.clear()
            if stale:
                files.remove(path)
        for path in loose_files(self.directory):
            if not is_replaced(self.name(path)):
                path.unlink()
