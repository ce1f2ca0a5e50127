"""Teacher weights, false negatives and the score histogram."""

import ml_collections
import numpy as np
import pytest
import scipy.special

from jdkd import gen_dataset, iterate
from jdkd.data.collection import Collection
from jdkd.data.passages import Passages
from jdkd.run import Run
from jdkd.systems import imported


def labelled_scores(weights, size=4000, seed=0):
    """Scores whose positive is drawn from softmax(sum w s), moved to index 0."""
    rng = np.random.default_rng(seed)
    scores = [rng.normal(size=(size, 5)), 0.05 * rng.normal(size=(size, 5))]
    p = scipy.special.softmax(sum(w * s for w, s in zip(weights, scores, strict=True)), axis=1)
    for i in range(size):
        first = rng.choice(5, p=p[i])
        for s in scores:
            s[i, [0, first]] = s[i, [first, 0]]
    return scores


def test_fitted_weights_recover_those_that_made_the_labels():
    found = gen_dataset.fit_weights(labelled_scores([1.5, 40.0]))
    np.testing.assert_allclose(found, [1.5, 40.0], rtol=0.1)


def test_a_member_that_only_harms_gets_no_weight():
    good, bad = labelled_scores([1.5, -40.0])
    assert gen_dataset.fit_weights([good, bad])[1] == 0


def test_constant_scores_do_not_break_the_fit():
    assert np.isfinite(gen_dataset.fit_weights([np.ones((10, 3))])).all()


def test_false_negatives():
    teacher = np.array([[1.0, 2.0, 0.0], [1.0, 1.0, 0.5]])
    np.testing.assert_array_equal(
        gen_dataset.false_negatives(teacher, 'mask'), [[False, True, False], [False] * 3]
    )
    assert not gen_dataset.false_negatives(teacher, 'keep').any()
    with pytest.raises(ValueError, match="use 'mask' or 'keep'"):
        gen_dataset.false_negatives(teacher, 'drop')


def test_histogram_tells_the_kinds_apart():
    # 1 positive, 2 hard negatives, 1 reinforced negative, 1 noisy positive a list.
    teacher = np.tile([8.0, -4.0, -4.0, 2.0, 9.0], (10, 1))
    found = gen_dataset.score_histogram(teacher, num_originals=3, num_reinforced=1)
    assert {k: sum(v) for k, v in found['counts'].items()} == {
        'positive': 10,
        'hard_negative': 20,
        'reinforced_negative': 10,
        'noisy_positive': 10,
    }
    assert found['between'] == {
        'positive': 0.0,
        'hard_negative': 0.0,
        'reinforced_negative': 1.0,
        'noisy_positive': 0.0,
    }


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
