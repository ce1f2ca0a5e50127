"""The ASGI application: routes, answers, limits and metrics."""

import base64
import contextlib
import functools
import pathlib
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import numpy as np
import prometheus_client
from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jdkd.run import STUDENT
from jdkd.serving import requests
from jdkd.serving.batching import Batcher, OverloadedError
from jdkd.serving.engine import SIZES
from jdkd.serving.requests import RefusedError
from jdkd.serving.service import Embeddings, Encode, Search, Service

WAITING = 256  # Requests that may wait for the student.
WAITING_OTHERS = 8  # The same for each system beside it, which may take seconds.
_KINDS = ('query', 'passage')
_PAGE = {'/': 'index.html', '/page.css': 'page.css', '/page.js': 'page.js'}
# Nothing from elsewhere, and nothing inline: text of passages cannot become code.
_HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
}


class Server:
    """Answers requests for a service; `app` is the ASGI application.

    Args:
        service: What is served.
        hosts: Values of the header Host that are answered; None for any. A page elsewhere could
            otherwise read a local server by a name that it makes point here (DNS rebinding).
        waiting: Requests that may wait for the student; more are refused with 503.
    """

    def __init__(
        self, service: Service, *, hosts: Sequence[str] | None = None, waiting: int = WAITING
    ):
        self.service = service
        self.batchers: dict[str, Batcher] = {
            STUDENT: Batcher(self._run_student, largest=SIZES[-1], waiting=waiting)
        }
        for name, run in service.others.items():
            self.batchers[name] = Batcher(run, largest=1, waiting=WAITING_OTHERS)
        self.metrics = _Metrics(self)
        routes = self._routes()
        self.app = Starlette(
            routes=routes,
            middleware=[
                Middleware(_Observer, metrics=self.metrics, paths={r.path for r in routes}),
                Middleware(_Hosts, hosts=list(hosts or ['*'])),
            ],
            exception_handlers={
                RefusedError: _refuse,
                HTTPException: _refuse,
                OverloadedError: _refuse,
                Exception: _fail,
            },
            lifespan=self._lifespan,
        )

    def _routes(self) -> list[Route]:
        return [
            *(Route(path, functools.partial(_file, name)) for path, name in _PAGE.items()),
            Route('/search', self.search),
            Route('/encode', self.encode, methods=['POST']),
            Route('/v1/embeddings', self.embeddings, methods=['POST']),
            Route('/v1/models', self.models),
            Route('/health', self.health),
            Route('/metrics', self.metrics.answer),
        ]

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for batcher in self.batchers.values():
                await stack.enter_async_context(batcher.started())
            yield

    def _run_student(self, batch: list) -> Sequence[Any]:
        self.metrics.batch.observe(len(batch))
        return self.service.student(batch)

    async def search(self, request: Request) -> Response:
        start = time.perf_counter()
        found = requests.parameters(request, ('q', 'k', 'system'))
        query, k = requests.query(found), requests.depth(found)
        system = requests.choice(found.get('system', STUDENT), 'system', list(self.batchers))
        hits = await self.batchers[system](Search(query, k))
        return JSONResponse(
            {
                'query': query,
                'system': system,
                'milliseconds': round(1000 * (time.perf_counter() - start), 2),
                'hits': [
                    {'rank': rank, **vars(hit), 'score': round(hit.score, 6)}
                    for rank, hit in enumerate(hits, 1)
                ],
            }
        )

    async def encode(self, request: Request) -> Response:
        fields = await requests.body(request, ('texts', 'kind'))
        kind = requests.choice(fields.get('kind', 'passage'), 'kind', _KINDS)
        found = await self._encode(requests.texts(fields.get('texts'), 'texts'), kind)
        return JSONResponse({'kind': kind, 'embeddings': found.vectors.tolist()})

    async def embeddings(self, request: Request) -> Response:
        """OpenAI's `POST /v1/embeddings`; `input_type` says whether texts are queries (ours)."""
        fields = await requests.body(request)
        kind = requests.choice(fields.get('input_type', 'passage'), 'input_type', _KINDS)
        form = requests.choice(
            fields.get('encoding_format', 'float'), 'encoding_format', ('float', 'base64')
        )
        if (dimensions := fields.get('dimensions')) is not None:
            requests.choice(dimensions, 'dimensions', (self.service.width,))
        found = await self._encode(requests.texts(fields.get('input'), 'input'), kind)
        write = _base64 if form == 'base64' else np.ndarray.tolist
        return JSONResponse(
            {
                'object': 'list',
                'model': self.service.name,
                'data': [
                    {'object': 'embedding', 'index': i, 'embedding': write(vector)}
                    for i, vector in enumerate(found.vectors)
                ],
                'usage': {'prompt_tokens': found.tokens, 'total_tokens': found.tokens},
            }
        )

    async def models(self, request: Request) -> Response:
        """OpenAI's `GET /v1/models`."""
        model = {'id': self.service.name, 'object': 'model', 'created': 0, 'owned_by': 'jdkd'}
        return JSONResponse({'object': 'list', 'data': [model]})

    async def health(self, request: Request) -> Response:
        return JSONResponse(
            {
                'status': 'ok',
                'model': self.service.name,
                'passages': self.service.passages,
                'dimensions': self.service.width,
                'systems': list(self.batchers),
            }
        )

    async def _encode(self, texts: list[str], kind: Any) -> Embeddings:
        return await self.batchers[STUDENT](Encode(texts, kind))


