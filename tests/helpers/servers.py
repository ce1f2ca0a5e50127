"""A server of made-up passages, which no model finds, and one on a real port."""

import contextlib
import socket
import threading
import time

import numpy as np

from jdkd.indexing.index import Found
from jdkd.serving import app
from jdkd.serving.service import Embeddings, Search, Service

SCRIPT = '<script>document.title = "broken"</script><img src=x onerror="document.title=1">'
LONG = 'lorem ' * 100 + 'a red cat at last'


def found(query, k):
    """What the made-up student finds: nothing for 'nothing', an error for 'broken'."""
    if query == 'broken':
        raise RuntimeError('as asked')
    if query == 'nothing':
        return []
    texts = [f'The red cats sleep; {query}.', SCRIPT, LONG]
    return [Found(f'p{i}', 1 - i / 4, f'Title {i}' if i else '', t) for i, t in enumerate(texts)][
        :k
    ]


def answer(requests):
    return [
        found(r.query, r.k)
        if isinstance(r, Search)
        else Embeddings(np.full((len(r.texts), 2), float(r.kind == 'query'), np.float32), 5)
        for r in requests
    ]


def service(student=answer, others=()):
    return Service('toy', 3, 2, student, dict(others), lambda: None)


@contextlib.contextmanager
def running(application):
    """Serves an application on a free port of this machine; gives its address."""
    import uvicorn

    listening = socket.create_server(('127.0.0.1', 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level='warning'))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [listening]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f'http://127.0.0.1:{listening.getsockname()[1]}'
    finally:
        server.should_exit = True
        thread.join()


def made(*, others=(), **kwargs):
    """The application of made-up passages."""
    return app.Server(service(others=others), **kwargs).app
