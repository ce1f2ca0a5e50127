"""Several processes for tests: a program that each runs, and what starts them."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def environment(devices=1):
    """Of a process with some virtual CPU devices."""
    # Compiling takes longer here than what is compiled.
    options = '--xla_backend_optimization_level=0 --xla_force_host_platform_device_count='
    return {
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'{options}{devices}',
        'PYTHONPATH': str(ROOT),
    }


def start(count, *command, devices=1, **kwargs):
    """Starts `count` processes of a command, with the flags that let them find each other."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    flags = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}']
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command), *flags, f'--process_index={i}'],
            cwd=ROOT,
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **kwargs,
        )
        for i in range(count)
    ]


def finish(processes, timeout=900):
    """Waits for all; their output."""
    try:
        return [p.communicate(timeout=timeout)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.communicate()
