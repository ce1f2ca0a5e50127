"""Rankings of a split: a query's own passage, the depth, and the inputs of what reads them."""

import dataclasses
import types

import numpy as np
import pytest
from absl import logging

from jdkd.config import Config
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Run
from jdkd.systems import ranking
from jdkd.systems.dual import DualEncoderSystem
from jdkd.systems.imported import ImportedScores
from jdkd.systems.lexical import BM25System
from jdkd.systems.llm.system import LLMSystem


def make_run(tmp_path, **changes):
    passages = Passages.from_columns([f'p{i}' for i in range(5)], [''] * 5, ['x'] * 5)
    queries = {'test': {'p1': 'x', 'q': 'y'}}
    collection = Collection('c', passages, queries, {'test': {'p1': {'p3': 1}, 'q': {'p0': 1}}})
    config = Config(depth=3, measures=('MRR@10',)).replace(**changes)
    return Run(config, tmp_path, None, collection)


class Search:
    """Ranks passages 0, 1, 2, ... for every query."""

    def __init__(self):
        self.calls = []

    def __call__(self, part, depth):
        self.calls.append((part.start, depth))
        rows = np.tile(np.arange(depth, dtype=np.int32), (2, 1))[part]
        return Ranking(rows, -rows.astype(np.float32))


def test_a_querys_own_passage_is_left_out_and_the_depth_kept(tmp_path):
    run, search = make_run(tmp_path), Search()
    found = ranking.checked_ranking(run, 'bm25', run.test, search)
    np.testing.assert_array_equal(found.passages, [[0, 2, 3], [0, 1, 2]])
    assert search.calls == [(None, 4)]


@pytest.mark.parametrize(('depth', 'expected'), [(3, 3), (9, 5)])
def test_the_config_may_keep_it_and_the_collection_bounds_the_depth(tmp_path, depth, expected):
    run, search = make_run(tmp_path, ignore_identical_ids=False, depth=depth), Search()
    np.testing.assert_array_equal(ranking.own_passages(run, run.test), [-1, -1])
    found = ranking.checked_ranking(run, 'bm25', run.test, search)
    np.testing.assert_array_equal(found.passages[0], range(expected))
    assert search.calls == [(None, expected)]


def test_a_passage_with_a_querys_id_stays_where_ids_pair_query_and_positive(tmp_path):
    run, search = make_run(tmp_path), Search()
    before = ranking.ranking_inputs(run, [])
    run = dataclasses.replace(run, collection=dataclasses.replace(run.collection, ids_pair=True))
    found = ranking.checked_ranking(run, 'bm25', run.test, search)
    np.testing.assert_array_equal(found.passages, [[0, 1, 2], [0, 1, 2]])
    assert ranking.ranking_inputs(run, []) != before


def test_losing_a_judged_passage_is_warned_of(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: lines.append(text % args))
    run = make_run(tmp_path)
    ranking.checked_ranking(run, 'bm25', run.test, Search())
    assert not lines
    run.collection.qrels['test']['p1']['p1'] = 1
    run = make_run(tmp_path)
    run.collection.qrels['test']['p1']['p1'] = 1
    ranking.checked_ranking(run, 'bm25', run.test, Search())
    assert '1 queries of split' in lines[0] and 'ignore_identical_ids=False' in lines[0]


def test_a_ranking_is_kept_as_a_stage(tmp_path):
    run, search = make_run(tmp_path), Search()
    system = types.SimpleNamespace(run=run, name='a', digest='d', reads_index=False)
    opened = []

    def open_search():
        opened.append(None)
        return search, None

    first, facts = ranking.keep_ranking(system, run.test, open_search)
    again, facts_again = ranking.keep_ranking(system, run.test, open_search)
    np.testing.assert_array_equal(again.passages, first.passages)
    assert facts == facts_again == {} and len(search.calls) == len(opened) == 1
    files = {path.name for path in (tmp_path / 'systems/a/ranking-test').iterdir()}
    assert files == {'manifest.json', 'ranking.passages.npy', 'ranking.scores.npy'}


