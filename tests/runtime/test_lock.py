import os
import signal
import subprocess
import sys

import pytest

from jdkd.runtime import lock

HOLD = """
import pathlib, sys
from jdkd.runtime import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_has_died(tmp_path):
    workdir = tmp_path / 'runs/a'
    command = [sys.executable, '-c', HOLD, str(workdir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b'held\n'
        with pytest.raises(
            RuntimeError, match=f'runs/a is in use by process {first.pid}; .* another directory'
        ):
            with lock.hold(workdir):
                pass
        with lock.hold(tmp_path / 'runs/b'):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with lock.hold(workdir):
            pass


def test_a_link_out_of_the_workdir_is_refused(tmp_path):
    workdir, elsewhere = tmp_path / 'w', tmp_path / 'elsewhere'
    (workdir / 'rounds').mkdir(parents=True)
    elsewhere.mkdir()
    (workdir / 'inside').symlink_to(workdir / 'rounds')
    with lock.hold(workdir):
        pass
    (workdir / 'rounds/00').symlink_to(elsewhere)
    with pytest.raises(ValueError, match='rounds/00 is a symbolic link that leads out of the work'):
        with lock.hold(workdir):
            pass
    (workdir / 'rounds/00').unlink()
    (workdir / 'wandb').mkdir()  # Weights & Biases links to its logs.
    (workdir / 'wandb/core.log').symlink_to(elsewhere)
    with lock.hold(workdir):
        pass
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    (tmp_path / 'real').mkdir()
    with lock.hold(tmp_path / 'link'):  # The workdir itself may be anywhere.
        assert lock.current().workdir == tmp_path / 'link'


@pytest.mark.skipif(not os.geteuid(), reason='root may write anywhere')
def test_a_directory_that_is_not_writable_is_named(tmp_path):
    (tmp_path / 'rounds').mkdir(mode=0o500)
    with pytest.raises(PermissionError, match='rounds is not writable'):
        with lock.hold(tmp_path):
            pass
