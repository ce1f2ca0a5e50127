"""Indexing that is killed and started again ends as indexing that was left alone."""

import os
import signal
import sys

import pytest

import jdkd
from tests.helpers import indexes, processes

PART = 8  # Vectors a file.


def jdkd_until(path, count, *argv):
    """The command line in a child process; kills it at the n-th touch of such a path."""
    from jdkd.indexing import building

    building._FILE_ROWS = PART
    left = count

    def hook(event, args):
        nonlocal left
        if event in ('open', 'os.rename') and isinstance(args[0], str | os.PathLike):
            if path in os.fspath(args[0]):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

    if path:
        sys.addaudithook(hook)
    processes.jdkd(*argv)


def run(log, *argv, path=None, count=1):
    process = processes.Process(jdkd_until, path, count, *argv, stdout=log)
    code = process.wait(300)
    assert code == (-signal.SIGKILL if path else 0), log.read_text()
    return log.read_text()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('kills')
    indexes.write_student(home / 'student')
    indexes.write(home / 'first.jsonl', indexes.passages(0, 30))
    indexes.write(home / 'more.jsonl', indexes.passages(30, 55))
    for argv in commands(home, home / 'alone'):
        run(home / 'log', *argv)
    return home


def commands(home, directory):
    yield (
        'index',
        f'--student={home / "student"}',
        f'--collection={home / "first.jsonl"}',
        f'--output={directory}',
    )
    yield 'add', directory, home / 'more.jsonl'


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ('killed', 'path', 'count'),
    [
        (0, 'student.tmp', 5),
        (0, 'passages.tmp/', 2),
        (0, 'vectors.tmp/vectors-00002', 1),
        (0, 'index.json.tmp', 3),
        (1, 'vectors.tmp/vectors-00001', 2),
        (1, 'index.json.tmp', 2),
    ],
)
def test_a_killed_command_resumes(tmp_path, home, killed, path, count):
    directory = tmp_path / 'index'
    for i, argv in enumerate(commands(home, directory)):
        if i == killed:
            run(tmp_path / 'killed', *argv, path=path, count=count)
            if i == 1:  # Nothing of the index is lost meanwhile.
                assert len(jdkd.open_index(directory)) == 30
        said = run(tmp_path / 'log', *argv)
        if i == killed and 'vectors-' in path:
            assert 'resuming' in said
    assert indexes.tree(directory) == indexes.tree(home / 'alone')
