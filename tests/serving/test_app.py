"""The HTTP interface: what is asked is answered, and what cannot be meant is refused."""

import base64
import concurrent.futures
import json
import threading
import time

import numpy as np
import pytest

pytest.importorskip('starlette')
from starlette.testclient import TestClient  # noqa: E402

import jdkd  # noqa: E402
from jdkd.commands import serve  # noqa: E402
from jdkd.retrieval import encode, exact  # noqa: E402
from jdkd.serving import app, engine, requests  # noqa: E402
from jdkd.serving.service import _name, of_index  # noqa: E402
from tests.helpers import indexes, servers  # noqa: E402

JSON = {'content-type': 'application/json'}


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    home = tmp_path_factory.mktemp('served')
    indexes.write_student(home / 'student')
    passages = indexes.write(home / 'passages.jsonl', indexes.passages(0, 30))
    indexes.create(home / 'index', home / 'student', passages)
    return jdkd.open_index(home / 'index')


@pytest.fixture(scope='module')
def client(index):
    with TestClient(app.Server(of_index(index)).app) as client:
        yield client


@pytest.fixture(scope='module')
def toy():
    with TestClient(servers.made(), raise_server_exceptions=False) as client:
        yield client


def test_searches_as_the_index_does(client, index):
    for query, k in (('red cat', 10), ('ein Vogel & mehr?', 3), ('dog', 100)):
        answer = client.get('/search', params={'q': f' {query} ', 'k': k}).json()
        assert answer['query'] == query and answer['system'] == 'student'
        expected = index.search(query, k)
        assert [hit['id'] for hit in answer['hits']] == [hit.id for hit in expected]
        assert [hit['rank'] for hit in answer['hits']] == list(range(1, len(expected) + 1))
        for hit, other in zip(answer['hits'], expected, strict=True):
            assert (hit['title'], hit['text']) == (other.title, other.text)
            assert abs(hit['score'] - other.score) < 1e-5
    assert len(client.get('/search?q=cat').json()['hits']) == 10


@pytest.mark.parametrize('kind', ['query', 'passage'])
def test_embeds_as_the_retriever_does(client, index, kind):
    texts = ['red cat', 'dog', 'a bird that sings and swims and runs'] * 15
    expected = index.retriever.encode(texts, kind=kind)
    answer = client.post('/encode', json={'texts': texts, 'kind': kind}).json()
    np.testing.assert_allclose(answer['embeddings'], expected, atol=1e-5)
    body = {'input': texts, 'model': 'any', 'input_type': kind}
    answer = client.post('/v1/embeddings', json=body).json()
    assert [item['index'] for item in answer['data']] == list(range(len(texts)))
    vectors = [item['embedding'] for item in answer['data']]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    encoder = index.retriever.encoder
    store = encoder.encode_passages(texts)
    if kind == 'query':
        store = encoder.tokenizer.encode(['red ' + t for t in texts], encoder.spec.query_length)
    tokens = int(store.lengths.sum())
    assert answer['usage'] == {'prompt_tokens': tokens, 'total_tokens': tokens}
    answer = client.post('/v1/embeddings', json={**body, 'encoding_format': 'base64'}).json()
    raw = [base64.b64decode(item['embedding']) for item in answer['data']]
    np.testing.assert_array_equal([np.frombuffer(x, '<f4') for x in raw], np.float32(vectors))


def test_nothing_compiles_after_the_warm_up(index):
    service = of_index(index)
    service.warm_up()
    compiled = encode.apply_batch._cache_size(), exact.search_block._cache_size()
    with (
        TestClient(app.Server(service).app) as client,
        concurrent.futures.ThreadPoolExecutor(16) as threads,
    ):
        paths = [f'/search?q={"cat+" * (1 + i % 20)}&k={1 + 7 * i % 100}' for i in range(60)]
        for answer in threads.map(client.get, paths):
            assert answer.status_code == 200
    assert (encode.apply_batch._cache_size(), exact.search_block._cache_size()) == compiled


