"""A question asked now is answered as the same question is in a split."""

import io

import numpy as np
import pytest

from jdkd import config as configs
from jdkd.commands import search
from jdkd.configs import common
from jdkd.corpus import importing
from jdkd.lists.candidates import Lists
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Run
from jdkd.runtime import mesh
from jdkd.systems.build import build
from tests.helpers import toy


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp('live')
    toy.write_collection(home / 'toy')
    toy.write_model(home / 'dual', DualEncoder(toy.TRANSFORMER, 'mean', True), query_prompt='red ')
    toy.write_model(home / 'cross', CrossEncoder(toy.TRANSFORMER, 'linear'))
    (home / 'scores.trec').write_text('test0 Q0 p1 1 0.5 x\n')
    c = common.get_config()
    c.collection.source = f'beir:{home / "toy"}'
    c.collection.eval_fraction = 0.5
    c.depth, c.index.kind = 10, 'exact'
    lengths = {'query_length': 8, 'passage_length': 12}
    c.systems.bm25 = common.bm25()
    c.systems.dual = common.encoder(str(home / 'dual'), **lengths)
    c.systems.cross = common.encoder(str(home / 'cross'), kind='cross_encoder', **lengths)
    c.systems.scores = common.scores(str(home / 'scores.trec'))
    config = configs.resolve(c)
    return Run(config, home / 'w', mesh.make_mesh(), importing.load_collection(config, home / 'w'))


def test_questions_are_an_argument_or_lines(monkeypatch):
    assert list(search.questions('one two')) == ['one two']
    monkeypatch.setattr('sys.stdin', io.StringIO('one\n\n two \n'))
    assert list(search.questions(None)) == ['one', 'two']  # An empty line does not end a file.
    with pytest.raises(ValueError, match='the question is empty'):
        list(search.questions(' '))
    with pytest.raises(ValueError, match='the question is not UTF-8'):
        list(search.questions('caf\udce9'))
    monkeypatch.setattr('sys.stdin', io.StringIO('one\n\ncaf\udce9\n'))
    found = search.questions(None)
    assert next(found) == 'one'
    with pytest.raises(ValueError, match='line 3 of standard input is not UTF-8'):
        next(found)


@pytest.mark.parametrize('name', ['bm25', 'dual'])
def test_ranks_as_in_a_split(run, name):
    system = build(run, name)
    ranking, _ = system.rank(run.test)
    for i, question in enumerate(run.test.texts):
        found = system.search(question, 10)
        assert found.passages.shape == found.scores.shape == (1, 10)
        np.testing.assert_allclose(found.scores[0], ranking.scores[i], atol=1e-6)


@pytest.mark.parametrize('name', ['bm25', 'dual', 'cross'])
def test_scores_as_in_a_split(run, name):
    system = build(run, name)
    passages = np.array([[3, 0, 29, 7]] * len(run.test), np.int32)
    lists = Lists.from_originals(np.arange(len(run.test), dtype=np.int32), passages)
    for expected, question in zip(system.list_scorer(run.test)(lists), run.test.texts, strict=True):
        found = system.score(question, passages[0])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_imported_scores_have_none_for_a_new_question(run):
    system = build(run, 'scores')
    with pytest.raises(ValueError, match="'scores' cannot search for a new question"):
        system.search('cat', 3)
    with pytest.raises(ValueError, match="'scores' has imported scores: none for a new question"):
        system.score('cat', np.array([0]))


def test_rankings_stand_side_by_side(run, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    rankings = {
        'one': (Ranking(np.array([[4, 2]]), np.array([[0.75, 0.5]])), 0.0123),
        'another': (Ranking(np.array([[2]]), np.array([[11.25]])), 1.0),
    }
    lines = search.page(run, rankings).splitlines()
    texts = run.collection.passages.texts
    assert lines == [
        f'{"        one, 12 ms":38}          another, 1000 ms',
        f'{" 0.750  p4":38}  11.250  p2',
        f'{"        " + texts[4]:38}          {texts[2]}',
        ' 0.500  p2',
        f'        {texts[2]}',
    ]


def test_a_text_without_spaces_is_shown(run):
    lines = search._cell('t', 'はじめに ' + '京都' * 200, 1.0, 60)
    assert lines[1].strip().startswith('はじめに') and '京都' in ''.join(lines)
    assert len(lines) <= 1 + search._LINES and lines[-1].endswith('...')
