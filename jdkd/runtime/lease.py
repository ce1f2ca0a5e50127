"""The lease of a run in a bucket: one machine writes there at a time.

A lease is an object with a number, and its holder writes it anew every few seconds. Whoever takes
the lease creates the object of the next number, which the holder before it sees at its next beat.
No clocks are compared: a holder that shows no beat while somebody waits for one has ended.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from typing import Any

from absl import logging

from jdkd.runtime.object_store import BucketError, ObjectStore

PREFIX = '.lease/'
BEAT_SECONDS = 20.0


def read(store: ObjectStore, names: Any) -> dict[str, Any]:
    """The last lease among objects, with its `number`; empty if none was ever taken."""
    numbers = [int(name.removeprefix(PREFIX)) for name in names if re.match(PREFIX + r'\d+$', name)]
    if not numbers:
        return {}
    number, record = max(numbers), {}
    with contextlib.suppress(ValueError, FileNotFoundError):
        record = json.loads(store.read([_name(number)])[_name(number)])
    return {**record, 'number': number}


class Lease:
    """A lease that this process holds until `release`.

    Args:
        owner: Id of the cache that the run works in; its earlier lease needs no waiting.
        known: What `read` gave when the cache was last brought up to date.

    Raises:
        RuntimeError: if another machine holds it, or held it since.
    """

    def __init__(self, store: ObjectStore, owner: str, known: dict[str, Any]):
        self._store, self._owner, self._is_lost = store, owner, False
        last = self._wait_for_end(read(store, store.list(PREFIX)))
        if known != last:
            raise RuntimeError(
                f'{store.url} was in use until now; run the same command again, which begins with '
                'what is there now.'
            )
        self._number, self._beats = last.get('number', 0) + 1, 0
        if not store.write(_name(self._number), self._record(), new=True):
            raise self._in_use(read(store, store.list(PREFIX)))
        if last:
            store.delete([_name(last['number'])])
        self._last_beat = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises a BucketError if another machine has taken the lease.

        Asks the store only if the last beat is long ago.
        """
        if time.monotonic() - self._last_beat > 2 * BEAT_SECONDS:
            self._renew()
        if self._is_lost:
            raise BucketError(
                f'{self._store.url} was taken over by another machine, because this one gave no '
                'sign of life; let that one go on.'
            )

    def release(self) -> None:
        self._done.set()
        self._thread.join(BEAT_SECONDS)
        if not self._is_lost:
            self._store.write(_name(self._number), self._record(released=True))

    def _wait_for_end(self, last: dict[str, Any]) -> dict[str, Any]:
        """Waits until the last holder has ended; returns its last record."""
        if not last or last.get('released') or last.get('owner') == self._owner:
            return last
        logging.info('%s: waiting for a sign of life of %s', self._store.url, last.get('host'))
        end = time.monotonic() + 3 * BEAT_SECONDS
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 10)
            now = read(self._store, self._store.list(PREFIX))
            if now.get('released') and now['number'] == last['number']:
                return now
            if now != last:
                raise self._in_use(now)
        return last

    def _in_use(self, record: dict[str, Any]) -> RuntimeError:
        return RuntimeError(
            f'{self._store.url} is in use by process {record.get("pid")} on {record.get("host")}; '
            'wait until it ends, or choose another --workdir.'
        )

    def _record(self, *, released: bool = False) -> bytes:
        own = {'owner': self._owner, 'host': socket.gethostname(), 'pid': os.getpid()}
        own |= {'beats': self._beats, 'released': released}
        return json.dumps(own).encode()

    def _renew(self) -> None:
        now = read(self._store, self._store.list(PREFIX))
        if now.get('number') != self._number:
            self._is_lost = True
            return
        self._beats += 1
        self._store.write(_name(self._number), self._record())
        self._last_beat = time.monotonic()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS) and not self._is_lost:
            with contextlib.suppress(Exception):  # Uploads report what is wrong.
                self._renew()


def _name(number: int) -> str:
    return f'{PREFIX}{number:06d}'
