"""Teacher weights, its measures, false negatives and the score histogram."""

import numpy as np
import pytest
import scipy.special

from jdkd import diagnostics
from jdkd.algorithm import teacher as teachers
from jdkd.config import Config
from jdkd.systems import measuring
from tests.helpers import tables


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
    found = teachers.fit_weights(labelled_scores([1.5, 40.0]))
    np.testing.assert_allclose(found, [1.5, 40.0], rtol=0.1)


def test_a_member_that_only_harms_gets_no_weight():
    good, bad = labelled_scores([1.5, -40.0])
    assert teachers.fit_weights([good, bad])[1] == 0


def test_constant_scores_do_not_break_the_fit():
    assert np.isfinite(teachers.fit_weights([np.ones((10, 3))])).all()


def separable_scores(size, members=2):
    """Scores of members that always give the positive, at index 0, the best."""
    rng = np.random.default_rng(size)
    scores = rng.normal(size=(members, size, 4))
    scores[:, :, 0] = scores.max(axis=2) + rng.exponential(0.5, (members, size)) + 0.01
    return list(scores)


@pytest.mark.parametrize('size', [24, 256, 1000])
def test_a_teacher_that_is_always_right_does_not_copy_the_labels(size):
    scores = separable_scores(size)
    weights = teachers.fit_weights(scores, floor=0.1)
    logits = sum(w * s for w, s in zip(weights, scores, strict=True))
    entropy = -scipy.special.log_softmax(logits, axis=1)[:, 0].mean()
    assert entropy == pytest.approx(0.1, rel=1e-3)
    assert diagnostics.one_hot_share(logits, 1.0) < 0.3
    # Without a floor the weights have no end but the optimiser's patience.
    free = teachers.fit_weights(scores, floor=0.0)
    logits = sum(w * s for w, s in zip(free, scores, strict=True))
    assert diagnostics.one_hot_share(logits, 1.0) > 0.95
    # The unit of the scores does not matter, and equal members get equal weights.
    scaled = teachers.fit_weights([1000 * scores[0], scores[1]], floor=0.1)
    np.testing.assert_allclose([1000 * scaled[0], scaled[1]], weights, rtol=1e-2)
    np.testing.assert_allclose(*teachers.fit_weights([scores[0]] * 2, floor=0.1), rtol=1e-3)


@pytest.mark.parametrize('size', [24, 256])
def test_the_floor_does_not_touch_a_fit_above_it(size):
    scores = labelled_scores([1.5, 40.0], size)
    free, found = (teachers.fit_weights(scores, floor=floor) for floor in (0.0, 0.1))
    assert found == free


def test_teacher_and_assistants_are_compared_on_the_same_passages(tmp_path):
    """The assistant finds what the first stage misses; on its passages the teacher is better."""
    run = tables.make_run(tmp_path, Config(depth=2), 4, {'dev': [0, 3], 'test': [0]})
    first = tables.make_system(run, 'first', [[1, 2, 0, 0], [1, 2, 0, 0]])
    strong = tables.make_system(run, 'strong', [[2, 1, 0, 0], [2, 1, 0, 0]])
    assistant = tables.make_system(run, 'assistant', [[1, 2, 0, 0], [0, 0, 0, 9]])
    teacher = teachers.Teacher([strong], [1.0])
    whole = measuring.measure(run, assistant.rank(run.held_out)[0], run.held_out).means['MRR@10']
    assert whole == 0.75
    scores = {'teacher': {'strong': 1.0}}
    found = teachers.measure_teacher(run, teacher, scores, first, [assistant, first])
    assert {n: m['MRR@10'] for n, m in found.items()} == {
        'teacher': 0.5,
        'assistant': 0.25,
        'first': 0.25,
    }
    assert not diagnostics.teacher_warnings('MRR@10', found, 'first')


def test_assistants_without_all_scores_are_not_compared(tmp_path):
    class Partial(tables.Table):
        def covers(self, queries, lists):
            return lists.passages == 1

    run = tables.make_run(tmp_path, Config(depth=2), 2, {'dev': [0], 'test': [0]})
    first = tables.make_system(run, 'first', [[1, 2]])
    partial = Partial('partial', 'partial', 1.0, run, np.array([[2, 1]]))
    teacher, scores = teachers.Teacher([first], [1.0]), {'teacher': {'first': 1.0}}
    found = teachers.measure_teacher(run, teacher, scores, first, [partial, first])
    assert set(found) == {'teacher', 'first'}


def test_false_negatives():
    teacher = np.array([[1.0, 2.0, 0.0], [1.0, 1.0, 0.5]])
    np.testing.assert_array_equal(
        teachers.false_negatives(teacher, 'mask', 0.0), [[False, True, False], [False] * 3]
    )
    np.testing.assert_array_equal(
        teachers.false_negatives(teacher, 'mask', 0.7), [[False, True, False], [False, True, True]]
    )
    assert not teachers.false_negatives(teacher, 'keep', 0.0).any()
    with pytest.raises(ValueError, match="use 'mask' or 'keep'"):
        teachers.false_negatives(teacher, 'drop', 0.0)


def test_histogram_tells_the_kinds_apart():
    # 1 positive, 2 hard negatives, 1 reinforced negative, 1 noisy positive a list.
    teacher = np.tile([8.0, -4.0, -4.0, 2.0, 9.0], (10, 1))
    counts = {'num_originals': 3, 'num_reinforced': 1}
    found = teachers.score_histogram(teacher, np.ones(10, bool), **counts)
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
    assert found['gap'] == [-4, 8]
    # A teacher that tells hard negatives from positives so badly that there is no gap.
    overlapping = teachers.score_histogram(-teacher, np.ones(10, bool), **counts)
    assert overlapping['gap'] == [4, -8]
    assert overlapping['between']['reinforced_negative'] == 1.0
    few = teachers.score_histogram(teacher, np.arange(10) < 3, **counts)['counts']
    assert sum(few['positive']) == 3 and sum(few['stand_in']) == 7
