"""Hard negatives from runs; which assistant goes, and which queries stay."""

import ml_collections
import numpy as np

from jdkd import gen_dataset, iterate
from jdkd.data.collection import Collection
from jdkd.data.passages import Passages
from jdkd.run import Run
from jdkd.systems import imported


def test_a_run_that_is_no_assistant_mines_negatives(tmp_path):
    passages = Passages.of([f'p{i}' for i in range(6)], [''] * 6, [f'text {i}' for i in range(6)])
    queries = {'train': {'a': 'x'}, 'dev': {'b': 'y'}}
    qrels = {'train': {'a': {'p0': 1}}, 'dev': {'b': {'p0': 1}}}
    collection = Collection('c', passages, queries, qrels)
    (tmp_path / 'run.trec').write_text('a Q0 p3 1 9 x\na Q0 p0 2 8 x\na Q0 p5 3 7 x\n')
    config = ml_collections.ConfigDict(
        {
            'depth': 3,
            'ignore_identical_ids': True,
            'candidates': {'depth': 2},
            'collection': {'train_split': 'train', 'eval_split': 'dev'},
        }
    )
    run = Run(config, tmp_path / 'run', None, collection)
    spec = {'path': str(tmp_path / 'run.trec'), 'on_error': 'stop', 'missing': None, 'scale': None}
    miner = imported.load(run, 'other', ml_collections.ConfigDict(spec))
    gen_dataset._runs(run, 'rounds/00/runs', [miner])
    # The two best but for the positive; of the other query the run says nothing.
    np.testing.assert_array_equal(np.load(tmp_path / 'run/rounds/00/runs/train.npy'), [[3, -1]])
    np.testing.assert_array_equal(np.load(tmp_path / 'run/rounds/00/runs/eval.npy'), [[-1, -1]])


def test_the_worst_beaten_assistant_is_replaced_and_ties_keep_it():
    pool = {'a': {'MRR@10': 0.5}, 'b': {'MRR@10': 0.3}, 'c': {'MRR@10': 0.4}}
    assert iterate.worst_beaten({'MRR@10': 0.45}, pool, 'MRR@10') == 'b'
    assert iterate.worst_beaten({'MRR@10': 0.3}, pool, 'MRR@10') is None
    assert iterate.worst_beaten({'MRR@10': 0.9}, {}, 'MRR@10') is None


def test_wrong_queries_and_a_share_of_the_solved_go_on():
    wrong = np.array([True, False, False, True, False, False])
    found = iterate.harder_queries(wrong, 0.5, seed=0, round_index=0)
    assert {0, 3} <= set(found) and len(found) == 4
    np.testing.assert_array_equal(iterate.harder_queries(wrong, 0, seed=0, round_index=0), [0, 3])
    none = np.zeros(3, bool)
    np.testing.assert_array_equal(iterate.harder_queries(none, 0, seed=0, round_index=0), range(3))
