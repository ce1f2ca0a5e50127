"""A server in a process of its own, as users start it."""

import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest

from tests.helpers import indexes, processes

pytest.importorskip('uvicorn')


def ask(address, path):
    try:
        with urllib.request.urlopen(address + path, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def send(address, content):
    """The first line of the answer to bytes that may be no HTTP."""
    host, port = address.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(content)
        return connection.recv(1000).split(b'\r\n')[0]


@pytest.mark.slow
def test_a_server_answers_until_it_is_stopped(tmp_path):
    indexes.write_student(tmp_path / 'student')
    passages = indexes.write(tmp_path / 'passages.jsonl', indexes.passages(0, 12))
    index = tmp_path / 'index'
    indexes.create(index, tmp_path / 'student', passages)
    log = tmp_path / 'log'
    log.touch()
    process = processes.Process(processes.jdkd, 'serve', index, '--port=0', stdout=log)
    try:
        while not (found := re.search(r'on (http://127\.0\.0\.1:\d+)/', process.output())):
            assert process.poll() is None, process.output()
            time.sleep(0.05)
        assert f'serving 12 passages of {index} on' in process.output()
        status, body = ask(found[1], '/search?q=red+cat&k=3')
        assert status == 200 and len(json.loads(body)['hits']) == 3
        assert ask(found[1], '/search?q=%ff')[0] == 400
        assert b'<h1>' in ask(found[1], '/')[1]
        assert b' 400 ' in send(found[1], b'nonsense\r\n\r\n')
        line = b'GET /search?q=' + 100_000 * b'x' + b' HTTP/1.1\r\nHost: localhost\r\n\r\n'
        assert b' 4' in send(found[1], line)
        # Listens on this machine alone.
        port = int(found[1].rpartition(':')[2])
        taken = processes.run_jdkd('serve', index, f'--port={port}')
        assert taken.returncode == 1 and f'cannot listen on 127.0.0.1:{port}' in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.output()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['serve', 'none', '--port=0'], 'none holds neither an index nor a run'),
        (['serve', 'a', 'b'], 'jdkd serve takes DIR and flags'),
        (['search', '--port=1'], '--port is for --mode serve'),
    ],
)
def test_mistakes_get_one_sentence(args, message):
    done = processes.run_jdkd(*args)
    assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr
