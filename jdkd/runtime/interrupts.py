"""Being told to stop: SIGTERM, with which machines are taken away, and Ctrl-C.

Everything on disk is whole or can be gone on with at any moment, so that a process may end at once.
Training saves a checkpoint first, if that can be done in time.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: EX_TEMPFAIL, "try again".
_GRACE = 20  # Seconds that saving may take; clouds give about 30.

_training = threading.Event()
_stop = threading.Event()
_codes: list[int] = []  # What the process is to exit with.


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Ends the process on SIGTERM or Ctrl-C as the module says, while the context lasts.

    Of use in the main thread alone; elsewhere it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop.clear()
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Python's own handlers wait until the main thread leaves the library it is in, for minutes
    # where that builds an index: the byte in the pipe is there at once, for a thread to see.
    before = {code: signal.signal(code, lambda *_: None) for code in EXIT_CODES}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(read,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for code, handler in before.items():
            signal.signal(code, handler)
        os.close(write)
        watcher.join()
        os.close(read)


@contextlib.contextmanager
def training() -> Iterator[threading.Event]:
    """Gives a training the time to save; the event says that it is to, and to call `leave` then."""
    _training.set()
    try:
        yield _stop
    finally:
        _training.clear()


def leave() -> None:
    """Ends the process once all is saved."""
    _exit('the checkpoint is saved')


def _watch(read: int) -> None:
    while data := os.read(read, 1):
        code = EXIT_CODES.get(data[0])
        if code is None:
            continue
        _codes.append(code)
        if not _training.is_set() or _stop.is_set():
            _exit('what is finished is kept')
        print('\njdkd: told to stop; saving a checkpoint.', file=sys.stderr, flush=True)
        timer = threading.Timer(_GRACE, _exit, ['the last checkpoint is kept'])
        timer.daemon = True
        timer.start()
        _stop.set()


def _exit(kept: str) -> None:
    # Not through the interpreter's way out, which waits for threads of libraries.
    print(f'\njdkd: stopped; {kept}: the same command goes on.', file=sys.stderr, flush=True)
    # Without a code, another process was told to stop.
    os._exit(_codes[-1] if _codes else EXIT_CODES[signal.SIGTERM])
