"""Measures by hand, ties as trec_eval breaks them, and run files that others read."""

import numpy as np
import pytest
import pytrec_eval

from jdkd.data import runs
from jdkd.data.collection import Collection
from jdkd.data.passages import Passages
from jdkd.retrieval import evaluate
from jdkd.retrieval.index import Ranking

IDS = ['p0', 'p1', 'p2', 'p3']
QRELS = {'a': {'p1': 1}, 'b': {'p3': 1, 'p0': 0}}


def ranking():
    passages = np.array([[0, 1, 2], [2, 3, 0]], np.int32)
    return Ranking(passages, np.array([[3.0, 2.0, 1.0], [0.9, 0.5, 0.5]], np.float32))


def test_measures_by_hand():
    run = evaluate.to_run(ranking(), ['a', 'b'], IDS)
    found = evaluate.measure(run, QRELS, ['MRR@10', 'nDCG@10', 'R@2', 'R@100'])
    assert found['MRR@10'] == pytest.approx(0.5)  # rank 2 in both
    assert found['nDCG@10'] == pytest.approx(1 / np.log2(3))
    assert found['R@2'] == 1 and found['R@100'] == 1


def test_a_query_without_results_counts_as_zero():
    run = evaluate.to_run(ranking(), ['a', 'b'], IDS)
    del run['b']
    assert evaluate.measure(run, QRELS, ['MRR@10'])['MRR@10'] == pytest.approx(0.25)


def test_ties_and_values_equal_trec_evals():
    rng = np.random.default_rng(0)
    ids = [f'p{i}' for i in rng.permutation(60)]
    query_ids = [f'q{i}' for i in range(30)]
    passages = np.stack([rng.permutation(60)[:20] for _ in query_ids]).astype(np.int32)
    scores = rng.integers(0, 4, passages.shape).astype(np.float32)  # many ties
    qrels = {q: {ids[p]: int(rng.integers(0, 3)) for p in range(0, 60, 2)} for q in query_ids}
    run = evaluate.to_run(Ranking(passages, scores), query_ids, ids)
    found = evaluate.measure(run, qrels, ['MRR@100', 'nDCG@10', 'R@10', 'AP'])
    judge = pytrec_eval.RelevanceEvaluator(qrels, {'recip_rank', 'ndcg_cut.10', 'recall.10', 'map'})
    theirs = list(judge.evaluate(run).values())
    for name, key in [
        ('MRR@100', 'recip_rank'),
        ('nDCG@10', 'ndcg_cut_10'),
        ('R@10', 'recall_10'),
        ('AP', 'map'),
    ]:
        assert found[name] == pytest.approx(np.mean([t[key] for t in theirs]), abs=1e-12), name


def test_unknown_measure():
    with pytest.raises(ValueError, match="'MRP@10', which ir_measures does not know"):
        evaluate.measure({}, QRELS, ['MRP@10'])


def test_wrong_queries():
    found = evaluate.wrong_queries(ranking(), [np.array([0]), np.array([3, 0])])
    np.testing.assert_array_equal(found, [False, True])


def test_run_files_come_back(tmp_path):
    run = evaluate.to_run(ranking(), ['a', 'b'], IDS)
    evaluate.write_trec_run(tmp_path / 'run.trec', run, 'student')
    assert (tmp_path / 'run.trec').read_text().splitlines()[0] == 'a Q0 p0 1 3 student'
    queries = {'test': {'a': 'x', 'b': 'y'}}
    collection = Collection('c', Passages.of(IDS, [''] * 4, ['x'] * 4), queries, {})
    rows, values = runs.read(tmp_path / 'run.trec', collection).of('b')
    assert dict(zip(rows.tolist(), values, strict=True)) == {2: pytest.approx(0.9), 3: 0.5, 0: 0.5}
