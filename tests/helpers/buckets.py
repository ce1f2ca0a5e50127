"""An S3 server in a process of its own, and machines that use it."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

BUCKET = 'mine'
_VARIABLES = {
    'AWS_ACCESS_KEY_ID': 'key',
    'AWS_SECRET_ACCESS_KEY': 'secret',
    'AWS_DEFAULT_REGION': 'us-east-1',
}


@contextlib.contextmanager
def server(log: pathlib.Path) -> Iterator[dict[str, str]]:
    """Serves an empty bucket; gives the environment variables by which s3fs finds it."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
    with log.open('w') as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    address = f'http://127.0.0.1:{port}'
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f'{address}/moto-api/').close()
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        request = urllib.request.Request(f'{address}/{BUCKET}', method='PUT')
        urllib.request.urlopen(request).close()
        yield {**_VARIABLES, 'AWS_ENDPOINT_URL': address}
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def machine(url: str, caches: pathlib.Path, *, update: bool = False) -> Iterator[pathlib.Path]:
    """A command on a machine whose caches are there; gives the workdir, which it holds."""
    from jdkd.runtime import bucket, lock

    workdir = visit(url, caches)
    with lock.hold(workdir, update=update), bucket.hold(workdir):
        (workdir / 'config.json').touch()  # Every run has one.
        yield workdir


def visit(url: str, caches: pathlib.Path) -> pathlib.Path:
    """The workdir of a command there that only reads."""
    from jdkd.runtime import bucket, stages

    os.environ['JDKD_CACHE'] = str(caches)  # Restored by the fixture.
    bucket._open.clear()
    stages._verified.clear()
    return bucket.open_workdir(url)


def objects(url, content=False):
    """Names of the objects of a run, without its lease and its config."""
    from jdkd.runtime import lease
    from jdkd.runtime.object_store import ObjectStore

    store = ObjectStore(url)
    own = (n for n in store.list() if not n.startswith(lease.PREFIX))
    names = sorted(n for n in own if n != 'config.json')
    return store.read(names) if content else names


def build_stage(workdir, name='a/b', inputs=None, content='12345', **options):
    """Builds a stage of one file; returns its result."""
    from jdkd.runtime import stages

    def build(out):
        (out / 'x.txt').write_text(content)
        return content[:5]

    return stages.build_stage(workdir / name, inputs or {}, build, **options)['result']


def fails(out):
    """The build of a stage that must not be built."""
    raise AssertionError('built again')


def wait_for(condition, seconds=20):
    """Waits until the condition holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
