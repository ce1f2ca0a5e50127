"""Measures over judgements as they are: those of pytrec_eval, whatever the corpus lacks."""

import json
import types

import numpy as np
import pytest
import pytrec_eval

from jdkd.config import Config
from jdkd.corpus import building, importing, storage
from jdkd.corpus.sources import registry
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Run
from jdkd.systems import measuring

NAMES = {
    'MRR@100': 'recip_rank',
    'nDCG@10': 'ndcg_cut_10',
    'R@5': 'recall_5',
    'MAP': 'map',
    'P@5': 'P_5',
}
PASSAGES = [f'p{i}' for i in range(12)]
RANKED = [0, 3, 7, 1, 2, 5]  # Rows that every query finds, best first.
HEADER = 'query-id\tcorpus-id\tscore\n'


def collect(tmp_path, qrels, queries=('a', 'b', 'c', 'd', 'e'), kind='beir', on_error='stop'):
    root = tmp_path / 'root'
    (root / 'qrels').mkdir(parents=True)
    rows = [f'{q}\t{p}\t{grade}\n' for q, grades in qrels.items() for p, grade in grades.items()]
    if kind == 'beir':
        lines = [{'_id': p, 'text': f'text of {p}'} for p in PASSAGES]
        (root / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, lines)))
        lines = [{'_id': q, 'text': f'text of {q}'} for q in queries]
        (root / 'queries.jsonl').write_text('\n'.join(map(json.dumps, lines)))
        (root / 'qrels/test.tsv').write_text(HEADER + ''.join(rows))
    else:
        (root / 'collection.tsv').write_text(''.join(f'{p}\ttext of {p}\n' for p in PASSAGES))
        (root / 'queries.test.tsv').write_text(''.join(f'{q}\ttext of {q}\n' for q in queries))
        text = ''.join(f'{q} 0 {p} {g}\n' for q, grades in qrels.items() for p, g in grades.items())
        (root / 'qrels.test.tsv').write_text(text)
    out = tmp_path / 'out'
    out.mkdir()
    source = registry.open_source(f'{kind}:{root}', name='x')
    building.build_collection(source, out, on_error=on_error)
    return storage.open_collection(out)


def measured(collection):
    config = Config(measures=tuple(NAMES))
    run = Run(config, None, None, collection)
    ranking = Ranking(
        np.array([RANKED] * len(run.test), np.int32),
        np.array([-np.arange(len(RANKED))] * len(run.test), np.float32),
    )
    return run, measuring.measure(run, ranking, run.test)


def evaluated(qrels):
    scores = {PASSAGES[row]: -float(rank) for rank, row in enumerate(RANKED)}
    judge = pytrec_eval.RelevanceEvaluator(
        qrels, {'recip_rank', 'ndcg_cut.10', 'recall.5', 'map', 'P.5'}
    )
    return judge.evaluate({q: scores for q in qrels})


QRELS = {
    'positives that the corpus lacks': {'a': {'p3': 1, 'gone': 1}, 'b': {'p9': 1, 'p0': 1}},
    'queries with lacking positives alone': {'a': {'p0': 1}, 'b': {'gone': 1}, 'c': {'gone2': 2}},
    'a query judged 0 only': {q: {'p0': 1} for q in 'abcd'} | {'e': {'p0': 0, 'p1': 0}},
    'a lacking passage judged 0': {'a': {'p0': 0, 'gone': 0, 'p3': 1}, 'b': {'p0': 2}},
    'negative grades': {'a': {'p0': -1, 'p3': 2, 'gone': 1}, 'b': {'p7': 1, 'p0': -1}},
    'graded, with a lacking best': {'a': {'gone': 3, 'p3': 2, 'p1': 1}, 'b': {'p2': 1, 'p3': 0}},
    'one query of each kind': {'a': {'p0': 1}, 'b': {'p0': 0}, 'c': {'gone': 1}, 'd': {'p11': 1}},
}


