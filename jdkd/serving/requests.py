"""Reads requests strictly: what cannot be meant is refused with one sentence."""

import asyncio
import functools
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.requests import Request

from jdkd.corpus.sources import parsing
from jdkd.runtime.messages import shown
from jdkd.serving.engine import DEPTHS

MAX_QUERY = 2_000  # Characters.
MAX_TEXTS = 256  # Of a request.
MAX_BODY = 2**20  # Bytes.
MAX_K = DEPTHS[-1]
_BODY_SECONDS = 30


class RefusedError(Exception):
    """A request that is not answered.

    Attributes:
        status: HTTP status, 4xx or 5xx.
        message: What is wrong, and how to mend it.
        headers: Of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def parameters(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The parameters of a query string, each at most once."""
    try:
        text = request.scope['query_string'].decode()
        pairs = urllib.parse.parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors='strict'
        )
    except UnicodeDecodeError:
        raise RefusedError(400, 'the query string is not UTF-8; percent-encode UTF-8.') from None
    except ValueError as error:
        raise RefusedError(400, f'the query string is malformed ({error}).') from None
    _check_known('parameter', [name for name, _ in pairs], known)
    return _each_once('parameter', pairs)


def query(found: Mapping[str, str]) -> str:
    """The parameter `q`."""
    text = found.get('q', '').strip()
    if not text:
        raise RefusedError(400, 'the parameter q is missing or empty; give a question.')
    if len(text) > MAX_QUERY:
        raise RefusedError(
            414, f'the question has {len(text):,} characters, more than {MAX_QUERY:,}; shorten it.'
        )
    return text


def depth(found: Mapping[str, str]) -> int:
    """The parameter `k`, by default 10."""
    text = found.get('k', '10')
    number = int(text) if re.fullmatch(r'\d{1,9}', text, re.ASCII) else 0
    if not 1 <= number <= MAX_K:
        raise RefusedError(400, f'k={shown(text)} must be a whole number from 1 to {MAX_K}.')
    return number


async def body(request: Request, known: Sequence[str] | None = None) -> dict[str, Any]:
    """The JSON object that is the request's body; with `known`, of no other fields."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        raise RefusedError(415, 'send JSON, with the header Content-Type: application/json.')
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY:
                    raise RefusedError(
                        413, f'the body is larger than {MAX_BODY:,} bytes; send fewer texts.'
                    )
    except TimeoutError:
        raise RefusedError(408, f'the body took over {_BODY_SECONDS} seconds; try again.') from None
    try:
        value = json.loads(
            content.decode(), object_pairs_hook=functools.partial(_each_once, 'field')
        )
    except UnicodeDecodeError:
        raise RefusedError(400, 'the body is not UTF-8.') from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f'the body is not JSON ({error}).') from None
    if not isinstance(value, dict):
        raise RefusedError(400, f'the body is no JSON object but {type(value).__name__}.')
    if known:
        _check_known('field', value, known)
    return value


def _check_known(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            message = f'there is no {kind} {shown(name)}; use {", ".join(known)}.'
            raise RefusedError(400, message)


def _each_once(kind: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RefusedError(400, f'a {kind} is given twice; give it once.')
    return found


def texts(value: Any, field: str) -> list[str]:
    """A text, or a list of texts, of a field."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not found:
        raise RefusedError(400, f'{field} must be a text or a list of texts, found {shown(value)}.')
    if len(found) > MAX_TEXTS:
        raise RefusedError(413, f'{field} has {len(found)} texts, more than {MAX_TEXTS}.')
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise RefusedError(400, f'{field}[{i}] must be a text, found {shown(text)}.')
        if not text.strip():
            raise RefusedError(400, f'{field}[{i}] is empty.')
        if parsing.SURROGATE.search(text):
            raise RefusedError(400, f'{field}[{i}] holds a lone surrogate, which is no character.')
    return found


def choice(value: Any, field: str, known: Sequence[Any]) -> Any:
    """A value of a field that is one of those known."""
    if isinstance(value, list | dict) or value not in known:
        listed = ', '.join(map(str, known))
        raise RefusedError(400, f'{field}={shown(value)} is not supported; use {listed}.')
    return value
