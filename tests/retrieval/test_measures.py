"""Measures by hand, ties as trec_eval breaks them, and run files that others read."""

import re

import numpy as np
import pyarrow as pa
import pytest
import pytrec_eval

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Column, Passages
from jdkd.retrieval import measures, trec
from jdkd.retrieval.ranking import Ranking


def column(*chunks):
    return Column(pa.chunked_array(chunks))


IDS = column(['p0', 'p1'], ['p2', 'p3'])
QRELS = {'a': {'p1': 1}, 'b': {'p3': 1, 'p0': 0}}


def ranking():
    passages = np.array([[0, 1, 2], [2, 3, 0]], np.int32)
    return Ranking(passages, np.array([[3.0, 2.0, 1.0], [0.9, 0.5, 0.5]], np.float32))


def test_measures_by_hand():
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)
    found = measures.measure(run, QRELS, ['MRR@10', 'nDCG@10', 'R@2', 'R@100', 'MAP']).means
    assert found['MRR@10'] == found['MAP'] == pytest.approx(0.5)  # rank 2 in both
    assert found['nDCG@10'] == pytest.approx(1 / np.log2(3))
    assert found['R@2'] == 1 and found['R@100'] == 1


def test_a_query_without_results_counts_as_zero():
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)
    for missing in ({'a': run['a']}, {'a': run['a'], 'b': {}}):
        found = measures.measure(missing, QRELS, ['MRR@10', 'R@2'])
        assert found.means['MRR@10'] == pytest.approx(0.25)
        assert found.per_query['b'] == {'MRR@10': 0, 'R@2': 0}


def test_queries_without_judgements_do_not_count():
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)
    found = measures.measure(run, {'a': QRELS['a']}, ['MRR@10', 'R@1'])
    assert found.per_query == {'a': {'MRR@10': 0.5, 'R@1': 0}} and found.means['R@1'] == 0


def test_every_digit_is_trec_evals(tmp_path):
    """Of the run file as pytrec_eval (trec_eval's own code) reads it, query by query."""
    rng = np.random.default_rng(0)
    ids = [f'p{i}' for i in rng.permutation(60)]
    query_ids = [f'q{i}' for i in range(30)]
    passages = np.stack([rng.permutation(60)[:20] for _ in query_ids]).astype(np.int32)
    scores = rng.normal(size=passages.shape).astype(np.float32)
    scores[:15] = rng.integers(0, 4, (15, 20))  # many ties
    scores[15:20] = 0.75 + np.arange(20) * 2.0**-24  # apart in the last bit
    qrels = {q: {ids[p]: int(rng.integers(0, 3)) for p in range(0, 60, 2)} for q in query_ids}
    run = trec.from_ranking(Ranking(passages, scores), query_ids, column(ids))
    keys = {
        'MRR@100': 'recip_rank',
        'nDCG@10': 'ndcg_cut_10',
        'R@10': 'recall_10',
        'R@20': 'recall_20',
        'MAP': 'map',
    }
    found = measures.measure(run, qrels, list(keys))
    found.save(tmp_path, 'x')
    assert measures.load(tmp_path, 'x') == found.per_query
    trec.write(tmp_path / 'run.trec', run, 'x')
    with (tmp_path / 'run.trec').open() as f:
        read = pytrec_eval.parse_run(f)
    judge = pytrec_eval.RelevanceEvaluator(
        qrels, {'recip_rank', 'ndcg_cut.10', 'recall.10,20', 'map'}
    )
    theirs = judge.evaluate(read)
    for query_id in query_ids:
        for name, key in keys.items():
            assert found.per_query[query_id][name] == theirs[query_id][key], (query_id, name)
    for name, key in keys.items():
        mean = np.mean([t[key] for t in theirs.values()])
        assert found.means[name] == pytest.approx(mean, abs=1e-12), name


def test_a_cut_reciprocal_rank_is_the_rank_of_the_first_relevant_passage():
    ids = [f'p{i}' for i in range(20)]
    run = {f'q{i}': {pid: 20.0 - j for j, pid in enumerate(ids)} for i in range(20)}
    qrels = {f'q{i}': {f'p{i}': 1, 'p19': 0} for i in range(20)}
    found = measures.measure(run, qrels, ['MRR@10', 'RR@10']).per_query
    for i in range(20):
        expected = 1 / (i + 1) if i < 10 else 0
        assert found[f'q{i}'] == {'MRR@10': expected, 'RR@10': expected}


