import signal
import subprocess
import sys

import pytest

from jdkd.runtime import lock

HOLD = """
import pathlib, sys
from jdkd.runtime import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
    workdir = tmp_path / 'runs/a'
    command = [sys.executable, '-c', HOLD, str(workdir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b'held\n'
        with pytest.raises(RuntimeError, match=f'runs/a is in use by process {first.pid}; wait'):
            with lock.held(workdir):
                pass
        with lock.held(tmp_path / 'runs/b'):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with lock.held(workdir):
            pass
