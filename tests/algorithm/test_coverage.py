"""Which pairs and queries a run uses where scores are imported, computed by hand."""

import dataclasses
import logging

import numpy as np
import pytest

from jdkd.algorithm import calibration, coverage, mining, round_files
from jdkd.algorithm.teacher import Teacher, reorder
from jdkd.config import CandidatesConfig, CollectionConfig, Config, ScoresSpec, TeacherConfig
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.run import Run
from jdkd.systems import imported
from tests.helpers import tables

# What the teacher has scored: of `a` the positive p0 and two others, of `b` no positive, of `c` the
# positive p2 and one other; of `d`, in D_eval, the positive p3 and three others.
SCORED = {
    'a': ['p0', 'p4', 'p5'],
    'b': ['p3', 'p4', 'p5'],
    'c': ['p2', 'p5'],
    'd': ['p3', 'p0', 'p4', 'p5'],
}
# What a retriever finds.
FOUND = {
    'a': ['p6', 'p5', 'p0', 'p4'],
    'b': ['p1', 'p4', 'p5'],
    'c': ['p5', 'p6', 'p4'],
    'd': ['p6', 'p5', 'p4', 'p0'],
    'e': ['p0'],
}
QRELS = {
    'train': {'a': {'p0': 1, 'p1': 1}, 'b': {'p1': 1}, 'c': {'p2': 1}},
    'dev': {'d': {'p3': 1}},
    'test': {'e': {'p0': 1}},
}


def write(path, ranked):
    """A run file with scores falling from -1, as those of an LLM that gives log-probabilities."""
    lines = [
        f'{query} Q0 {passage} 1 {-1 - rank} x\n'
        for query, passages in ranked.items()
        for rank, passage in enumerate(passages)
    ]
    path.write_text(''.join(lines))


def make_run(tmp_path, scored=SCORED, qrels=QRELS, missing=None, **candidates):
    write(tmp_path / 'llm.trec', scored)
    write(tmp_path / 'found.trec', FOUND)
    passages = Passages.from_columns(
        [f'p{i}' for i in range(7)], [''] * 7, [f'text {i}' for i in range(7)]
    )
    queries = {split: {q: f'query {q}' for q in own} for split, own in QRELS.items()}
    paths = {'llm': tmp_path / 'llm.trec', 'miner': tmp_path / 'found.trec'}
    config = Config(
        depth=4,
        batch_size=2,
        steps_per_round=4,
        systems={n: ScoresSpec(path=str(path), missing=missing) for n, path in paths.items()},
        teacher=TeacherConfig(members=('llm',)),
        first_stage='miner',
        collection=CollectionConfig(train_split='train', eval_split='dev', test_split='test'),
        candidates=CandidatesConfig(hard_negatives=2, depth=3, **candidates),
    )
    return Run(config, tmp_path / 'w', None, Collection('c', passages, queries, qrels))


def load(run, name):
    return imported.load(run, name, run.config.systems[name])


def mine(run):
    return mining.mine(run, 0, [load(run, 'miner')], [load(run, 'llm')])


def drawn(run, split='train'):
    queries = round_files.split_queries(run, split)
    rows, _, passages = mining.draw(run, split, 0, np.arange(len(queries)))
    return {
        queries.ids[query]: (int(own[0]), {int(p) for p in own[1:]})
        for query, own in zip(rows, passages, strict=True)
    }


@pytest.mark.parametrize('part', [1, mining.PART_QUERIES])
def test_lists_are_drawn_from_scored_pairs(tmp_path, caplog, monkeypatch, part):
    monkeypatch.setattr(mining, 'PART_QUERIES', part)  # Queries that are mined at once.
    run = make_run(tmp_path)
    mine(run)
    assert not list((run.workdir / 'rounds/00/runs').glob('train-*.npy'))
    # The first three scored ones of each, without positives: p6 has no score.
    pool = np.load(run.workdir / 'rounds/00/runs/train.npy')
    np.testing.assert_array_equal(pool, [[5, 4, -1], [4, 5, -1], [5, -1, -1]])
    with caplog.at_level(logging.INFO):
        assert drawn(run) == {'a': (0, {4, 5})}
    assert drawn(run, 'eval')['d'][0] == 3
    (line,) = [r.getMessage() for r in caplog.records if 'left out' in r.getMessage()]
    assert line == (
        "2 of 3 queries of split 'train' are left out, for lack of scores of llm: 1 have no scored "
        'positive, and 1 of the others fewer than 2 scored mined passages'
    )


