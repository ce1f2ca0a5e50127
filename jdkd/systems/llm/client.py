"""Requests to an OpenAI-compatible endpoint: paced, and tried again where that may help."""

import contextlib
import datetime
import email.utils
import json
import os
import random
import threading
import time
from typing import Any

from absl import logging

from jdkd.config import LLMSpec
from jdkd.runtime.messages import brief

try:
    import httpx2
except ImportError:  # An extra.
    httpx2 = None

_PATHS = {'chat': 'chat/completions', 'completions': 'completions'}
_PASSING = (408, 425, 429)  # Statuses under 500 that a later try may not meet.
_LONGEST_WAIT = 60.0  # Seconds between two tries, unless the server asks for more.
_CHECK_SECONDS = 10.0  # For the list of models.
_LONGEST_ASKED = 900.0  # Seconds that the server may ask for.


class Stopped(Exception):
    """Another request has failed for good, and this one was given up."""


def is_installed() -> bool:
    """Whether httpx2 is there."""
    return httpx2 is not None


class Client:
    """Sends requests of any number of threads; use it as a context, which closes connections.

    Args:
        name: The system's, for messages.

    Raises:
        ImportError: if httpx2 is missing.
        ValueError: if the variable that should hold the API key is not set.
    """

    def __init__(self, name: str, spec: LLMSpec):
        if httpx2 is None:
            raise ImportError(f"systems.{name} needs httpx2: pip install 'jdkd[llm]'.")
        self._name, self._spec = name, spec
        self._key = read_key(spec)
        self._url = f'{spec.base_url.rstrip("/")}/{_PATHS[spec.endpoint]}'
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(spec.timeout),
            limits=httpx2.Limits(max_connections=spec.concurrency),
            headers={'authorization': f'Bearer {self._key}'} if self._key else {},
        )
        self._pace = _Pace(spec.requests_per_minute)
        self._stop = threading.Event()
        self.retried = 0

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._http.close()

    def stop(self) -> None:
        """Ends all waits: requests that would be tried again raise `Stopped`."""
        self._stop.set()

    def post(self, body: dict[str, Any], what: str) -> Any:
        """The JSON of an answer; `what` says in messages what was asked.

        After a time-out, a lost connection, status 429 or 5xx it waits, twice as long each time
        and by chance up to half less, or as long as `Retry-After` says, and asks again.

        Raises:
            ConnectionError: if no try was answered.
            ValueError: if the server refuses the request, or its answer is no JSON.
        """
        content, problem = json.dumps(body).encode(), ''
        for attempt in range(self._spec.retries + 1):
            self._wait(self._pace.turn())
            response, asked, problem = self._try(content)
            if response is not None:
                return self._read(response, what)
            if attempt < self._spec.retries:
                self.retried += 1
                wait = min(2.0**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1)
                if asked:
                    self._pace.pause(asked)
                self._wait(max(wait, asked))
        raise ConnectionError(
            f'systems.{self._name}: {self._url} gave no answer for {what} in '
            f'{self._spec.retries + 1} tries; the last: {problem}. What was answered is kept: see '
            'that the server runs, and start the same command again.'
        )

    def check(self) -> None:
        """See the function `check`."""
        assert httpx2 is not None
        url = f'{self._spec.base_url.rstrip("/")}/models'
        try:
            response = self._http.get(url, timeout=min(self._spec.timeout, _CHECK_SECONDS))
        except httpx2.RequestError as error:
            raise ConnectionError(
                f'systems.{self._name}: nothing answers at {url} ({self._shown(error)}); start the '
                'server, or correct base_url.'
            ) from None
        if response.status_code in (401, 403):
            raise ValueError(
                f'systems.{self._name}: {url} refuses the API key with status '
                f'{response.status_code}; name the variable that holds it in api_key_variable.'
            )
        with contextlib.suppress(ValueError, KeyError, TypeError):
            models = [str(model['id']) for model in response.json()['data']]
            if models and self._spec.model not in models:
                logging.warning(
                    'systems.%s: %s knows no model %r, but %s',
                    self._name,
                    url,
                    self._spec.model,
                    brief(', '.join(models)),
                )

    def _try(self, content: bytes) -> tuple[Any, float, str]:
        """A response; or None, the seconds that the server asks to wait, and what went wrong."""
        assert httpx2 is not None
        try:
            response = self._http.post(
                self._url, content=content, headers={'content-type': 'application/json'}
            )
        except httpx2.TimeoutException:
            return None, 0.0, f'no answer within {self._spec.timeout:g} seconds'
        except httpx2.RequestError as error:
            return None, 0.0, self._shown(error)
        if response.status_code in _PASSING or response.status_code >= 500:
            asked = retry_after(response.headers.get('retry-after'))
            return None, asked, f'status {response.status_code} ({self._shown(response.text)})'
        return response, 0.0, ''

    def _read(self, response: Any, what: str) -> Any:
        if not response.is_success:
            raise ValueError(
                f'systems.{self._name}: {self._url} refuses {what} with status '
                f'{response.status_code} ({self._shown(response.text)}); correct base_url, model, '
                'endpoint, api_key_variable or extra of the system, or shorten prompts with '
                'passage_words.'
            )
        try:
            return response.json()
        except ValueError:
            raise ValueError(
                f'systems.{self._name}: the answer of {self._url} for {what} is no JSON '
                f'({self._shown(response.text)}); see that base_url is that of the API.'
            ) from None

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped

    def _shown(self, text: object) -> str:
        """Foreign text, without the API key, which servers may repeat."""
        shown = str(text)
        return brief(shown.replace(self._key, '***') if self._key else shown)


class _Pace:
    """Spaces the requests of all threads, `per_minute` of them; 0 for no limit."""

    def __init__(self, per_minute: float):
        self._interval = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Takes the next turn; returns the seconds until then."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        return turn - now

    def pause(self, seconds: float) -> None:
        """Lets no turn begin for some seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def check(name: str, spec: LLMSpec) -> None:
    """Asks the endpoint for its models, and warns if the system's is none of them.

    Servers without such a list pass.

    Raises:
        ConnectionError: if nothing answers.
        ValueError: if the key is refused.
    """
    with Client(name, spec) as client:
        client.check()


def read_key(spec: LLMSpec) -> str:
    """The API key that the environment holds; '' where none is asked for.

    Raises:
        ValueError: if the variable is not set.
    """
    if spec.api_key_variable is None:
        return ''
    key = os.environ.get(spec.api_key_variable, '').strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            f'the environment variable {brief(spec.api_key_variable)} (api_key_variable) holds '
            'characters that no API key has; set it anew.'
        )
    if not key:
        raise ValueError(
            f'the environment variable {brief(spec.api_key_variable)} (api_key_variable) is not '
            'set; set it to the API key.'
        )
    return key


def retry_after(header: str | None) -> float:
    """Seconds that a `Retry-After` header asks for: a number or a date; 0 for none."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_ASKED) if seconds == seconds else 0.0
