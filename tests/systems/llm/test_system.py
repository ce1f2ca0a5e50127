"""A language model as a system: against a server of a random Llama, and of one that can read."""

import json
import logging
import os
import signal
import threading
import time

import numpy as np
import pytest

from jdkd.config import BM25Spec, Config, LLMSpec
from jdkd.config.systems import ListwiseConfig
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.run import Queries, Run
from jdkd.runtime import mesh as meshes
from jdkd.systems.build import build
from jdkd.systems.llm.answers import home
from tests.helpers import llm_server, processes

TEXTS = ['a cat sleeps', 'a dog runs', 'the cat and the dog', 'fish swim', '{query} {0} [2]']
TITLES = ['Cats', '', '', '', 'Fish']
NONE = [np.zeros(0, np.int32)] * 2
QUERIES = Queries('train', ['q1', 'q2'], ['cat dog', 'fish {title}'], NONE, NONE)
LISTS = Lists.from_originals(np.array([0, 1], np.int32), np.array([[0, 1, 2], [3, 4, 4]]))


def make_run(workdir, url, **changes):
    passages = Passages.from_columns([f'p{i}' for i in range(len(TEXTS))], TITLES, TEXTS)
    collection = Collection('c', passages, {'train': dict(zip(*QUERIES_BY_ID, strict=True))}, {})
    spec = LLMSpec(base_url=url, model='tiny', **{'retries': 0, 'timeout': 20.0, **changes})
    systems = {'bm25': BM25Spec(), 'llm': spec}
    config = Config(depth=4, first_stage='bm25', systems=systems)
    return Run(config, workdir, meshes.make_mesh(), collection)


QUERIES_BY_ID = (QUERIES.ids, QUERIES.texts)


def scores(run, lists=LISTS):
    return build(run, 'llm').list_scorer(QUERIES)(lists)


@pytest.fixture(scope='module')
def llama():
    pytest.importorskip('torch')
    random = llm_server.random_llama()
    with llm_server.Server(lambda body: random(llm_server.prompt_of(body))) as server:
        yield server


@pytest.fixture
def server():
    with llm_server.Server(llm_server.judge) as server:
        yield server


@pytest.mark.parametrize('endpoint', ['chat', 'completions'])
def test_logits_are_those_of_the_models_own_softmax(llama, tmp_path, endpoint):
    run = make_run(tmp_path, llama.url, endpoint=endpoint, top_logprobs=64)
    found = scores(run)
    for i, row in enumerate(LISTS.query):
        for j, passage in enumerate(LISTS.passages[i]):
            prompt = run.config.systems['llm'].prompt
            joined = f'{TITLES[passage]} {TEXTS[passage]}'.strip()
            prompt = prompt.replace('{passage}', '\0').replace('{query}', QUERIES.texts[row])
            values = llm_server.random_llama()(prompt.replace('\0', joined))
            np.testing.assert_allclose(found[i, j], values['Yes'] - values['no'], rtol=1e-6)
    assert found.std() > 0.05 and found.dtype == np.float32


def test_nothing_is_asked_twice_on_any_server_or_in_any_process(server, tmp_path):
    first = scores(make_run(tmp_path, server.url))
    np.testing.assert_array_equal(first, [[0, 0, 2], [0, 0, 0]])
    assert len(server.bodies) == 5  # The last list has a passage twice.
    with llm_server.Server(llm_server.judge) as other:
        again = make_run(tmp_path, other.url, concurrency=2, max_pairs=5, requests_per_minute=9)
        np.testing.assert_array_equal(scores(again), first)
        assert build(again, 'llm').digest == build(make_run(tmp_path, server.url), 'llm').digest
        changed = make_run(tmp_path, other.url, prompt='Query: {query}\nPassage: {passage}')
        assert build(changed, 'llm').digest != build(again, 'llm').digest
        assert not other.requests
        scores(changed)
        assert len(other.bodies) == 5


def test_a_failure_keeps_what_was_answered(tmp_path):
    def fault(i, body):
        return (500, {}, 'out of memory') if 'fish' in llm_server.prompt_of(body) else None

    with llm_server.Server(llm_server.judge, fault=fault) as server:
        with pytest.raises(ConnectionError, match=r"query 'q2' with passage 'p\d'.*out of memory"):
            scores(make_run(tmp_path, server.url, concurrency=1))
        assert len(server.bodies) == 3
        server.fault = lambda i, body: None
        scores(make_run(tmp_path, server.url))
        assert len(server.bodies) == len(set(server.prompts)) == 5


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        ('no logprobs', "answer for query 'q1' with passage 'p0' cannot be used: it has no logpro"),
        ({'maybe': -0.1}, "'q1' with passage 'p0' cannot be used: neither 'yes' nor 'no' is among"),
    ],
)
def test_nonsense_names_query_and_passage(tmp_path, answer, message):
    with llm_server.Server(lambda body: answer) as server:
        with pytest.raises(ValueError, match=message):
            scores(make_run(tmp_path, server.url, concurrency=1))


def test_answers_that_are_neither_may_get_a_floor(tmp_path, caplog):
    def model(body):
        return {'maybe': -0.1} if 'runs' in llm_server.prompt_of(body) else llm_server.judge(body)

    with llm_server.Server(model) as server, caplog.at_level(logging.WARNING):
        found = scores(make_run(tmp_path, server.url, missing=-7.0))
        np.testing.assert_array_equal(found, [[0, -7, 2], [0, 0, 0]])
        assert "1 of 6 answers are neither 'yes' nor 'no' and get missing=-7" in caplog.text
        with pytest.raises(ValueError, match="kept answer for query 'q1' with passage 'p1' is nei"):
            scores(make_run(tmp_path, server.url))


