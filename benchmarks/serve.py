"""Loads the server of an index, beside sentence-transformers' model behind the same application.

python -m benchmarks.serve --index my_index --queries scifact/queries.jsonl

Needs torch and sentence-transformers beside jdkd[serve]. Both servers hold the same student and the
same embeddings, answer `/search` with the 10 best passages, and take turns under load from clients
that ask again as soon as they are answered. CPU time is that of the server's process, which other
work on the machine hardly changes; latencies and requests a second are as they were there and then.
"""

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import socket
import time
import urllib.parse
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from benchmarks import measure

_INDEX = flags.DEFINE_string('index', None, 'Index to serve.', required=True)
_QUERIES = flags.DEFINE_string(
    'queries', None, 'File of questions: JSON lines with text, as in BEIR.', required=True
)
_CLIENTS = flags.DEFINE_list('clients', ['1', '8', '64'], 'Clients at a time.')
_REQUESTS = flags.DEFINE_integer('requests', 256, 'Requests of a turn.')
_TURNS = flags.DEFINE_integer('turns', 3, 'Turns of each server at each number of clients.')
_K = 10
_SIDES = ('jdkd', 'sentence-transformers')


def serve(side: str, directory: str, listening: socket.socket, ready) -> None:
    """Serves an index; in a process of its own."""
    import uvicorn

    from jdkd.indexing.index import open_index
    from jdkd.serving import app, service

    index = open_index(directory)
    served = service.of_index(index)
    if side == 'jdkd':
        served.warm_up()
    else:
        served = service.Service(
            side, len(index), served.width, theirs(index), {}, warm_up=lambda: None
        )
        served.student([service.Search('a ' * 32, _K)] * 8)
    server = app.Server(served)
    config = uvicorn.Config(server.app, access_log=False, log_level='warning')
    ready.set()
    uvicorn.Server(config).run(sockets=[listening])


def theirs(index):
    """The same student and search by sentence-transformers and torch."""
    import sentence_transformers
    import torch

    from jdkd.indexing.contents import STUDENT
    from jdkd.indexing.index import read

    student = sentence_transformers.SentenceTransformer(str(index.directory / STUDENT))
    passages = torch.from_numpy(index.vectors[:]).to(student.device)

    def answer(requests):
        embeddings = student.encode_query(
            [request.query for request in requests],
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        best = torch.topk(embeddings @ passages.T, _K)
        found = zip(best.indices.cpu().numpy(), best.values.cpu().numpy(), strict=True)
        return [read(index, rows, scores) for rows, scores in found]

    return answer


@contextlib.contextmanager
def started(side: str) -> Iterator[tuple[int, int]]:
    """Runs a server; gives its port and process id."""
    context = multiprocessing.get_context('spawn')
    ready = context.Event()
    with socket.create_server(('127.0.0.1', 0)) as listening:
        arguments = side, _INDEX.value, listening, ready
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        while not ready.wait(1):
            if not process.is_alive():
                raise RuntimeError(f'the server of {side} has ended.')
        try:
            assert process.pid is not None
            yield listening.getsockname()[1], process.pid
        finally:
            process.kill()


async def ask(
    port: int, questions: Iterator[str], seconds: list[float], scores: dict[str, list[float]]
) -> None:
    """A client with one connection: asks the questions that are left, and keeps their scores."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    for question in questions:
        query = urllib.parse.urlencode({'q': question, 'k': _K})
        start = time.perf_counter()
        writer.write(f'GET /search?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n'.encode())
        head = await reader.readuntil(b'\r\n\r\n')
        (length,) = (
            int(line.partition(b':')[2])
            for line in head.split(b'\r\n')
            if line.lower().startswith(b'content-length:')
        )
        body = await reader.readexactly(length)
        seconds.append(time.perf_counter() - start)
        if not head.startswith(b'HTTP/1.1 200'):
            raise RuntimeError(f'{head.decode()}{body.decode()}')
        scores[question] = [hit['score'] for hit in json.loads(body)['hits']]
    writer.close()


async def load(
    port: int, clients: int, questions: list[str], scores: dict[str, list[float]]
) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them together."""
    seconds: list[float] = []
    left = iter(questions)
    start = time.perf_counter()
    await asyncio.gather(*(ask(port, left, seconds, scores) for _ in range(clients)))
    return seconds, time.perf_counter() - start


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far; Linux only."""
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main(_) -> None:
    with open(_QUERIES.value, encoding='utf-8') as file:
        questions = [json.loads(line)['text'] for line in file]
    questions = list(itertools.islice(itertools.cycle(questions), _REQUESTS.value))
    random.Random(0).shuffle(questions)
    rows, scores = [], {side: {} for side in _SIDES}
    with contextlib.ExitStack() as stack:
        servers = {side: stack.enter_context(started(side)) for side in _SIDES}
        for side, (port, _pid) in servers.items():
            asyncio.run(load(port, 8, questions[:64], scores[side]))
        for clients in map(int, _CLIENTS.value):
            found = {side: ([], 0.0, 0.0) for side in _SIDES}
            for _turn in range(_TURNS.value):
                for side, (port, pid) in servers.items():
                    before = cpu_seconds(pid)
                    seconds, wall = asyncio.run(load(port, clients, questions, scores[side]))
                    all_seconds, all_wall, cpu = found[side]
                    cpu += cpu_seconds(pid) - before
                    found[side] = all_seconds + seconds, all_wall + wall, cpu
            for side, (seconds, wall, cpu) in found.items():
                p50, p99 = 1000 * np.percentile(seconds, [50, 99])
                row = {'clients': clients, 'server': side, 'p50_ms': p50, 'p99_ms': p99}
                row |= {'requests_per_second': len(seconds) / wall}
                row |= {'cpu_ms_per_request': 1000 * cpu / len(seconds)}
                rows.append(row)
    ours, others = (np.array([scores[side][q] for q in set(questions)]) for side in _SIDES)
    difference = float(abs(ours - others).max())
    print(f'largest difference of a score: {difference:.1e}')
    print(f'{"clients":>7}  {"server":21}  p50 ms  p99 ms  requests/s  CPU ms/request')
    for row in rows:
        print(
            f'{row["clients"]:7}  {row["server"]:21}  {row["p50_ms"]:6.1f}  {row["p99_ms"]:6.1f}  '
            f'{row["requests_per_second"]:10.1f}  {row["cpu_ms_per_request"]:14.1f}'
        )
    measure.write('serve', {'largest_difference_of_a_score': difference, 'rows': rows})


if __name__ == '__main__':
    app.run(main)
