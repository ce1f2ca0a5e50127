"""Requests: paced, tried again where that may help, and refused in one sentence."""

import datetime
import email.utils
import threading
import time

import pytest

from jdkd.config import LLMSpec
from jdkd.systems.llm import client as client_module
from jdkd.systems.llm.client import Client, retry_after
from tests.helpers import llm_server

KEY = 'sk-secret-1234'
BODY = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'Query: a\nPassage: a'}]}
BODY |= {'logprobs': True, 'top_logprobs': 5}


@pytest.fixture
def fast(monkeypatch):
    """Waits of milliseconds; the list has how long they would be."""
    waits = []
    monkeypatch.setattr(client_module.random, 'uniform', lambda low, high: high)

    def wait(self, seconds):
        waits.append(seconds)
        if self._stop.is_set():
            raise client_module.Stopped

    monkeypatch.setattr(Client, '_wait', wait)
    return waits


def spec(server, **changes):
    return LLMSpec(base_url=server.url, model='tiny', **{'timeout': 5.0, **changes})


def post(spec):
    with Client('llm', spec) as client:
        answer = client.post(BODY, "query 'q1' with passage 'p1'")
        return answer, client.retried


def faults(*script):
    return lambda i, body: script[i] if i < len(script) else None


def test_passing_faults_are_tried_again_ever_later(fast):
    script = (500, {}, 'oh'), (503, {}, ''), (429, {}, 'slow down'), (408, {}, '')
    with llm_server.Server(llm_server.judge, fault=faults(*script)) as server:
        answer, retried = post(spec(server))
    assert answer['choices'] and retried == 4
    assert [wait for wait in fast if wait] == [1, 2, 4, 8]


def test_retry_after_is_honoured_by_all_requests():
    with llm_server.Server(
        llm_server.judge, fault=faults((429, {'retry-after': '1'}, ''))
    ) as server:
        with Client('llm', spec(server)) as client:
            threads = [
                threading.Thread(target=client.post, args=(BODY, lambda: 'x')) for _ in range(2)
            ]
            threads[0].start()
            while not server.requests:
                time.sleep(0.01)
            time.sleep(0.3)  # The answer has come back.
            threads[1].start()
            for thread in threads:
                thread.join()
        times = [seconds for seconds, *_ in server.requests]
    assert min(times[1:]) - times[0] > 0.95


def test_retry_after_may_be_a_date_or_nonsense():
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 28 < retry_after(email.utils.format_datetime(soon, usegmt=True)) <= 30
    assert 28 < retry_after(soon.strftime('%a, %d %b %Y %H:%M:%S -0000')) <= 30
    assert retry_after('2.5') == 2.5
    assert [retry_after(text) for text in (None, '', 'soon', 'nan', '-3')] == [0] * 5
    assert retry_after('1e9') == retry_after('inf') == 900


def test_the_last_try_says_what_went_wrong(fast):
    with llm_server.Server(
        llm_server.judge, fault=lambda i, body: (500, {}, 'a\x1b[31m')
    ) as server:
        with pytest.raises(ConnectionError) as error:
            post(spec(server, retries=2))
        assert len(server.requests) == 3
    message = str(error.value)
    assert "no answer for query 'q1' with passage 'p1' in 3 tries" in message
    assert 'the last: status 500' in message and '\x1b' not in message


def test_a_silent_server_times_out(fast):
    def hang(i, body):
        time.sleep(1)

    with llm_server.Server(llm_server.judge, fault=hang) as server:
        with pytest.raises(ConnectionError, match=r'in 2 tries.*no answer within 0.2 seconds'):
            post(spec(server, timeout=0.2, retries=1))


def test_no_server_is_a_sentence(fast):
    with llm_server.Server(llm_server.judge) as server:
        gone = spec(server, retries=1)
    with pytest.raises(ConnectionError, match=r'systems.llm: http.*/v1/chat/completions gave no'):
        post(gone)
    with pytest.raises(ConnectionError, match=r'nothing answers at http.*/v1/models'):
        client_module.check('llm', gone)


@pytest.mark.parametrize('status', [400, 401, 404, 422, 302])
def test_a_refusal_is_not_tried_again(fast, status):
    with llm_server.Server(
        llm_server.judge, fault=lambda i, body: (status, {}, 'no such model')
    ) as server:
        with pytest.raises(ValueError, match=rf'status {status} \(no such model\); correct base_'):
            post(spec(server))
        assert len(server.requests) == 1


def test_what_is_no_json_is_a_sentence(fast):
    with llm_server.Server(
        llm_server.judge, fault=lambda i, body: (200, {}, '<html>Welcome')
    ) as server:
        with pytest.raises(
            ValueError, match=r"for query 'q1' with passage 'p1' is no JSON \(<html"
        ):
            post(spec(server))


def test_the_key_comes_from_the_environment_and_shows_nowhere(fast, monkeypatch):
    monkeypatch.setenv('MY_KEY', KEY)
    with llm_server.Server(
        llm_server.judge, fault=lambda i, body: (401, {}, f'bad key {KEY}')
    ) as server:
        with pytest.raises(ValueError, match=r'bad key \*\*\*') as error:
            post(spec(server, api_key_variable='MY_KEY'))
        ((_, _, headers),) = server.requests
    assert headers['authorization'] == f'Bearer {KEY}' and KEY not in str(error.value)
    with llm_server.Server(llm_server.judge) as server:
        post(spec(server))
        ((_, _, headers),) = server.requests
    assert 'authorization' not in headers  # None is sent unless the config names its variable.


@pytest.mark.parametrize(('key', 'problem'), [('', 'is not set'), ('sk…1', 'characters')])
def test_a_key_that_cannot_be_used_is_a_sentence(monkeypatch, key, problem):
    monkeypatch.setenv('MY_KEY', key)
    with pytest.raises(ValueError, match=f'MY_KEY.*{problem}') as error:
        client_module.read_key(LLMSpec(api_key_variable='MY_KEY'))
    assert not key or key not in str(error.value)


def test_requests_keep_the_rate():
    with llm_server.Server(llm_server.judge) as server:
        with Client('llm', spec(server, requests_per_minute=600)) as client:
            threads = [
                threading.Thread(target=client.post, args=(BODY, lambda: 'x')) for _ in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        times = sorted(seconds for seconds, *_ in server.requests)
    assert times[-1] - times[0] > 0.4  # Five intervals of a tenth, less what the first waited.
