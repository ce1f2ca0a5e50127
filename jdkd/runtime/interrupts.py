"""Graceful shutdown on SIGTERM (preemption) and Ctrl-C.

Files on disk are always complete or resumable, so the process may exit at any moment. Training
saves a checkpoint first if time allows.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

# 75: EX_TEMPFAIL, "try again".
EXIT_CODES: dict[int, int] = {signal.SIGTERM: 75, signal.SIGINT: 130}
_GRACE_SECONDS = 20  # For saving; clouds give about 30.

_exit_deferred = threading.Event()
_stop = threading.Event()
_codes: list[int] = []  # Exit codes of the signals received.


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Exits on SIGTERM or Ctrl-C while the context lasts; outside the main thread, does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop.clear()
    read, write = socket.socketpair()  # Not a pipe: Windows wakes sockets alone.
    write.setblocking(False)
    # Python handlers wait until the main thread returns from library code, such as an index build
    # of minutes. The wakeup socket receives the signal at once, and a thread reads it.
    before = {code: signal.signal(code, lambda *_: None) for code in EXIT_CODES}
    wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for code, handler in before.items():
            signal.signal(code, handler)
        write.close()
        watcher.join()
        read.close()


@contextlib.contextmanager
def defer_exit() -> Iterator[threading.Event]:
    """Defers the exit so that a checkpoint can be saved first.

    Yields:
        An event that a signal sets: save now, then call `exit_after_saving`. A second signal, or 20
        seconds, ends the process without.
    """
    _exit_deferred.set()
    try:
        yield _stop
    finally:
        _exit_deferred.clear()


def exit_after_saving() -> None:
    """Ends the process once its checkpoint is on disk."""
    _exit('the checkpoint is saved')


def _watch(read: socket.socket) -> None:
    while data := read.recv(1):
        code = EXIT_CODES.get(data[0])
        if code is None:
            continue
        _codes.append(code)
        if not _exit_deferred.is_set() or _stop.is_set():
            _exit('finished work is kept')
        print('\njdkd: stopping; saving a checkpoint.', file=sys.stderr, flush=True)
        timer = threading.Timer(_GRACE_SECONDS, _exit, ['the last checkpoint is kept'])
        timer.daemon = True
        timer.start()
        _stop.set()


def _exit(kept: str) -> None:
    print(f'\njdkd: stopped; {kept}. Run the same command to resume.', file=sys.stderr, flush=True)
    # Skips the interpreter's shutdown, which waits for threads of libraries. Without a code, the
    # signal went to another process.
    os._exit(_codes[-1] if _codes else EXIT_CODES[signal.SIGTERM])
