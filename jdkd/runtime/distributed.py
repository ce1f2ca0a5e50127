"""Coordinates the processes of one run: the hosts of a TPU slice, or several on one machine.

All processes share one workdir and run the same code in the same order. Process 0 makes the
decisions that all must agree on and writes the files that are written once. If a process dies, the
others notice within HEARTBEAT_SECONDS and stop; the same command then resumes the run.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

HEARTBEAT_SECONDS = 60  # A process that is silent for longer counts as dead.
HUNG = 76  # Exit code after a hang; 75 is that of SIGTERM.
# Barriers may wait for hours while another process works; heartbeats detect the dead ones.
_BARRIER_TIMEOUT_MS = 30 * 24 * 3600 * 1000
_LOG_SECONDS = 300.0  # From one log line of what goes on to the next.
_NFS_SECONDS = 120  # Within which a file written on one machine appears on the others.

_STOP_KEY, _STEPS_AHEAD = 'jdkd/stop', 3
_DECISION_KEY = 'jdkd/decisions/{}'

_deciding = False  # Whether this process runs the `decide` of `from_primary`.
_barriers, _stop_calls, _decisions = itertools.count(), itertools.count(), itertools.count()
_stop_at: int | None = None  # The call of `stop_requested` at which all processes stop.
_hang_seconds = 0.0  # See `hang_watchdog`; 0 disables it.


def start(
    coordinator: str | None, count: int | None, index: int | None, *, hang_seconds: float = 0
) -> None:
    """Joins this process to the others of the run; does nothing if it is the only one.

    JAX finds the processes of a TPU slice, of a Slurm step and of Open MPI; elsewhere the arguments
    describe them. Call it before any other use of JAX.

    Args:
        coordinator: host:port of process 0; None to let JAX find it, or for a single process.
        count, index: Number of processes, and the index of this one.
        hang_seconds: Time limit of `hang_watchdog`; 0 for no limit.

    Raises:
        ValueError: if only some of the three are given, or the index is not below the count.
        RuntimeError: if the other processes cannot be reached.
    """
    global _hang_seconds
    _hang_seconds = hang_seconds
    given = [x is not None for x in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ValueError(
            'give all of --coordinator, --num_processes and --process_index, or none of them; '
            'launch/local.sh sets them.'
        )
    if index is not None and count is not None and not 0 <= index < count:
        raise ValueError(f'--process_index={index} is not below --num_processes={count}.')
    cluster = find_cluster(os.environ)
    if not any(given) and cluster is None and not _on_tpu_vm():
        return
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            local_device_ids=None if any(given) else _devices_of_slurm_task(os.environ),
            cluster_detection_method='deactivate' if all(given) else cluster,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError:
        if any(given):
            raise
        logging.debug('JAX finds no slice around this TPU VM; running as a single process.')


def find_cluster(environment: Mapping[str, str]) -> str | None:
    """JAX's name of what has started several processes of this run; None if nothing has.

    Inside `sbatch` or `salloc` that is `srun` alone, whose steps have a list of nodes.
    """
    if 'SLURM_STEP_NODELIST' in environment and int(environment.get('SLURM_NTASKS', 1)) > 1:
        return 'slurm'
    if 'OMPI_MCA_orte_hnp_uri' in environment and int(environment['OMPI_COMM_WORLD_SIZE']) > 1:
        return 'ompi'
    return None


def _devices_of_slurm_task(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs that a Slurm task sees if it is the only one of its node; None to let JAX decide.

    JAX gives each task of a step one GPU.
    """
    tasks = environment.get('SLURM_STEP_TASKS_PER_NODE', '')  # Such as 1(x2),3.
    visible = environment.get('CUDA_VISIBLE_DEVICES', '')
    if not visible or {t.partition('(')[0] for t in tasks.split(',')} != {'1'}:
        return None
    return list(range(len(visible.split(','))))


def _on_tpu_vm() -> bool:
    """Whether to ask JAX for a TPU slice: libtpu is installed and a chip is attached."""
    platforms = os.environ.get('JAX_PLATFORMS', '')
    if importlib.util.find_spec('libtpu') is None or (platforms and 'tpu' not in platforms):
        return False
    devices = pathlib.Path('/dev')
    return any(devices.glob('accel*')) or any(devices.glob('vfio/[0-9]*'))


def process_count() -> int:
    """Number of processes of the run; 1 inside the `decide` of `from_primary`."""
    return jax.process_count() if jax.distributed.is_initialized() and not _deciding else 1


def process_index() -> int:
    """Index of this process."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_primary() -> bool:
    """Whether this is process 0, which writes the files that are written once."""
    return process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called it; all must call it in the same order.

    Raises:
        RuntimeError: if a process has died.
    """
    if process_count() > 1:
        key = f'{next(_barriers)} {name}'
        with log_waiting(f'waiting for the other processes at {name}'):
            ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=_BARRIER_TIMEOUT_MS)