def test_only_where_no_query_of_a_round_can_be_used_do_others_take_their_place(tmp_path):
    run = make_run(tmp_path, {**SCORED, 'c': ['p2', 'p5', 'p4']})
    mine(run)

    def queries(*rows):
        return set(mining.draw(run, 'train', 0, np.array(rows))[0].tolist())

    # `b` has no scored positive.
    assert queries(0, 1) == {0} and queries(1, 2) == {2} and queries(1) == {0, 2}


def test_d_eval_needs_scores_of_a_labelled_query(tmp_path):
    """The judgements of `f` say that nothing is relevant: there is no list for it."""
    qrels = {**QRELS, 'dev': {**QRELS['dev'], 'f': {'p0': 0}}}
    scored = {q: own for q, own in SCORED.items() if q != 'd'} | {'f': ['p0', 'p4', 'p5']}
    run = make_run(tmp_path, scored, qrels=qrels)
    queries = {**run.collection.queries, 'dev': {'d': 'query d', 'f': 'query f'}}
    run = dataclasses.replace(run, collection=dataclasses.replace(run.collection, queries=queries))
    assert run.held_out.ids == ['d', 'f'] and run.eval_has_labels
    with pytest.raises(ValueError, match="no query of split 'dev' has scores for a positive"):
        coverage.check(run)


def test_with_a_score_for_missing_pairs_all_queries_stay(tmp_path):
    run = make_run(tmp_path, missing=-9.0)
    mine(run)
    pool = np.load(run.workdir / 'rounds/00/runs/train.npy')
    np.testing.assert_array_equal(pool, [[6, 5, -1], [4, 5, -1], [5, 6, 4]])
    assert drawn(run).keys() == {'a', 'b', 'c'}


@pytest.mark.parametrize(
    ('split', 'lost'), [('train', ('a', 'b', 'c')), ('dev', ('d',)), ('train', ('a', 'c'))]
)
def test_a_file_that_no_list_can_be_drawn_from_is_named(tmp_path, split, lost):
    run = make_run(tmp_path, {q: own for q, own in SCORED.items() if q not in lost})
    message = rf"systems.llm.path='.*llm.trec': no query of split '{split}' .* --mode pairs writes"
    with pytest.raises(ValueError, match=message):
        coverage.check(run)
    mine(run)
    with pytest.raises(ValueError, match=message):
        drawn(run, 'train' if split == 'train' else 'eval')


@pytest.mark.parametrize(('split', 'lost'), [('dev', 'd'), ('test', 'e')])
def test_an_imported_first_stage_has_the_queries_to_measure_on(tmp_path, split, lost):
    run = make_run(tmp_path, {**SCORED, 'e': ['p0']})
    coverage.check(run)
    write(tmp_path / 'found.trec', {q: own for q, own in FOUND.items() if q != lost})
    run = dataclasses.replace(run, workdir=tmp_path / 'other')
    with pytest.raises(ValueError, match=f"systems.miner.* has no query of split '{split}', whose"):
        coverage.check(run)


def test_scores_of_other_passages_than_the_mined_are_noticed_after_mining(tmp_path):
    run = make_run(tmp_path, {**SCORED, 'a': ['p0', 'p2', 'p3']})
    coverage.check(run)
    mine(run)
    with pytest.raises(ValueError, match='name the system in candidates.retrievers'):
        drawn(run)


@pytest.mark.parametrize(
    ('tested', 'message'),
    [
        ({}, "for 0 of the 1 queries of split 'test': the report has no row"),
        ({'e': ['p0']}, None),
    ],
)
def test_the_coverage_of_test_is_told_before_the_work(tmp_path, tested, message):
    warnings = coverage.check(make_run(tmp_path, {**SCORED, **tested}))
    assert [message in w['message'] for w in warnings] == ([True] if message else [])


def test_covered_passages_of_a_part_of_the_queries_come_first():
    scores = np.where(np.arange(5) % 2, np.arange(5.0), np.nan) + [[0], [0], [0], [np.nan]]
    partial = tables.Partial('p', 'p', 1.0, None, scores)
    passages = np.array([[4, 3, 1], [1, 2, 3]], np.int32)
    first = coverage.covered_first([partial], None, passages, 2)
    np.testing.assert_array_equal(first, [[3, 1, -1], [-1, -1, -1]])
    first = coverage.covered_first([partial], None, passages, 1)
    np.testing.assert_array_equal(first, [[3, 1, -1], [1, 3, -1]])


def test_what_has_no_score_keeps_its_order_behind():
    nan = np.nan
    passages = np.array([[4, 7, 5, 9, -1], [3, 1, 2, -1, -1]])
    logits = np.array([[nan, -3.0, nan, 2.0, nan], [nan] * 5])
    ranking = reorder(passages, logits)
    np.testing.assert_array_equal(ranking.passages, [[9, 7, 4, 5, -1], [3, 1, 2, -1, -1]])
    np.testing.assert_array_equal(
        ranking.scores, [[2, -3, -4, -6, -np.inf], [-1, -2, -3, -np.inf, -np.inf]]
    )


