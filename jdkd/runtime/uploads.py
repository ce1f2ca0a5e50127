"""The objects of a run's bucket, and the thread that changes them in the order of the work."""

import contextlib
import pathlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping

from jdkd.runtime import files
from jdkd.runtime.files import MANIFEST, STARTED
from jdkd.runtime.lease import Lease
from jdkd.runtime.object_store import ObjectStore


class GoneError(Exception):
    """A file was moved or deleted before it was uploaded."""


class Uploads:
    """Changes a bucket, by jobs that run one after another in a thread.

    The first error of a job ends all later ones; `check` and `run` raise it.
    """

    def __init__(self, store: ObjectStore):
        self.store = store
        self.names: set[str] = set()  # Of all objects.
        self.error: BaseException | None = None
        self._lease: Lease | None = None
        self._thread: threading.Thread | None = None
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()

    @property
    def is_running(self) -> bool:
        """Whether the bucket is held, so that jobs are done."""
        return self._lease is not None

    def begin(self, lease: Lease, when_idle: Callable[[], None], seconds: float) -> None:
        """Starts the thread, which calls `when_idle` after `seconds` without a job."""
        self._lease = lease
        args = when_idle, seconds
        self._thread = threading.Thread(target=self._work, args=args, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stops the thread after the job that it is at, and releases the lease."""
        current, self._lease = self._lease, None
        if current is None or self._thread is None:
            return
        if self.error is not None:
            self.store.patience = 0
        self._jobs.put(None)
        self._thread.join()  # Another machine may write as soon as the lease is released.
        with contextlib.suppress(Exception):  # It ends by itself.
            current.release()

    def put(self, job: Callable[[], None]) -> None:
        """Has a job done in the background."""
        self._jobs.put(job)

    def run(self, job: Callable[[], None]) -> None:
        """Waits for all jobs and then for this one; raises the error of any."""
        self._jobs.put(job)
        self._jobs.join()
        self.check()

    def check(self) -> None:
        """Raises the error of a job that failed."""
        if self.error is not None:
            raise self.error

    def upload(self, paths: Mapping[str, pathlib.Path]) -> None:
        """Uploads files by the names of their objects.

        Raises:
            GoneError: if one of them was moved or deleted meanwhile.
        """
        try:
            self.store.upload(paths)
        except FileNotFoundError as e:
            raise GoneError from e
        self.names.update(paths)

    def write(self, name: str, content: bytes) -> None:
        self.store.write(name, content)
        self.names.add(name)

    def copy(self, targets: Mapping[str, str]) -> None:
        """Copies objects, {name: new name}."""
        self.store.copy(targets)
        self.names.update(targets.values())

    def remove(self, names: Iterable[str]) -> None:
        """Deletes objects: first what makes others count, last the mark of an unfinished stage."""
        names = list(names)

        def order(name):
            return name.endswith((f'/{MANIFEST}', files.SEAL)), not name.endswith(f'/{STARTED}')

        for key in ((True, True), (False, True), (False, False)):
            self.store.delete(n for n in names if n in self.names and order(n) == key)
        self.names.difference_update(names)

    def remove_below(self, folder: str) -> None:
        """Deletes all stages in a folder, each marked as unfinished before its manifest goes."""
        for manifest in [n for n in self.below(folder) if n.endswith(f'/{MANIFEST}')]:
            self.write(f'{manifest.removesuffix(MANIFEST)}{STARTED}', b'{}')
        self.remove(self.below(folder))

    def below(self, folder: str) -> list[str]:
        """Names of the objects in a folder."""
        return [n for n in list(self.names) if n.startswith(f'{folder}/')]

    def _work(self, when_idle: Callable[[], None], seconds: float) -> None:
        while True:
            try:
                job, is_queued = self._jobs.get(timeout=seconds), True
            except queue.Empty:
                job, is_queued = when_idle, False
            try:
                if job is None:
                    return
                if self.error is None and self._lease is not None:
                    self._lease.check()
                    job()
            except BaseException as e:  # Else those that wait for it would wait for ever.
                self.error = e
            finally:
                if is_queued:
                    self._jobs.task_done()
