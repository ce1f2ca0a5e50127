"""Hard negatives from runs, and which queries have lists."""

import pathlib
import types

import numpy as np
import pytest

from jdkd.algorithm import lists as round_lists
from jdkd.config import CandidatesConfig, Config, ScoresSpec
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.run import Run
from jdkd.systems import imported


def test_a_run_that_is_no_assistant_mines_negatives(tmp_path):
    passages = Passages.from_columns(
        [f'p{i}' for i in range(6)], [''] * 6, [f'text {i}' for i in range(6)]
    )
    queries = {'train': {'a': 'x'}, 'dev': {'b': 'y'}}
    qrels = {'train': {'a': {'p0': 1}}, 'dev': {'b': {'p0': 1}}}
    collection = Collection('c', passages, queries, qrels)
    (tmp_path / 'run.trec').write_text('a Q0 p3 1 9 x\na Q0 p0 2 8 x\na Q0 p5 3 7 x\n')
    config = Config(depth=3, candidates=CandidatesConfig(depth=2))
    run = Run(config, tmp_path / 'run', None, collection)
    miner = imported.load(run, 'other', ScoresSpec(path=str(tmp_path / 'run.trec')))
    round_lists.mine(run, 0, [miner], [])
    # The two best but for the positive; of the other query the run says nothing.
    np.testing.assert_array_equal(np.load(tmp_path / 'run/rounds/00/runs/train.npy'), [[3, -1]])
    np.testing.assert_array_equal(np.load(tmp_path / 'run/rounds/00/runs/eval.npy'), [[-1, -1]])


@pytest.mark.parametrize('eval_queries, lists', [(50, 16), (20, 16), (6, 8)])
def test_the_lists_of_d_eval_are_whole_batches_on_any_number_of_devices(eval_queries, lists):
    config = Config(batch_size=8, steps_per_round=3, candidates=CandidatesConfig(eval_lists=16))
    for devices in (1, 3):
        mesh = types.SimpleNamespace(shape={'data': devices})
        # Queries without a positive have no lists.
        held_out = types.SimpleNamespace(is_labelled=np.arange(eval_queries + 9) < eval_queries)
        run = types.SimpleNamespace(
            config=config, held_out=held_out, eval_has_labels=True, mesh=mesh
        )
        assert round_lists.num_lists(run) == {'train': 24, 'eval': lists}


def test_d_eval_counts_all_judged_queries_and_has_lists_of_the_labelled(tmp_path):
    passages = Passages.from_columns(
        [f'p{i}' for i in range(6)], [''] * 6, [f'text {i}' for i in range(6)]
    )
    queries = {'dev': {'a': 'x', 'zero': 'y', 'gone': 'z', 'unjudged': 'u', 'b': 'v'}}
    grades = {'a': {'p2': 1}, 'zero': {'p0': 0}, 'gone': {'p9': 1}, 'b': {'p3': 2, 'p9': 3}}
    collection = Collection('c', passages, queries, {'dev': grades}, missing=frozenset({'p9'}))
    candidates = CandidatesConfig(hard_negatives=2, eval_lists=4)
    run = Run(Config(batch_size=4, candidates=candidates), tmp_path, None, collection)
    assert run.held_out.ids == ['a', 'zero', 'gone', 'b']
    labelled = np.flatnonzero(run.held_out.is_labelled)
    assert labelled.tolist() == [0, 3]
    pool = np.array([[0, 1, 4]] * 4, np.int32)
    run.stage('rounds/00/runs', {}, lambda out: np.save(out / 'eval.npy', pool))
    rows, _, drawn = round_lists.draw(run, 'eval', 0, labelled)
    assert sorted(rows) == [0, 0, 3, 3]
    assert {(int(q), int(p)) for q, p in zip(rows, drawn[:, 0], strict=True)} == {(0, 2), (3, 3)}


def test_lists_are_made_for_the_highest_grade():
    passages = Passages.from_columns(
        [f'p{i}' for i in range(4)], [''] * 4, [f'text {i}' for i in range(4)]
    )
    queries = {'train': {'a': 'x', 'b': 'y', 'c': 'z'}}
    grades = {'a': {'p2': 1, 'p0': 2, 'p3': 0, 'p1': 2}, 'b': {'p3': 1}, 'c': {'p0': -1}}
    collection = Collection('c', passages, queries, {'train': grades})
    found = Run(Config(), pathlib.Path(), None, collection).train
    assert [rows.tolist() for rows in found.positives] == [[2, 0, 1], [3], []]
    assert [rows.tolist() for rows in found.best] == [[0, 1], [3], []]
