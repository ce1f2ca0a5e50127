"""Measures seconds and peak memory, and writes figures as JSON; all benchmarks use it."""

import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading
import time

import jax

from jdkd.runtime import stages


def anonymous() -> int:
    """Bytes of the process that no file backs: the pages of memory-mapped files can be dropped."""
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith('RssAnon:'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/self/status has no RssAnon; this benchmark needs Linux.')


@contextlib.contextmanager
def peak(result: dict, name: str):
    """Adds `seconds`, `peak_anonymous_mib` and what of it was there before to `result[name]`."""
    before, highest, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.02):
            highest[0] = max(highest[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    result[name] = {
        'seconds': round(seconds, 2),
        'before_anonymous_mib': round(before / 2**20),
        'peak_anonymous_mib': round(max(highest[0], anonymous()) / 2**20),
    }
    print(name, result[name], flush=True)


def write(name: str, result: dict) -> None:
    """Writes benchmarks/results/<name>.json; the command keeps names of directories to itself."""
    arguments = [
        re.sub(r'(?:(?<=[=:,])|^)/[^,]*', 'DIRECTORY', argument) for argument in sys.argv[1:]
    ]
    report = {
        'command': ' '.join(
            ['python -m', f'benchmarks.{pathlib.Path(sys.argv[0]).stem}', *arguments]
        ),
        'commit': _commit(),
        'hardware': {
            'cpu': cpu(),
            'cores': len(os.sched_getaffinity(0)),
            'device': jax.devices()[0].device_kind,
            'devices': jax.device_count(),
            # Above the number of cores, others were computing too.
            'load_average': [round(x, 1) for x in os.getloadavg()],
        },
        **result,
    }
    path = pathlib.Path(__file__).parent / 'results' / f'{name}.json'
    path.parent.mkdir(exist_ok=True)
    stages.write_json(path, report)
    print(json.dumps(report, indent=2))


def _commit() -> str | None:
    """Of the working tree, with a plus where code of it has changed; None outside of one."""

    def git(*arguments):
        root = pathlib.Path(__file__).parent.parent
        command = ['git', '-C', str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no', '--', '*.py')
        return git('rev-parse', '--short=12', 'HEAD') + '+' * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu() -> str:
    """The model of the processor."""
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':', 1)[1].strip()
    return platform.processor()