def weighted(run, system):
    return Teacher([system], round_files.read_fitted(run)['teacher'])


def test_without_labels_the_best_scored_passages_stand_in(tmp_path):
    # `c` finds no passage with a score, and has none to stand in; `d` is all of D_eval.
    run = make_run(tmp_path, {**SCORED, 'c': ['p2']}, qrels={'test': QRELS['test']})
    assert not run.eval_has_labels
    coverage.check(run)
    llm, miner = load(run, 'llm'), load(run, 'miner')
    calibration.fit(run, mine(run), Teacher([llm]), [], [miner])
    # Of `d` p5, p4 and p0 are found and have scores, -4, -3 and -2.
    weights = round_files.read_fitted(run)['teacher']
    assert weights == {'llm': pytest.approx(run.config.spread / np.sqrt(2 / 3))}
    calibration.find_stand_ins(run, weighted(run, llm), [], [miner])
    assert [rows.tolist() for rows in round_files.positives(run)] == [[0], [4], []]
    # Other scores, or more of the retrievers' passages, would give other ones.
    depth = run.config.candidates.replace(stand_ins=2)
    fewer = dataclasses.replace(run, config=run.config.replace(candidates=depth))
    for changed, system, differs in (
        (run, dataclasses.replace(llm, digest='other'), 'partial, teacher'),
        (fewer, llm, 'depth'),
    ):
        with pytest.raises(ValueError, match=rf'\({differs} differ\)'):
            calibration.find_stand_ins(changed, weighted(run, system), [], [miner])
    assert round_files.eval_qrels(run) == {'d': {'p0': 1}}
    # `b` has p5 alone beside its stand-in.
    assert drawn(run) == {'a': (0, {4, 5})}
    assert drawn(run, 'eval') == {'d': (0, {4, 5})}


def test_a_query_of_d_eval_without_a_stand_in_has_no_judgement(tmp_path, monkeypatch):
    monkeypatch.setitem(FOUND, 'a', ['p6'])
    run = make_run(tmp_path, qrels={'test': QRELS['test']})
    run = dataclasses.replace(
        run, config=run.config.replace(collection=run.config.collection.replace(eval_split='train'))
    )
    llm, miner = load(run, 'llm'), load(run, 'miner')
    calibration.fit(run, mine(run), Teacher([llm]), [], [miner])
    # Two lists, of `b` with -2 and -3 and of `c` with -2: the deviations are 1/2 and 0.
    weights = round_files.read_fitted(run)['teacher']
    assert weights == {'llm': pytest.approx(run.config.spread / 0.25)}
    calibration.find_stand_ins(run, weighted(run, llm), [], [miner])
    assert round_files.eval_qrels(run) == {'a': {}, 'b': {'p4': 1}, 'c': {'p5': 1}}


@pytest.mark.parametrize('floor', [0.1, 0.4])
def test_a_fit_to_labels_keeps_the_floor_of_the_config(tmp_path, floor):
    run = make_run(tmp_path)
    run = dataclasses.replace(run, config=run.config.replace(fit_floor=floor))
    calibration.fit(run, mine(run), Teacher([load(run, 'llm')]), [], [load(run, 'miner')])
    weight = round_files.read_fitted(run)['teacher']['llm']
    ((positive, others),) = drawn(run, 'eval').values()
    places = np.array([SCORED['d'].index(f'p{row}') for row in (positive, *others)])
    cross_entropy = np.log(np.exp(-weight * places).sum())  # The positive is first.
    assert cross_entropy == pytest.approx(floor, rel=1e-3)


def test_given_weights_are_those_of_their_members(tmp_path):
    run = make_run(tmp_path)
    llm, miner = load(run, 'llm'), load(run, 'miner')
    mined = mine(run)
    calibration.fit(run, mined, Teacher([llm, miner], {'llm': 1.0, 'miner': 2.0}), [], [miner])
    swapped = Teacher([miner, llm], {'miner': 1.0, 'llm': 2.0})
    with pytest.raises(ValueError, match=r'\(weights differ\)'):
        calibration.fit(run, mined, swapped, [], [miner])


def test_without_labels_and_scores_of_found_passages_the_file_is_named(tmp_path):
    run = make_run(tmp_path, {**SCORED, 'd': ['p1', 'p2', 'p3']}, qrels={'test': QRELS['test']})
    llm, miner = load(run, 'llm'), load(run, 'miner')
    mined = mine(run)
    with pytest.raises(ValueError, match=r"llm.trec': no query of split 'dev' has scores"):
        calibration.fit(run, mined, Teacher([llm]), [], [miner])
