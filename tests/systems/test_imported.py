"""Scores made elsewhere as a system: ranks, scores, coverage, and the file that they come from."""

import logging
from unittest import mock

import numpy as np
import pytest
import pytrec_eval

from jdkd.config import Config, ScoresSpec
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.lists.candidates import Lists
from jdkd.retrieval import measures, trec
from jdkd.run import Queries, Run
from jdkd.systems import imported

TEXT = 'a Q0 p2 1 3 x\na Q0 p0 2 1 x\na Q0 p1 3 1 x\nb Q0 p3 1 -2 x\n'


@pytest.fixture
def run(tmp_path):
    passages = Passages.from_columns([f'p{i}' for i in range(4)], [''] * 4, ['x'] * 4)
    queries = {'train': {'a': 'x', 'b': 'y', 'c': 'z'}}
    collection = Collection('c', passages, queries, {})
    (tmp_path / 'run.trec').write_text(TEXT)
    config = Config(depth=3)
    return Run(config, tmp_path / 'run', None, collection)


def load(run, **changes):
    path = run.workdir.parent / 'run.trec'
    return imported.load(run, 'llm', ScoresSpec(path=str(path), **changes))


POSITIVES = [np.array([2])] * 3
QUERIES = Queries('train', ['a', 'b', 'c'], ['x', 'y', 'z'], POSITIVES, POSITIVES)
LISTS = Lists.from_originals(np.array([1, 0]), np.array([[3, 0], [2, 1]]))


def test_ranks_what_the_file_holds(run):
    ranking, _ = load(run).rank(QUERIES)
    np.testing.assert_array_equal(ranking.passages, [[2, 1, 0], [3, -1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(ranking.scores[0], [3, 1, 1])
    assert (ranking.scores[ranking.passages < 0] == -np.inf).all()


def test_a_missing_score_stops_with_the_coverage_or_takes_a_value(run):
    with pytest.raises(ValueError, match="no score for query 'b' and passage 'p0'.* 75.0% of the"):
        load(run).list_scorer(QUERIES)(LISTS)
    system = load(run, missing=-9.0)
    np.testing.assert_array_equal(system.list_scorer(QUERIES)(LISTS), [[-2, -9], [3, 1]])
    assert not system.is_partial and system.covers(QUERIES, LISTS).all()
    assert load(run).is_partial
    covers = load(run).covers(QUERIES, LISTS)
    np.testing.assert_array_equal(covers, [[True, False], [True, True]])
    assert system.digest != load(run).digest
    # What fills a list up is no passage.
    padded = Lists.from_originals(np.array([0]), np.array([[2, -1]]))
    for loaded in (system, load(run)):
        np.testing.assert_array_equal(loaded.covers(QUERIES, padded), [[True, False]])


def test_the_file_is_read_once_and_noticed_when_it_changes(run):
    file = run.workdir.parent / 'run.trec'
    digest = load(run).digest
    with mock.patch('jdkd.retrieval.trec.read', side_effect=AssertionError):
        assert load(run).digest == digest
        file.rename(file.with_name('moved'))
        assert load(run).digest == digest
        file.write_text(TEXT.replace('-2', '-3'))
        with pytest.raises(ValueError, match='run.trec differ'):
            load(run)


def test_a_bad_file_leaves_nothing_behind(run):
    file = run.workdir.parent / 'run.trec'
    file.write_text(TEXT + 'a Q0 p9 1 1 x\n')
    with pytest.raises(ValueError, match="run.trec:5: passage 'p9'"):
        load(run)
    assert not list((run.workdir / 'systems/llm').iterdir())
    np.testing.assert_array_equal(
        load(run, on_error='skip').rank(QUERIES)[0].passages[1], [3, -1, -1]
    )


@pytest.mark.parametrize(
    ('scores', 'message'),
    [
        ([1, 1, 1, 2], '100.0% of the lists have equal scores'),
        ([0.9999, 0.99995, 0.00001, 0.5], '50.0% of the scores lie within a thousandth'),
        ([3.1, -2.0, 0.4, 0.7], None),
    ],
)
def test_warns_of_scores_that_are_flat(run, scores, message, caplog):
    ids = 'a Q0 p2', 'a Q0 p0', 'a Q0 p1', 'b Q0 p3'
    lines = (f'{pair} 1 {score} x\n' for pair, score in zip(ids, scores, strict=True))
    (run.workdir.parent / 'run.trec').write_text(''.join(lines))
    with caplog.at_level(logging.WARNING):
        load(run)
    warned = [record.getMessage() for record in caplog.records if 'run.trec' in record.getMessage()]
    assert bool(warned) == bool(message) and (not message or message in warned[0])


def test_another_format_reads_the_file_anew(run):
    load(run)
    with pytest.raises(ValueError, match='built from other inputs .format differ'):
        load(run, format='query Q0 passage rank score tag')


def test_ties_at_the_depth_are_cut_as_trec_eval_cuts_them(run):
    """By falling id, and scores that float32 does not tell apart are ties."""
    text = 'a Q0 p0 1 2.00000001 x\na Q0 p1 2 2 x\na Q0 p3 3 2 x\na Q0 p2 4 2 x\n'
    (run.workdir.parent / 'run.trec').write_text(text)
    qrels = {'a': {'p3': 1, 'p0': 1}}
    judge = pytrec_eval.RelevanceEvaluator(qrels, {'recall.2', 'P.2', 'recall.3', 'ndcg_cut.2'})
    theirs = judge.evaluate(pytrec_eval.parse_run(text.splitlines()))['a']
    ranking = load(run)._best(['a'], 2)
    ids = run.collection.passage_ids
    ours = measures.measure(trec.from_ranking(ranking, ['a'], ids), qrels, ['R@2', 'P@2', 'nDCG@2'])
    assert ours.means == {
        'R@2': theirs['recall_2'],
        'P@2': theirs['P_2'],
        'nDCG@2': theirs['ndcg_cut_2'],
    }
    np.testing.assert_array_equal(load(run).rank(QUERIES)[0].passages[0], [3, 2, 1])