async def _file(name: str, request: Request) -> Response:
    """A file of the page."""
    return FileResponse(pathlib.Path(__file__).parent / 'page' / name)


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype('<f4').tobytes()).decode()


class _Metrics:
    """Prometheus metrics of one server."""

    def __init__(self, server: Server):
        self.registry = prometheus_client.CollectorRegistry()
        own: dict[str, Any] = {'registry': self.registry}
        self.requests = prometheus_client.Counter(
            'jdkd_requests', 'Requests answered.', ['path', 'status'], **own
        )
        self.seconds = prometheus_client.Histogram(
            'jdkd_request_seconds',
            'Seconds to answer a request.',
            ['path'],
            buckets=[0.001 * 2**i for i in range(15)],
            **own,
        )
        self.batch = prometheus_client.Histogram(
            'jdkd_batch_requests',
            'Requests that the student answers together.',
            buckets=[2**i for i in range(6)],
            **own,
        )
        waiting = prometheus_client.Gauge(
            'jdkd_waiting_requests', 'Requests that wait for a system.', ['system'], **own
        )
        for name, batcher in server.batchers.items():
            waiting.labels(name).set_function(lambda batcher=batcher: batcher.waiting)
        prometheus_client.Gauge('jdkd_passages', 'Passages that are searched.', **own).set(
            server.service.passages
        )

    async def answer(self, request: Request) -> Response:
        content = prometheus_client.generate_latest(self.registry)
        return Response(content, media_type='text/plain; version=0.0.4; charset=utf-8')


class _Hosts:
    """Starlette's check of the header Host, with an answer that says what to do."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted = []

        async def accept(*_: object) -> None:
            accepted.append(True)

        async def ignore(message: Message) -> None:
            pass

        await TrustedHostMiddleware(accept, self._hosts)(scope, receive, ignore)
        if accepted:
            await self._app(scope, receive, send)
            return
        message = (
            'this server answers requests for localhost alone, and the header Host names another; '
            'start it with --host=0.0.0.0 to answer for any name.'
        )
        answer = await _refuse(Request(scope), RefusedError(400, message))
        await answer(scope, receive, send)


class _Observer:
    """Counts and times requests, and adds the headers of all answers but `_fail`'s."""

    def __init__(self, app: ASGIApp, metrics: _Metrics, paths: Collection[str]):
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        path = scope['path'] if scope['path'] in self._paths else 'other'

        async def observe(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                own = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, 'headers': [*message['headers'], *own]}
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, OverloadedError):
        message = 'too many requests wait already; try again in a second.'
        error = RefusedError(503, message, {'Retry-After': '1'})
    elif isinstance(error, HTTPException):
        error = RefusedError(error.status_code, f'{error.detail}.', error.headers)
    assert isinstance(error, RefusedError)
    kind = 'invalid_request_error' if error.status < 500 else 'overloaded_error'
    return JSONResponse(
        {'error': {'message': error.message, 'type': kind, 'code': error.status}},
        error.status,
        error.headers,
    )


async def _fail(request: Request, error: Exception) -> Response:
    logging.error('%s failed: %r', request.url.path, error)
    fields = {'message': 'the server failed; its log says why.', 'type': 'server_error'}
    # Starlette answers a failure outside of the middleware.
    return JSONResponse({'error': {**fields, 'code': 500}}, 500, _HEADERS)