@pytest.mark.parametrize(
    ('path', 'status', 'message'),
    [
        ('/search', 400, 'the parameter q is missing or empty'),
        ('/search?q=%20', 400, 'the parameter q is missing or empty'),
        ('/search?q=' + 'x' * 2001, 414, 'the question has 2,001 characters, more than 2,000'),
        ('/search?q=%ff', 400, 'the query string is not UTF-8'),
        ('/search?q=x&q=y', 400, 'given twice'),
        ('/search?q=x&limit=3', 400, "there is no parameter 'limit'; use q, k, system"),
        ('/search?q=x&k', 400, 'the query string is malformed'),
        ('/search?q=x&k=0', 400, "k='0' must be a whole number from 1 to 100"),
        ('/search?q=x&k=101', 400, "k='101' must be"),
        ('/search?q=x&k=-1', 400, "k='-1' must be"),
        ('/search?q=x&k=1e1', 400, "k='1e1' must be"),
        ('/search?q=x&k=%D9%A3', 400, "k='٣' must be"),
        ('/search?q=x&k=' + '9' * 5000, 400, 'must be a whole number'),
        ('/search?q=x&system=bm25', 400, "system='bm25' is not supported; use student"),
        ('/nothing', 404, 'Not Found'),
        ('/encode', 405, 'Method Not Allowed'),
        ('/../../etc/passwd', 404, 'Not Found'),
        ('/page.js%2f..%2f__init__.py', 404, 'Not Found'),
    ],
)
def test_what_cannot_be_searched_is_refused(toy, path, status, message):
    answer = toy.get(path)
    assert answer.status_code == status, answer.text
    error = answer.json()['error']
    assert message in error['message'] and error['code'] == status


