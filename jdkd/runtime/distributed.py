"""Several processes that run one program over one workdir: TPU slices, or N on one machine.

Every process runs the same code in the same order. Process 0 decides what all must agree on and
writes what is written once. A process that dies is noticed by the others within HEARTBEAT_SECONDS,
and they stop; the same command goes on where the run was.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 60  # Without a sign of life, after which a process counts as dead.
HUNG = 75  # Exit code of a process that gave up waiting for a device (EX_TEMPFAIL).
# Others may work for hours where one waits; that they live is known by their heartbeats.
_FOREVER_MS = 30 * 24 * 3600 * 1000
_SEEN_WITHIN = 120  # Seconds in which a file that one machine wrote is seen by another over NFS.

_STOP, _STEPS_AHEAD = 'jdkd/stop', 3

_alone = False  # While process 0 decides.
_barriers, _calls = itertools.count(), itertools.count()
_stop_at: int | None = None  # Of the calls of `told_to_stop`.
_hang_seconds = 0.0  # See `watched`; 0 for no limit.


def start(
    coordinator: str | None, count: int | None, index: int | None, *, hang_seconds: float = 0
) -> None:
    """Makes this process one of several; does nothing where it is the only one.

    On TPU VMs JAX knows the processes of the slice; elsewhere they are given. Called before
    anything else of JAX.

    Args:
        coordinator: host:port of process 0; None for a TPU slice or a single process.
        count: Number of processes.
        index: Of this one.
        hang_seconds: After which `watched` gives up; 0 for never.

    Raises:
        ValueError: if only some of the three are given, or the index is not below the count.
        RuntimeError: if the others cannot be reached.
    """
    global _hang_seconds
    _hang_seconds = hang_seconds
    given = [x is not None for x in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError(
            'give all of --coordinator, --num_processes and --process_index, or none of them; '
            'launch/local.sh sets them.'
        )
    if all(given) and not 0 <= index < count:
        raise ValueError(f'--process_index={index} is not below --num_processes={count}.')
    if not any(given) and not _on_tpu_vm():
        return
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method='deactivate' if all(given) else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError:
        if any(given):
            raise
        logging.debug('JAX finds no slice around this TPU VM; going on alone.')


def _on_tpu_vm() -> bool:
    """Whether there may be a slice: JAX says so where its TPU library and a chip are."""
    platforms = os.environ.get('JAX_PLATFORMS', '')
    if importlib.util.find_spec('libtpu') is None or (platforms and 'tpu' not in platforms):
        return False
    devices = pathlib.Path('/dev')
    return any(devices.glob('accel*')) or any(devices.glob('vfio/[0-9]*'))


def count() -> int:
    """Number of processes that work together on what is going on; 1 within `from_first`."""
    return jax.process_count() if jax.distributed.is_initialized() and not _alone else 1


def index() -> int:
    """Of this process among them."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; all call it in the same order.

    Raises:
        RuntimeError: if a process has died.
    """
    if count() == 1:
        return
    key = f'{next(_barriers)} {name}'
    with noted(f'waiting for the other processes at {name}'):
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=_FOREVER_MS)


def from_first(decide: Callable[[], Any], name: str, *, writes: Iterable[pathlib.Path] = ()) -> Any:
    """What process 0 decides, on every process; an error there is one everywhere.

    Args:
        decide: Called on process 0, as if that were the only one: stages that it builds are built
            there; it may hold no work of all devices. Returns what JSON can hold.
        name: Of the decision, for who waits for it.
        writes: Files that are there afterwards, which the other processes wait to see.

    Raises:
        Exception: what `decide` raises; on the other processes a RuntimeError with its message.
        TimeoutError: of `await_files`.
    """
    if count() == 1:
        return decide()
    global _alone
    error, told = None, ''
    if is_first():
        _alone = True
        try:
            told = json.dumps([decide(), None])
        except Exception as e:
            error, told = e, json.dumps([None, str(e)])
        finally:
            _alone = False
    barrier(name)  # The exchange is among devices, which do not wait for long.
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(told))))
    payload = np.zeros(size, np.uint8)
    if is_first():
        payload[:] = np.frombuffer(told.encode('ascii'), np.uint8)
    found, message = json.loads(
        bytes(np.asarray(multihost_utils.broadcast_one_to_all(payload), np.uint8))
    )
    if error is not None:
        raise error
    if message is not None:
        raise RuntimeError(f'process 0 says: {message}')
    await_files(writes)
    return found


def await_files(paths: Iterable[pathlib.Path]) -> None:
    """Waits until files that other machines have written are seen here too.

    Raises:
        TimeoutError: if one is not after two minutes: the workdir is not one for all.
    """
    if count() == 1:
        return
    limit = time.monotonic() + _SEEN_WITHIN
    for path in paths:
        while not path.exists():
            if time.monotonic() > limit:
                raise TimeoutError(
                    f'{path} was written by another process and is not seen by process {index()}: '
                    'the workdir must be one directory for all of them, for example on NFS.'
                )
            with contextlib.suppress(OSError):
                os.listdir(path.parent)  # Makes NFS ask what is new.
            time.sleep(0.1)


def told_to_stop(here: bool) -> bool:
    """Whether all processes stop now, since one of them was told to.

    Called by all after each step of a training: the steps hold them together, so that none is more
    than one ahead, and they all learn in time at which of these calls to stop.

    Args:
        here: Whether this process was told to.
    """
    global _stop_at
    if count() == 1:
        return here
    call, client = next(_calls), ocp.multihost.get_jax_distributed_client()
    if _stop_at is None and here:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was told before.
            client.key_value_set(_STOP, str(call + _STEPS_AHEAD))
    if _stop_at is None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # None was told.
            _stop_at = int(client.key_value_try_get(_STOP))
    return _stop_at is not None and call >= _stop_at


@contextlib.contextmanager
def noted(what: str, every: float = 300) -> Iterator[None]:
    """Logs that something is still going on, every five minutes."""
    done, since = threading.Event(), time.monotonic()

    def log():
        while not done.wait(every):
            minutes = (time.monotonic() - since) / 60
            logging.warning('process %d: %s for %.0f minutes now', index(), what, minutes)

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def watched(what: str) -> Iterator[Callable[[], None]]:
    """Ends this process where nothing happens for too long: a device or another process hangs.

    What hangs in a collective cannot be interrupted from Python, so that the process exits, with
    code HUNG; the other processes then stop as after any death. The longest time between two signs
    of life is what `start` was given; a process that is alone is not watched.

    Args:
        what: Is going on.

    Yields:
        The function that is called as a sign of life.
    """
    limit_seconds = _hang_seconds if count() > 1 else 0
    if not limit_seconds:
        yield lambda: None
        return
    last, done = [time.monotonic()], threading.Event()

    def watch():
        while not done.wait(min(limit_seconds / 10, 10)):
            if time.monotonic() - last[0] > limit_seconds:
                leave(
                    f'{what}: no step has ended for {limit_seconds:g} seconds (--hang_seconds): a '
                    'device or another process hangs. Start again with the same command; the run '
                    'goes on at its last checkpoint.',
                    HUNG,
                )

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def alive():
        last[0] = time.monotonic()

    try:
        yield alive
    finally:
        done.set()
        thread.join()


def leave(message: str, code: int = 1) -> None:
    """Ends this process at once; it does not wait for the others, who may wait for it."""
    who = f'process {index()}: ' if count() > 1 else ''
    print(f'jdkd: {who}{message}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