def from_primary(
    decide: Callable[[], Any], name: str, *, writes: Iterable[pathlib.Path] = ()
) -> Any:
    """Calls `decide` on process 0 and returns its result, or raises its error, on every process.

    Args:
        decide: Runs on process 0 as if that were the only process, so that stages inside it are
            built there alone. It must not run computations on all devices. Returns a JSON value.
        name: Names the decision in the log of the processes that wait for it.
        writes: Files that `decide` leaves behind; the other processes wait until they see them.

    Raises:
        Exception: whatever `decide` raises; a RuntimeError with its message on other processes.
        TimeoutError: see `await_files`.
    """
    if process_count() == 1:
        return decide()
    global _deciding
    error, number = None, next(_decisions)
    client = ocp.multihost.get_jax_distributed_client()
    key = _DECISION_KEY.format(number)
    if is_primary():
        _deciding = True
        try:
            reply = json.dumps([decide(), None])
        except Exception as e:
            error, reply = e, json.dumps([None, str(e)])
        finally:
            _deciding = False
        client.key_value_set(key, reply)
    barrier(name)
    result, message = json.loads(client.key_value_try_get(key))
    if is_primary() and number:  # All have read the one before.
        client.key_value_delete(_DECISION_KEY.format(number - 1))
    if error is not None:
        raise error
    if message is not None:
        raise RuntimeError(f'process 0 failed: {message}')
    await_files(writes)
    return result


def await_files(paths: Iterable[pathlib.Path]) -> None:
    """Waits for files of other processes; a TimeoutError after two minutes names a missing one."""
    if process_count() == 1:
        return
    limit = time.monotonic() + _NFS_SECONDS
    for path in paths:
        while not path.exists():
            if time.monotonic() > limit:
                raise TimeoutError(
                    f'{path} was written by another process, but process {process_index()} does '
                    'not see it; give all processes one shared workdir, for example on NFS; of one '
                    'in a bucket, share the directory JDKD_CACHE.'
                )
            with contextlib.suppress(OSError):
                os.listdir(path.parent)  # Refreshes the NFS cache.
            time.sleep(0.1)


def stop_requested(here: bool) -> bool:
    """Whether all processes stop now because one of them received a signal.

    All processes call it after each training step. Collectives keep them within one step of each
    other, so that all learn in time at which call to stop. `here` says whether this process
    received a signal.
    """
    global _stop_at
    if process_count() == 1:
        return here
    call, client = next(_stop_calls), ocp.multihost.get_jax_distributed_client()
    if _stop_at is None and here:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another process was first.
            client.key_value_set(_STOP_KEY, str(call + _STEPS_AHEAD))
    if _stop_at is None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # No signal yet.
            _stop_at = int(client.key_value_try_get(_STOP_KEY))
    return _stop_at is not None and call >= _stop_at


@contextlib.contextmanager
def log_waiting(activity: str) -> Iterator[None]:
    """Logs every five minutes that `activity` still goes on."""
    start_time = time.monotonic()

    def log():
        minutes = (time.monotonic() - start_time) / 60
        logging.warning('process %d: %s for %.0f minutes', process_index(), activity, minutes)

    with _repeat(log, _LOG_SECONDS):
        yield


@contextlib.contextmanager
def hang_watchdog(activity: str) -> Iterator[Callable[[], None]]:
    """Exits this process if no progress is reported within the `hang_seconds` of `start`.

    Python cannot interrupt a hanging collective, so the process exits with code HUNG and the
    others stop as after any death. A single process is not watched.

    Yields:
        The function that reports progress.
    """
    limit_seconds = _hang_seconds if process_count() > 1 else 0
    if not limit_seconds:
        yield lambda: None
        return
    last_progress = time.monotonic()

    def check():
        if time.monotonic() - last_progress > limit_seconds:
            exit_now(
                f'{activity}: no step has ended for {limit_seconds:g} seconds (--hang_seconds): a '
                'device or another process hangs. Start the same command again; the run resumes '
                'from its last checkpoint.',
                HUNG,
            )

    def report_progress():
        nonlocal last_progress
        last_progress = time.monotonic()

    with _repeat(check, min(limit_seconds / 10, 10)):
        yield report_progress


@contextlib.contextmanager
def _repeat(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls an action every `seconds` in a thread while the context lasts."""
    done = threading.Event()

    def loop():
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def exit_now(message: str, code: int = 1) -> None:
    """Prints a message and exits at once, without waiting for processes that may wait for this."""
    prefix = f'process {process_index()}: ' if process_count() > 1 else ''
    print(f'jdkd: {prefix}{message}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)
