"""A run whose teacher, and one of whose assistants, is a language model behind an endpoint."""

import json
import logging
import types

import numpy as np
import pytest

from jdkd import config as configs
from jdkd import validation
from jdkd.algorithm import iterate
from jdkd.algorithm.round_files import load_lists
from jdkd.configs import common
from jdkd.planning import corpus_size, requests
from jdkd.serving import service
from jdkd.systems.build import build
from jdkd.systems.llm.answers import home as answers_home
from tests.helpers import llm_server, tiny

pytestmark = pytest.mark.slow


def make_run(home, url, workdir='w', **changes):
    c = tiny.get_config(str(home))
    c.systems.llm = common.llm(url, 'tiny', retries=1, **changes)
    c.teacher.members, c.assistants = ('llm', 'bm25'), ('tuned', 'llm')
    c.teacher.weights = (1.0, 0.1)  # Labels are random: fitted ones would be 0.
    c.systems.llm.scale = 1.0
    c.index.kind, c.rounds, c.loss.in_batch = 'exact', 2, 0.0
    if changes.get('listwise'):
        c.candidates.hardest = 0
    config, workdir = configs.resolve(c), home / workdir
    validation.validate(config)
    return tiny.open_run(config, workdir)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp('llm')
    tiny.write(home)

    failed = set()

    def fault(i, body):  # Some questions fail once.
        key = str(body)
        if i % 50 != 7 or key in failed:
            return None
        failed.add(key)
        return 503, {'retry-after': '0.01'}, 'busy'

    with llm_server.Server(llm_server.judge, fault=fault) as server:
        run = make_run(home, server.url, depth=5)
        report = iterate.train(run)
        return types.SimpleNamespace(
            home=home, run=run, report=report, prompts=server.prompts, asked=len(server.requests)
        )


def test_the_run_is_taught_and_asks_for_nothing_twice(trained):
    report = trained.report
    assert {'llm', 'teacher_rerank', 'student', 'bm25'} <= report['test'].keys()
    assert report['rounds'][0]['teacher'] == {'llm': 1.0, 'bm25': 0.1}
    assert len(trained.prompts) == len(set(trained.prompts)) > 100
    assert trained.asked > len(trained.prompts)  # Those that failed came again.


def test_dark_examples_are_judged_too(trained):
    run = trained.run
    lists = load_lists(run, 0, 'train')
    texts = lists.dark_texts(run.passages)
    shown = '\n'.join(trained.prompts)
    assert texts and all(f'Passage: {text.strip()}\n' in shown for text in texts)


def test_a_run_stays_within_its_plan(trained):
    run = trained.run
    (planned,) = requests.list_requests(run.config, corpus_size.of_run(run))
    assert len(trained.prompts) <= planned.pairs
    assert planned.pairs_once < planned.pairs and planned.tokens > 10 * planned.pairs


def test_a_finished_run_needs_no_server(trained, caplog):
    with caplog.at_level(logging.INFO):
        again = make_run(trained.home, 'http://127.0.0.1:9/v1', depth=5)
        assert iterate.train(again)['test'] == trained.report['test']
    assert 'asks tiny' not in caplog.text


def test_it_re_ranks_for_new_questions(trained):
    with llm_server.Server(llm_server.judge) as server:
        run = make_run(trained.home, server.url, depth=5)
        shown, left_out = service.searchers(run)
        name = f'teacher on {run.config.first_stage}'
        assert not left_out
        ranking = shown[name]('cat dog fish', 5)
    texts = [run.passages[int(row)] for row in ranking.passages[0]]
    found = [llm_server.overlap('cat dog fish', text) for text in texts]
    assert found[0] == 3 and server.bodies


def test_without_its_server_the_student_still_answers(trained):
    run = make_run(trained.home, 'http://127.0.0.1:9/v1', depth=5)
    shown, left_out = service.searchers(run)
    assert list(shown) == [run.config.first_stage]
    assert len(left_out) == 1 and 'llm: nothing answers at http://127.0.0.1:9/v1' in left_out[0]


def test_windows_teach_as_well(trained):
    listwise = {'window': 4, 'step': 2}
    with llm_server.Server(llm_server.judge) as server:
        run = make_run(trained.home, server.url, 'listwise', listwise=listwise, depth=4)
        report = iterate.train(run)
        prompts = server.prompts
    assert report['rounds'][1]['student'].keys() == trained.report['rounds'][1]['student'].keys()
    assert len(prompts) == len(set(prompts)) and all('[2] ' in prompt for prompt in prompts)
    lists = load_lists(run, 1, 'train')
    scores = build(run, 'llm').list_scorer(run.train)(lists)
    width = lists.passages.shape[1] + lists.num_dark
    ranks = -np.log(1 + np.arange(width)).astype(np.float32)
    assert np.isin(scores, ranks).all() and (scores.max(axis=1) == 0).all()
    (file,) = answers_home(run.workdir, 'llm').iterdir()
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    (planned,) = requests.list_requests(run.config, corpus_size.of_run(run))
    assert sum(record['pairs'] for record in kept) <= planned.pairs
