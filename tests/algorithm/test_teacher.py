"""Teacher weights, false negatives and the score histogram."""

import numpy as np
import pytest
import scipy.special

from jdkd.algorithm import teacher as teachers


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