@pytest.mark.parametrize(
    ('body', 'status', 'message'),
    [
        (b'', 400, 'not JSON'),
        (b'{"texts"', 400, 'not JSON'),
        (b'[' * 100_000, 400, 'not JSON'),
        (b'\xff\xfe', 400, 'not UTF-8'),
        ('{"texts": ["x"]}'.encode('utf-16'), 400, 'not UTF-8'),
        (b'["x"]', 400, 'the body is no JSON object but list'),
        ({}, 400, 'texts must be a text or a list of texts, found None'),
        ({'texts': []}, 400, 'texts must be'),
        ({'texts': ['x', 3]}, 400, 'texts[1] must be a text, found 3'),
        ({'texts': [[1, 2]]}, 400, 'texts[0] must be a text, found [1, 2]'),
        ({'texts': ['']}, 400, 'texts[0] is empty'),
        (b'{"texts": ["\\ud800"]}', 400, 'texts[0] holds a lone surrogate'),
        ({'texts': ['x'] * 257}, 413, '257 texts, more than 256'),
        ({'texts': ['x' * 2**20]}, 413, 'larger than 1,048,576 bytes'),
        ({'texts': 'x', 'kind': 'document'}, 400, "kind='document' is not supported; use query"),
        ({'texts': 'x', 'kind': ['query']}, 400, "kind=['query'] is not supported"),
        ({'texts': 'x', 'knd': 'query'}, 400, "there is no field 'knd'; use texts, kind"),
        (b'{"texts": "x", "texts": "y"}', 400, 'a field is given twice; give it once'),
    ],
)
def test_what_cannot_be_embedded_is_refused(toy, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = toy.post('/encode', content=content, headers=JSON)
    assert answer.status_code == status and message in answer.json()['error']['message']


def test_embeddings_of_openai_s_clients(toy):
    def message(**fields):
        answer = toy.post('/v1/embeddings', json={'input': 'x', **fields})
        return answer.status_code, answer.json().get('error', {}).get('message', '')

    assert message(dimensions=2, model='text-embedding-3-small', user='me') == (200, '')
    assert message(dimensions=None) == (200, '')
    assert message(dimensions=3) == (400, 'dimensions=3 is not supported; use 2.')
    assert message(input=[[1, 2]])[0] == 400
    assert message(encoding_format='int8')[0] == 400
    assert toy.post('/encode', content='texts=x').status_code == 415
    assert toy.get('/v1/models').json()['data'][0]['id'] == 'toy'
    assert toy.get('/health').json() == {
        'status': 'ok', 'model': 'toy', 'passages': 3, 'dimensions': 2, 'systems': ['student'],
    }  # fmt: skip


def test_an_error_of_the_student_is_told_and_the_server_goes_on(toy):
    answer = toy.get('/search?q=broken')
    assert answer.status_code == 500
    assert answer.json()['error']['message'] == 'the server failed; its log says why.'
    assert toy.get('/search?q=cat').status_code == 200


def test_overload_is_refused_and_waiting_requests_share_a_batch():
    started, go, batches = threading.Event(), threading.Event(), []

    def student(batch):
        batches.append([request.query for request in batch])
        started.set()
        assert go.wait(60)
        return servers.answer(batch)

    server = app.Server(servers.service(student), waiting=3)
    with TestClient(server.app) as client, concurrent.futures.ThreadPoolExecutor(8) as threads:
        first = threads.submit(client.get, '/search?q=first')
        assert started.wait(60)
        others = [threads.submit(client.get, f'/search?q=q{i}') for i in range(3)]
        while server.batchers['student'].waiting < 3:
            time.sleep(0.01)
        refused = client.get('/search?q=late')
        assert refused.status_code == 503 and refused.headers['retry-after'] == '1'
        assert 'too many requests wait' in refused.json()['error']['message']
        assert client.get('/health').status_code == 200
        assert 'jdkd_waiting_requests{system="student"} 3.0' in client.get('/metrics').text
        go.set()
        texts = [f.result().json()['hits'][0]['text'] for f in (first, *others)]
        expected = ['first', 'q0', 'q1', 'q2']
        assert texts == [f'The red cats sleep; {query}.' for query in expected]
    assert len(batches) == 2 and sorted(batches[1]) == expected[1:]


def test_metrics_count_requests(toy):
    toy.get('/search?q=counted')
    toy.get('/nobody/../asks/for/this')
    text = toy.get('/metrics').text
    for line in ('jdkd_requests_total{path="/search",status="200"}', 'jdkd_passages 3.0',
                 'jdkd_requests_total{path="other",status="404"}',
                 'jdkd_batch_requests_count'):  # fmt: skip
        assert line in text
    assert 'nobody' not in text


def test_answers_forbid_what_is_not_the_page_s_own(toy):
    found = '/search?q=cat', '/search', '/none', '/search?q=broken'
    for path in ('/', '/page.js', '/page.css', *found):
        headers = toy.get(path).headers
        assert "default-src 'none'; script-src 'self'" in headers['content-security-policy']
        assert headers['x-content-type-options'] == 'nosniff'
    page = toy.get('/').text
    assert '<script type="module" src="page.js"></script>' in page and 'style=' not in page


def test_a_local_server_answers_by_local_names_only():
    with TestClient(servers.made(hosts=serve._LOCAL)) as client:
        for host in ('127.0.0.1:8000', 'localhost', '[::1]:8000'):
            assert client.get('/health', headers={'host': host}).status_code == 200
        for host in ('evil.example', 'localhost.evil.example', ''):
            answer = client.get('/health', headers={'host': host})
            assert answer.status_code == 400
            assert 'start it with --host=0.0.0.0' in answer.json()['error']['message']


@pytest.mark.parametrize(
    ('student', 'name'),
    [
        ('runs/a', 'runs/a'),
        ('me/student', 'me/student'),
        ('../runs/a/', 'a'),
        ('/home/me/student', 'student'),
        ('~/student', 'student'),
        ('.', '.'),
    ],
)
def test_a_model_is_named_without_where_it_lay(student, name):
    assert _name(student) == name


def test_sizes_are_those_of_the_engine():
    assert requests.MAX_K == engine.DEPTHS[-1]
