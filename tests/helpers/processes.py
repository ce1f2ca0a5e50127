"""Runs functions, above all the command line, in processes forked where all imports are done.

Importing jdkd takes seconds. A server process (multiprocessing's forkserver) imports it once for
each test process; a child forked there starts at once. No JAX backend exists before the fork, so
each child chooses its own devices.
"""

import atexit
import dataclasses
import multiprocessing
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from jdkd.runtime import huge_pages

ROOT = pathlib.Path(__file__).parents[2]
# Not bm25s, which computes with JAX when it is imported: JAX's threads do not survive a fork.
_IMPORTS = ['jdkd.main', 'matplotlib.pyplot', 'scann', 'ir_measures', 'tests.helpers.train_steps']
_IMPORTS += ['transformers.models.auto.tokenization_auto']
_IMPORTS += ['transformers.models.bert.tokenization_bert']


def environment(devices: int = 1) -> dict[str, str]:
    """Environment variables for a process with `devices` virtual CPU devices."""
    # The programs run for moments: optimising them takes longer than it saves.
    options = '--xla_backend_optimization_level=0 --xla_force_host_platform_device_count='
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{options}{devices}'} | _STARTED


# A child has no command line of its own to start anew.
_STARTED = {huge_pages.VARIABLE: f'{huge_pages.SETTING}=0'}
ONE_DEVICE = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''} | _STARTED  # As on a laptop.


class Process:
    """A forked child, with the methods of `subprocess.Popen` that tests use.

    Standard output and error go to files: `stdout`, and `stderr` or the same file.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *args: object,
        stdout: pathlib.Path,
        stderr: pathlib.Path | None = None,
        stdin: str = '',
        env: Mapping[str, str] = ONE_DEVICE,
    ):
        self.stdout = stdout
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(_IMPORTS)
        self._process = context.Process(
            target=_child, args=(function, args, stdout, stderr, stdin, dict(env))
        )
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process, if it still runs, and waits for its end."""
        self._process.kill()
        self._process.join()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.returncode

    def output(self) -> str:
        return self.stdout.read_text()


def _child(function, args, stdout, stderr, stdin, env) -> None:
    with stdout.open('w') as out, (stderr or stdout).open('a') as err:
        os.dup2(out.fileno(), 1)
        os.dup2((err if stderr else out).fileno(), 2)
    with tempfile.TemporaryFile('w+') as f:
        f.write(stdin)
        f.seek(0)
        os.dup2(f.fileno(), 0)
    sys.stdin = open(0, closefd=False)
    os.environ.update(env)
    os.chdir(ROOT)
    try:
        function(*args)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out.


def jdkd(*args: object) -> None:
    """The command line; for a child process."""
    sys.argv = ['jdkd', *map(str, args)]
    from jdkd import main

    main.cli()


@dataclasses.dataclass(frozen=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


def run_jdkd(*args: object, stdin: str = '', env: Mapping[str, str] = ONE_DEVICE) -> Completed:
    """Runs the command line to its end."""
    with tempfile.TemporaryDirectory() as directory:
        out, err = (pathlib.Path(directory, name) for name in ('stdout', 'stderr'))
        process = Process(jdkd, *args, stdout=out, stderr=err, stdin=stdin, env=env)
        return Completed(process.wait(), out.read_text(), err.read_text())


def start_group(
    count: int, function: Callable[..., object], *args: object, log: pathlib.Path, devices: int = 1
) -> list[Process]:
    """Starts `count` processes of one distributed program.

    Each gets the arguments and the flags by which the processes find each other, and writes to
    `log` with its index as suffix.
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    flags = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}']
    return [
        Process(
            function,
            *args,
            *flags,
            f'--process_index={i}',
            stdout=log.with_suffix(f'.{i}'),
            env=environment(devices),
        )
        for i in range(count)
    ]


def finish(processes: list[Process], timeout: float = 900) -> list[str]:
    """Waits for all processes, kills those that are late, and returns what each one wrote."""
    try:
        for process in processes:
            process.wait(timeout)
    finally:
        for process in processes:
            process.kill()
    return [process.output() for process in processes]