@pytest.mark.parametrize('kind', ['beir', 'msmarco'])
@pytest.mark.parametrize('qrels', QRELS.values(), ids=QRELS)
def test_measures_are_those_of_trec_eval_over_the_file(tmp_path, qrels, kind, caplog):
    collection = collect(tmp_path, qrels, kind=kind)
    run, found = measured(collection)
    theirs = evaluated(qrels)
    assert found.per_query.keys() == theirs.keys() == set(run.test.ids)
    for name, key in NAMES.items():
        for query in theirs:
            assert found.per_query[query][name] == pytest.approx(theirs[query][key], abs=1e-12)
        mean = np.mean([values[key] for values in theirs.values()])
        assert found.means[name] == pytest.approx(mean, abs=1e-12)
    judged = {p for grades in qrels.values() for p in grades}
    assert collection.missing == judged - set(PASSAGES)
    if collection.missing:
        assert 'are of passages that do not exist, the first at ' in caplog.text


@pytest.mark.parametrize('qrels', QRELS.values(), ids=QRELS)
def test_only_passages_that_exist_are_trained_on(tmp_path, qrels):
    collection = collect(tmp_path, qrels)
    run, _ = measured(collection)
    ids = list(collection.passage_ids)
    for query, rows, best in zip(run.test.ids, run.test.positives, run.test.best, strict=True):
        there = {p: g for p, g in qrels[query].items() if g > 0 and p in PASSAGES}
        assert {ids[row] for row in rows} == set(there)
        highest = max(there.values(), default=0)
        assert {ids[row] for row in best} == {p for p, g in there.items() if g == highest}
    labelled = [
        q for q in run.test.ids if any(p in PASSAGES and g > 0 for p, g in qrels[q].items())
    ]
    assert collection.labelled('test') == labelled


def test_five_queries_of_which_one_is_judged_0_are_five(tmp_path):
    """80.0 over 5 queries, as trec_eval gives, and not 100.0 over 4."""
    _, found = measured(collect(tmp_path, QRELS['a query judged 0 only']))
    assert found.means['nDCG@10'] == pytest.approx(0.8) and len(found.per_query) == 5


def test_judgements_of_another_collection_are_refused(tmp_path):
    qrels = {'a': {'x1': 1, 'x2': 0}, 'b': {'x3': 1}}
    with pytest.raises(ValueError, match=r"test.tsv:2: passage 'x1' does not exist, nor does any"):
        collect(tmp_path, qrels)


def test_a_split_without_any_positive_is_not_measured(tmp_path):
    collection = collect(tmp_path, {'a': {'p0': 0}, 'b': {'p1': 0}})
    assert collection.measurable('test') == []


def test_nothing_is_lost_on_the_way_through_the_import(tmp_path):
    qrels = QRELS['one query of each kind']
    assert collect(tmp_path, qrels).qrels == {'test': qrels}


FAULTS = {
    'grades that are no numbers': ('a\tp0\tyes\nb\tp1\tno\n', "test.tsv:2: grade 'yes' must be"),
    'fractions': ('a\tp0\t0.5\n', "test.tsv:2: grade '0.5' must be an integer"),
    'two columns': ('a\tp0\nb\tp1\n', 'test.tsv:2: expected query id, passage id and grade'),
    'commas': ('a,p0,1\nb,p1,1\n', 'test.tsv:2: expected query id, passage id and grade'),
    'unknown queries': ('q01\tp0\t1\nq02\tp1\t1\n', "test.tsv:2: the judgement names query 'q01'"),
    'columns in another order': ('1\ta\tp0\n1\tb\tp1\n', "test.tsv:2: grade 'p0' must be"),
    'not UTF-8': (b'a\tp\xe9\t1\n', 'test.tsv:2: not UTF-8'),
}