@pytest.mark.parametrize(('wrong', 'recall'), [(None, 1), (3, 5 / 6)])
def test_recall_is_of_what_is_left_without_own_passages(tmp_path, wrong, recall):
    run, exact = make_run(tmp_path), Search()
    system = types.SimpleNamespace(run=run, name='a', digest='d', reads_index=False)

    def search(part, depth):
        found = Search()(part, depth)
        return Ranking(np.where(found.passages == wrong, 4, found.passages), found.scores)

    found, facts = ranking.keep_ranking(system, run.test, lambda: (search, exact))
    assert facts == {'index_recall': pytest.approx(recall)} and exact.calls == [(0, 4)]
    assert 1 not in found.passages[0]  # Both leave out the passage with the query's id.
    system.name = 'b'
    _, facts = ranking.keep_ranking(system, run.test, lambda: (exact, exact))
    assert facts == {'index_recall': 1} and len(exact.calls) == 2


def test_passages_lost_by_their_ids_are_warned_of_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: lines.append(text % args))
    monkeypatch.setattr(ranking, 'PART_QUERIES', 1)
    run = make_run(tmp_path)
    run.collection.qrels['test'].update(p1={'p1': 1}, q={'p0': 1})
    system = types.SimpleNamespace(run=run, name='a', digest='d', reads_index=False)
    ranking.keep_ranking(system, run.test, lambda: (Search(), None))
    assert len(lines) == 1 and '1 queries of split' in lines[0]


def test_a_stopped_ranking_goes_on_after_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, 'PART_QUERIES', 1)
    run, search = make_run(tmp_path), Search()
    system = types.SimpleNamespace(run=run, name='a', digest='d', reads_index=False)

    def stop_at_second(part, depth):
        if part.start:
            raise KeyboardInterrupt
        return search(part, depth)

    with pytest.raises(KeyboardInterrupt):
        ranking.keep_ranking(system, run.test, lambda: (stop_at_second, None))
    found, _ = ranking.keep_ranking(system, run.test, lambda: (search, None))
    assert [start for start, _ in search.calls] == [0, 1]
    np.testing.assert_array_equal(found.passages, [[0, 2, 3], [0, 1, 2]])


def test_the_index_is_an_input_where_a_dense_ranking_is(tmp_path):
    run = make_run(tmp_path)
    bm25 = BM25System('bm25', 'b', None, run, None)
    scores = ImportedScores('llm', 's', None, run, tmp_path, None, None)
    inputs = ranking.ranking_inputs(run, [bm25, scores])
    assert inputs['index'] is None and inputs['systems'] == [['bm25', 'b'], ['llm', 's']]
    assert inputs['depth'] == 3 and ranking.ranking_inputs(run, [bm25], depth=2)['depth'] == 2
    # The order of miners decides which passages are drawn.
    assert ranking.ranking_inputs(run, [scores, bm25]) != inputs
    dense = DualEncoderSystem('a', 'd', None, run, None)
    over_dense, over_bm25 = (
        LLMSystem('llm', 'l', None, run, None, None, first) for first in (dense, bm25)
    )
    for system in (dense, over_dense):
        assert ranking.ranking_inputs(run, [bm25, system])['index'] == run.config.index.to_dict()
    assert ranking.ranking_inputs(run, [over_bm25])['index'] is None
    measured = ranking.measure_inputs(run, [bm25], run.test)
    assert list(measured['measures']) == ['MRR@10'] and measured['splits'] == [run.test.split]


def test_parts_of_a_ranking_have_16384_queries():
    assert ranking.PART_QUERIES == 16_384  # A restart finds them by it.


def test_scores_of_what_is_no_passage_may_be_infinite_and_others_not(tmp_path):
    run = make_run(tmp_path, ignore_identical_ids=False)

    def search(part, depth):
        rows = np.array([[0, -1, -1], [2, 1, 0]], np.int32)
        return Ranking(rows, np.array([[1, -np.inf, -np.inf], last], np.float32))

    last = [3, 2, 1]
    found = ranking.checked_ranking(run, 'llm', run.test, search)
    assert found.scores[0, 1] == -np.inf
    last = [np.inf, 2, 1]
    with pytest.raises(FloatingPointError, match="'llm' gives query 'q' and passage 'p2' the sc"):
        ranking.checked_ranking(run, 'llm', run.test, search)