def test_answers_in_passages_are_relevance_too():
    """The accuracy of DPR: one of the first k passages holds an answer, judged or not."""
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)  # p0 p1 p2 and p2 p3 p0
    asked = []

    def holds(passage_id):
        asked.append(passage_id)
        return passage_id == 'p2'

    names = ['AnswerR@1', 'R@1', 'AnswerR@2', 'AnswerR@3']
    has_answer = {'a': holds, 'b': holds, 'unranked': holds}
    found = measures.measure(run, QRELS, names, has_answer)
    assert list(found.means) == names
    assert list(found.means.values()) == pytest.approx([1 / 3, 0, 1 / 3, 2 / 3])
    assert found.per_query['a'] == {'AnswerR@1': 0, 'R@1': 0, 'AnswerR@2': 0, 'AnswerR@3': 1}
    assert found.per_query['unranked'] == {'AnswerR@1': 0, 'AnswerR@2': 0, 'AnswerR@3': 0}
    assert asked == ['p0', 'p1', 'p2', 'p2', 'p3', 'p0']


@pytest.mark.parametrize(
    ('name', 'message'),
    [('AnswerR@3', 'AnswerR@3 needs answers, but'), ('R@3', 'R@3 needs judgements')],
)
def test_measures_need_what_they_go_by(name, message):
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)
    qrels, has_answer = ({'a': {}}, {'a': bool}) if name == 'R@3' else (QRELS, {})
    with pytest.raises(ValueError, match=message):
        measures.measure(run, qrels, [name], has_answer)


def test_unknown_measure():
    with pytest.raises(ValueError, match="'MRP@10', which ir_measures does not know"):
        measures.measure({}, QRELS, ['MRP@10'])
    measures.check_names(['AnswerR@20', 'MRR@10'])
    with pytest.raises(ValueError, match="'AnswerR@x', which ir_measures does not know"):
        measures.check_names(['MRR@10', 'AnswerR@x'])


NOT_AT_ALL = ['ERR', 'nDCG@0', 'P@1.5', 'alpha_nDCG@10', 'BPref@10', 'IPrec', 'R(rel=0)@5']


@pytest.mark.parametrize('name', NOT_AT_ALL)
def test_a_measure_that_cannot_be_computed_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=re.escape(f'measures names {name!r}, ')):
        measures.check_names(['nDCG@10', name])


# Of gdeval, which takes only numbers as ids of queries; of trec_eval; and of others.
@pytest.mark.parametrize(
    ('name', 'qrels', 'works'),
    [
        ('ERR@10', {'1': {'p': 1}, '2': {'q': 2}}, True),
        ('ERR@10', {'1': {'p': 1}, 'q2': {'q': 2}}, False),
        ('nDCG(dcg="exp-log2")@10', QRELS, False),
        ('nDCG@10', QRELS, True),
        ('nDCG@10', {'a': {'gone': 0}, 'b': {'p': -2}}, True),
        ('nDCG(gains={0:0,1:3})@10', QRELS, True),
        ('Accuracy@10', {'a': {'p': 1}}, False),
        ('AnswerR@3', QRELS, True),
        ('Compat(p=0.8)', QRELS, True),
    ],
)
def test_measures_are_tried_on_the_judgements_before_any_work(name, qrels, works):
    if works:
        measures.check_computable([name], 'test', qrels, ['p7'])
        return
    with pytest.raises(ValueError, match="cannot be computed over the judgements of split 'test'"):
        measures.check_computable([name], 'test', qrels, ['p7'])


def test_grades_below_minus_one_are_those_of_passages_that_are_not_relevant():
    """TREC's web tracks judge spam -2, on which trec_eval's code crashes."""
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)
    names = ['nDCG@10', 'MAP', 'R@1', 'P@5']
    found = {}
    for low in (0, -1, -2, -7):
        qrels = {q: {'p1': 1, 'p2': low, 'p0': low} for q in ('a', 'b')}
        for _ in range(20):
            found[low] = measures.measure(run, qrels, names).per_query
    assert found[0] == found[-1] == found[-2] == found[-7]


def test_wrong_queries():
    positives = [np.array([0]), np.array([3, 0])]
    found = measures.wrong_queries(ranking(), positives, np.arange(4))
    np.testing.assert_array_equal(found, [False, True])
    # Passage 2, first for the second query, has the text of passage 3.
    found = measures.wrong_queries(ranking(), positives, np.array([0, 1, 2, 2]))
    np.testing.assert_array_equal(found, [False, False])
    nothing = Ranking(np.full((2, 3), -1), np.full((2, 3), -np.inf))
    assert measures.wrong_queries(nothing, positives, np.arange(4)).all()


def test_run_files_come_back(tmp_path):
    run = trec.from_ranking(ranking(), ['a', 'b'], IDS)
    trec.write(tmp_path / 'run.trec', run, 'student')
    assert (tmp_path / 'run.trec').read_text().splitlines()[0] == 'a Q0 p0 1 3 student'
    queries = {'test': {'a': 'x', 'b': 'y'}}
    collection = Collection('c', Passages.from_columns(IDS, [''] * 4, ['x'] * 4), queries, {})
    rows, values = trec.read(tmp_path / 'run.trec', collection).of('b')
    assert dict(zip(rows.tolist(), values, strict=True)) == {2: pytest.approx(0.9), 3: 0.5, 0: 0.5}