@pytest.mark.parametrize(('rows', 'message'), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_every_judgement_is_told_with_its_place(tmp_path, rows, message):
    collect(tmp_path, {'a': {'p0': 1}})
    file = tmp_path / 'root/qrels/test.tsv'
    rows = rows if isinstance(rows, bytes) else rows.encode()
    file.write_bytes(HEADER.encode() + rows)
    source = registry.open_source(f'beir:{tmp_path / "root"}')
    for on_error in ('stop', 'skip'):
        out = tmp_path / on_error
        out.mkdir()
        with pytest.raises(ValueError, match=message):
            building.build_collection(source, out, on_error=on_error)


@pytest.mark.parametrize('name', ['corpus.jsonl', 'queries.jsonl'])
def test_a_fault_in_every_line_is_told_with_its_place(tmp_path, name):
    collect(tmp_path, {'a': {'p0': 1}})
    (tmp_path / 'root' / name).write_text('{"id": "a", "text": "x"}\n' * 3)
    source = registry.open_source(f'beir:{tmp_path / "root"}')
    for on_error in ('stop', 'skip'):
        out = tmp_path / on_error
        out.mkdir()
        with pytest.raises(ValueError, match=f"{name}:1: field '_id' must be a string"):
            building.build_collection(source, out, on_error=on_error)


def test_a_split_with_nothing_to_train_on_is_refused(tmp_path):
    collect(tmp_path, {'a': {'p0': 1}})
    qrels = tmp_path / 'root/qrels'
    (qrels / 'train.tsv').write_text(HEADER + 'b\tp0\t1\n')
    (qrels / 'dev.tsv').write_text(HEADER + 'c\tp0\t0\nc\tgone\t1\n')
    section = Config().collection.replace(source=f'beir:{tmp_path / "root"}')
    config = types.SimpleNamespace(collection=section, seed=0)
    with pytest.raises(ValueError, match="'dev' .* has no query with a positive .* that exists"):
        importing.load_collection(config, tmp_path / 'run')


def test_a_run_file_is_measured_by_the_queries_that_it_has(tmp_path, caplog):
    run, _ = measured(collect(tmp_path, QRELS['a lacking passage judged 0']))
    file = tmp_path / 'other.trec'
    file.write_text('a Q0 p3 1 2.0 x\na Q0 p1 2 3.0 x\n')
    found = measuring.measure_file(run, file, run.test)
    # p3 is second, by score; b is judged and has nothing.
    assert found.per_query['a']['MRR@100'] == 0.5 and found.per_query['b']['MRR@100'] == 0.0
    assert found.means['MRR@100'] == 0.25
    assert "has 1 of the 2 queries of split 'test'; the others count as 0" in caplog.text
    caplog.clear()
    file.write_text('a Q0 p3 1 2.0 x\nb Q0 p1 2 3.0 x\n')
    measuring.measure_file(run, file, run.test)
    assert not caplog.text


def test_a_run_file_loses_own_passages_and_unknown_queries(tmp_path, caplog):
    queries = ('p1', 'a')
    run, _ = measured(collect(tmp_path, {'p1': {'p3': 1}, 'a': {'p0': 1}}, queries))
    file = tmp_path / 'other.trec'
    lines = ['p1 Q0 p1 1 3.0 x', 'p1 Q0 p3 2 2.0 x', 'a Q0 p0 1 3.0 x', 'more Q0 p0 1 3.0 x']
    file.write_text('\n'.join(lines))
    found = measuring.measure_file(run, file, run.test)
    assert found.means['MRR@100'] == 1.0
    assert 'other.trec: left out 1 (unknown query)' in caplog.text
    other = Run(run.config.replace(ignore_identical_ids=False), None, None, run.collection)
    assert measuring.measure_file(other, file, run.test).means['MRR@100'] == 0.75


def test_given_judgements_take_the_place_of_the_collections(tmp_path):
    run, ours = measured(collect(tmp_path, {'a': {'p0': 1}, 'b': {'p3': 1}}))
    ranking = Ranking(np.array([[0, 3]] * 2, np.int32), np.array([[2, 1]] * 2, np.float32))
    given = measuring.measure(run, ranking, run.test, {'a': {'p3': 1}, 'b': {'p0': 1}})
    assert [given.per_query[q]['MRR@100'] for q in 'ab'] == [0.5, 1.0]
    all_of = measuring.measure_all(run, {'x': ranking}, run.test, tmp_path)
    assert [all_of['x'].per_query[q]['MRR@100'] for q in 'ab'] == [1.0, 0.5]
    measuring.write_run_file(tmp_path / 'run.trec', run, ranking, run.test, 'me')
    assert (tmp_path / 'run.trec').read_text().splitlines()[1].split() == [
        *('a', 'Q0', 'p3', '2', '1', 'me')
    ]