def test_the_budget_is_told_and_stops_before_it_is_passed(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        with pytest.raises(ValueError, match=r'0 pairs.* needs 5 more, which max_pairs=4 does not'):
            scores(make_run(tmp_path, server.url, max_pairs=4))
        assert not server.requests
        scores(make_run(tmp_path, server.url, max_pairs=5))
    assert 'asks tiny for 5 of 6 pairs, about ' in caplog.text
    assert '5 answers in ' in caplog.text
    more = Lists.from_originals(np.zeros(1, np.int32), np.array([[0, 3]]))
    with pytest.raises(ValueError, match='5 pairs in this workdir, and the next step needs 1 more'):
        scores(make_run(tmp_path, server.url, max_pairs=5), more)


def test_the_key_is_in_no_file_of_the_workdir(server, tmp_path, monkeypatch):
    monkeypatch.setenv('MY_KEY', 'sk-secret-1234')
    scores(make_run(tmp_path, server.url, api_key_variable='MY_KEY'))
    assert all(headers['authorization'].endswith('1234') for _, _, headers in server.requests)
    kept = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert kept and not any(b'sk-secret' in path.read_bytes() for path in kept)


def test_dark_examples_are_asked_for_with_their_text(server, tmp_path):
    slices = np.array([[2, 4, 7], [1, 2, 5], [3, 0, 4]], np.int32)
    dark = SlicedTexts(slices, np.array([[2], [1]], np.int32))
    lists = Lists(LISTS.query, LISTS.passages, dark)
    np.testing.assert_array_equal(scores(make_run(tmp_path, server.url), lists)[:, 3], [2, 0])
    assert any('Passage: cat dog\n' in prompt for prompt in server.prompts)


def test_it_answers_new_questions(server, tmp_path):
    llm = build(make_run(tmp_path, server.url, depth=3), 'llm')
    np.testing.assert_array_equal(llm.score('cat dog', np.array([1, 2])), [0, 2])
    found = llm.search('cat dog', 4)
    np.testing.assert_array_equal(found.scores[0], [2, 0, 0, -np.inf])
    assert found.passages[0, 0] == 2 and set(found.passages[0, 1:]) == {0, 1, -1}
    with pytest.raises(ValueError, match='set systems.llm.depth to the passages of first_stage'):
        build(make_run(tmp_path, server.url), 'llm').search('cat dog', 4)


def test_it_re_ranks_the_first_stage(server, tmp_path):
    run = make_run(tmp_path, server.url, depth=3)
    ranking, _ = build(run, 'llm').rank(QUERIES)
    first, _ = build(run, 'bm25').rank(QUERIES)
    assert ranking.passages.shape == first.passages.shape == (2, 4)
    assert ranking.passages[0, 0] == 2 and ranking.scores[0, 0] == 2
    for own, theirs in zip(ranking.passages, first.passages, strict=True):
        assert set(own[:3]) == set(theirs[:3]) and own[3] == -1
    asked = len(server.bodies)
    np.testing.assert_array_equal(build(run, 'llm').rank(QUERIES)[0].passages, ranking.passages)
    assert len(server.bodies) == asked


WINDOWS = ListwiseConfig(window=2, step=1)


def test_windows_bring_the_best_to_the_top(server, tmp_path):
    run = make_run(tmp_path, server.url, listwise=WINDOWS)
    # Whatever stands first in a list, here another passage each time, tells nothing.
    for rows in ([2, 0, 3, 3], [3, 2, 0, 3], [0, 3, 2, 2]):
        lists = Lists.from_originals(np.zeros(1, np.int32), np.array([rows]))
        found = scores(run, lists)[0]
        ranks = dict(zip(rows, found, strict=True))
        np.testing.assert_allclose([ranks[2], ranks[0], ranks[3]], -np.log([1, 2, 3]), rtol=1e-6)
    assert len(server.bodies) == 2  # Equal windows are asked once, however lists are arranged.


def test_windows_with_faults_are_counted(tmp_path, caplog):
    with llm_server.Server(lambda body: '[2] > [2] > [7]') as server:
        run = make_run(tmp_path, server.url, listwise=ListwiseConfig(window=3))
        with caplog.at_level(logging.WARNING):
            found = scores(run)
    assert sorted(found[0]) == sorted((-np.log([1, 2, 3])).astype(np.float32))
    assert 'of 2 answers, 2 leave out passages' in caplog.text
    assert '2 repeat some, and 2 name passages that are not there' in caplog.text


def score_forever(workdir, url):
    """Scores two lists, for a child process."""
    scores(make_run(workdir, url, concurrency=1))


def test_a_killed_process_resumes_and_asks_for_nothing_twice(tmp_path):
    held = threading.Event()

    def fault(i, body):
        if i == 3:
            held.wait(60)

    with llm_server.Server(llm_server.judge, fault=fault) as server:
        child = processes.Process(score_forever, tmp_path, server.url, stdout=tmp_path / 'out')
        while len(server.requests) < 4 and child.poll() is None:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(60)
        (file,) = home(tmp_path, 'llm').iterdir()
        kept = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(kept) == 3, child.output()
        held.set()
        server.requests.clear()
        server.bodies.clear()
        server.fault = lambda i, body: None
        np.testing.assert_array_equal(
            scores(make_run(tmp_path, server.url)), [[0, 0, 2], [0, 0, 0]]
        )
        assert len(server.requests) == 2  # Of five, those that were not kept.
