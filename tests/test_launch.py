"""The launch script against a stand-in gcloud that records its calls."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def launch(tmp_path):
    """launch(*args, exists) -> (return code, calls of gcloud)."""
    log = tmp_path / 'calls'
    stand_in = tmp_path / 'bin' / 'gcloud'
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/bash\n'
        'if [[ $4 == describe ]]; then exit "$DESCRIBE"; fi\n'
        f'[[ -t 0 ]] || cat > /dev/null; printf "%s\\n" "$*" >> {log}\n'
    )
    stand_in.chmod(0o755)

    def run(*args, exists):
        env = {
            **os.environ,
            'PATH': f'{stand_in.parent}:{os.environ["PATH"]}',
            'DESCRIBE': '0' if exists else '1',
        }
        done = subprocess.run(
            ['bash', ROOT / 'launch' / 'tpu_vm.sh', *args],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done, log.read_text() if log.exists() else ''

    return run


def test_creates_installs_starts_and_follows(launch):
    done, calls = launch('a', 'z1', 'v6e-8', '--', '--config.rounds=3', exists=False)
    assert done.returncode == 0, done.stderr
    create, copy, *_ = calls.splitlines()
    assert create == (
        'compute tpus tpu-vm create a --zone z1 --accelerator-type v6e-8 --version v2-alpha-tpuv6e'
    )
    assert copy.startswith('compute tpus tpu-vm ssh a --zone z1 --command mkdir -p jdkd')
    order = [calls.index(s) for s in ('tar -x', "-e '.[tpu]'", 'tmux', 'tail')]
    assert order == sorted(order)
    assert 'jdkd.main\\ --config.rounds=3' in calls


def test_an_existing_machine_is_used(launch):
    done, calls = launch('a', 'z1', exists=True)
    assert done.returncode == 0, done.stderr
    assert 'create' not in calls and 'configs/mta4dpr.py' in calls


def test_usage(launch):
    done, calls = launch('a', exists=True)
    assert done.returncode == 2 and 'launch/tpu_vm.sh NAME ZONE' in done.stderr and not calls
