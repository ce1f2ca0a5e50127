"""Runs in a bucket of an S3 server: killed machines, empty caches, several processes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tests import kills
from tests.helpers import buckets, processes, shared, tiny

pytest.importorskip('s3fs')
pytest.importorskip('moto.server')
pytestmark = [pytest.mark.slow, pytest.mark.processes]

URL = f's3://{buckets.BUCKET}/runs/killed'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """With a finished run in `alone`; that of test_kills.py."""

    def build(home):
        tiny.write(home)
        assert kills.run(kills.command(home, home / 'alone'), home / 'log') == 0

    return shared.build_once(tmp_path_factory, 'kills', build)


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with buckets.server(tmp_path_factory.mktemp('s3') / 'log') as variables:
        yield variables


def run_until(name, count, *argv):
    """The command line, which kills itself as it uploads or downloads an object the n-th time.

    With a count of 0 it sends itself SIGTERM as it writes such a file, and uploads no part before.
    """
    from jdkd.runtime import bucket, lease, object_store

    bucket.SCAN_SECONDS, lease.BEAT_SECONDS = 0.05, 0.2
    if name and not count:
        bucket.SCAN_SECONDS = 900.0
        workdir = pathlib.Path(os.environ['JDKD_CACHE'], 's3', URL.removeprefix('s3://'))
        kills._kill_at(kills.Kill(path=name, count=1, signal=signal.SIGTERM), workdir)
    left, path = count, object_store.ObjectStore._path

    def hook(store, touched):
        nonlocal left
        if count and touched.startswith(name):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return path(store, touched)

    object_store.ObjectStore._path = hook
    processes.jdkd(*argv)


def run(home, server, cache, name='', count=0):
    """Runs or resumes the run on a machine; returns its log."""
    log = cache.with_suffix('.log')
    argv = ['--config', f'{kills.ROOT}/tests/helpers/tiny.py:{home}', '--workdir', URL]
    env = {**processes.environment(), **server, 'JDKD_CACHE': str(cache)}
    process = processes.Process(run_until, name, count, *argv, stdout=log, env=env)
    code = process.wait(900)
    expected = (-signal.SIGKILL if count else 75) if name else 0
    assert code == expected, log.read_text()[-3000:]
    return log.read_text()


def test_a_run_goes_on_from_an_empty_cache_wherever_a_machine_was_killed(home, server, tmp_path):
    # While a stage is uploaded; in training, by SIGTERM, when the checkpoint is uploaded; while the
    # next machine downloads that; in training, after another checkpoint was uploaded; before the
    # manifest of a round.
    moments = [
        ('systems/bm25/index/', 5),
        ('systems/tuned/train.tmp/checkpoints/2', 0),
        ('systems/tuned/train/checkpoints/', 8),
        ('rounds/00/train/checkpoints/4/', 1),
        ('rounds/00/train/manifest.json', 1),
    ]
    logs = [run(home, server, tmp_path / str(i), *moment) for i, moment in enumerate(moments)]
    assert re.search('restored step [23] of .*/systems/tuned/train', logs[-2])
    assert re.search('restored step 2 of .*/rounds/00/train', logs[-1])
    log = run(home, server, tmp_path / 'last')
    workdir = tmp_path / 'last/s3' / URL.removeprefix('s3://')
    found, expected = kills.outcome(workdir), kills.outcome(home / 'alone')
    assert found == expected
    assert not list(workdir.rglob('*.tmp*')) and not (workdir / 'replaced').exists()
    assert 'building' in log


def test_two_processes_measure_a_run_from_an_empty_cache(home, server, tmp_path):
    code = subprocess.run(
        ['bash', kills.ROOT / 'launch/local.sh', '2', '--', '--mode', 'eval', '--workdir', URL],
        cwd=kills.ROOT,
        env={**os.environ, **server, 'JDKD_CACHE': str(tmp_path), 'PYTHON': sys.executable},
        capture_output=True,
        text=True,
    )
    assert code.returncode == 0, code.stdout[-3000:]
    workdir = tmp_path / 's3' / URL.removeprefix('s3://')
    # What training needed alone stays in the bucket.
    assert not list(workdir.glob('systems/dense/*/')) and not list(workdir.glob('rounds/*/dataset'))
    assert not list(workdir.glob('systems/*/embeddings-*/'))
    measured = json.loads((workdir / 'eval.json').read_text())['test']['student']
    report = json.loads((home / 'alone/report.json').read_text())
    assert measured == pytest.approx(report['test']['student'])
