"""Teacher weights, its measures, false negatives and the score histogram."""

import dataclasses

import numpy as np
import pytest
import scipy.special

from jdkd import diagnostics
from jdkd.algorithm import teacher as teachers
from jdkd.config import Config
from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
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
    assert teachers.fit_weights([np.ones((10, 3))]) == [0.0]
    good = labelled_scores([1.5, 0.0], 64)[0]
    by_list = np.repeat(np.arange(64.0), good.shape[1]).reshape(good.shape)  # It orders no list.
    for useless in (np.full_like(good, -10), by_list):
        first, second = teachers.fit_weights([good, useless])
        assert second == 0.0 and [first] == teachers.fit_weights([good])


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


@pytest.mark.parametrize('penalty', [1e-3, 0.1, 1.0])
def test_cross_entropy_falls_as_fast_as_the_penalty_of_the_weights_rises(penalty):
    scores = np.stack(separable_scores(24))

    def cross_entropy(weights):
        logits = np.einsum('k,kmn->mn', weights, scores)
        return -scipy.special.log_softmax(logits, axis=1)[:, 0].mean()

    weights, entropy = teachers._least_cross_entropy(scores, penalty)
    assert entropy == pytest.approx(cross_entropy(weights)) and (weights > 0).all()
    steps = 1e-5 * np.eye(2)
    slope = [(cross_entropy(weights + h) - cross_entropy(weights - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(slope, -penalty * weights, atol=1e-4)


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
    teacher = teachers.Teacher.alone(strong)
    whole = measuring.measure(run, assistant.rank(run.held_out)[0], run.held_out).means['MRR@10']
    assert whole == 0.75
    found = teachers.measure_teacher(run, teacher, first, [assistant, first])
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
    found = teachers.measure_teacher(run, teachers.Teacher.alone(first), first, [partial, first])
    assert set(found) == {'teacher', 'first'}


def test_a_first_stage_that_finds_nothing_is_named(tmp_path):
    class Lost(tables.Table):
        def rank(self, queries):
            shape = len(queries), 2
            return Ranking(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)), {}

    run = tables.make_run(tmp_path, Config(depth=2), 2, {'test': [0]})
    lost = Lost('lost', 'lost', 1.0, run, np.zeros((1, 2)))
    member = tables.make_system(run, 'strong', [[1, 2]])
    with pytest.raises(ValueError, match="'lost' finds no passage for any query of split 'test'"):
        teachers.rerank(run, 'teacher', teachers.Teacher.alone(member), lost, run.test)


def test_whose_scores_count_decides_a_reranking(tmp_path):
    run = tables.make_run(tmp_path, Config(depth=2), 2, {'test': [0]})
    first = tables.make_system(run, 'first', [[1, 2]])
    partial = tables.make_system(run, 'partial', [[1, 2]])
    args = teachers.Teacher.alone(first), first, run.test
    teachers.rerank(run, 'first', *args, within=[partial])
    for within in ([], [dataclasses.replace(partial, digest='other')]):
        with pytest.raises(ValueError, match=r'\(within differ\)'):
            teachers.rerank(run, 'first', *args, within=within)


def test_reranking_goes_on_after_an_interrupt(tmp_path):
    scored = []

    class Stopping(tables.Table):
        def list_scorer(self, queries):
            def score(lists):
                scored.append(self.name)
                if scored == ['a', 'b']:
                    raise KeyboardInterrupt
                return super(Stopping, self).list_scorer(queries)(lists)

            return score

    run = tables.make_run(tmp_path, Config(depth=2), 2, {'test': [0]})
    first = tables.make_system(run, 'first', [[1, 2]])
    members = [Stopping(name, name, 1.0, run, first.scores) for name in 'ab']
    args = teachers.Teacher(members, {'a': 1.0, 'b': 1.0}), first, run.test
    with pytest.raises(KeyboardInterrupt):
        teachers.rerank(run, 'both', *args)
    teachers.rerank(run, 'both', *args)
    assert scored == ['a', 'b', 'b']


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


def test_the_unit_of_the_scores_does_not_matter():
    scores = labelled_scores([1.5, 40.0], 256)
    weights = teachers.fit_weights(scores)
    for unit in (1e-6, 1e6):
        scaled = teachers.fit_weights([unit * s for s in scores])
        np.testing.assert_allclose(np.array(scaled) * unit, weights, rtol=1e-3)


def test_a_fit_just_above_the_floor_is_left_alone():
    scores = labelled_scores([1.5, 40.0], 64)
    free = teachers.fit_weights(scores, floor=0.0)
    logits = sum(w * s for w, s in zip(free, scores, strict=True))
    entropy = -scipy.special.log_softmax(logits, axis=1)[:, 0].mean()
    assert teachers.fit_weights(scores, floor=0.7 * entropy) == free
    assert sum(teachers.fit_weights(scores, floor=1.2 * entropy)) < sum(free)


def test_bins_of_the_histogram():
    teacher = np.array([[8.0, -4.0, 2.0], [6.0, 1 / 3, -4.0]])
    found = teachers.score_histogram(teacher, np.ones(2, bool), num_originals=2, num_reinforced=1)
    assert len(found['edges']) == 41
    assert found['edges'][:2] == [-4.0, -3.7] and found['edges'][-1] == 8.0
    # The quartile of hard negatives is at -4 + 3/4 (4 + 1/3), that of positives at 6.5.
    assert found['gap'] == pytest.approx([-0.75, 6.5])
    assert found['between'] == {
        'positive': 0.5,
        'hard_negative': 0.5,
        'reinforced_negative': 0.5,
    }
    third = teachers.score_histogram(
        np.array([[1 / 3, 0.0]]), np.ones(1, bool), num_originals=2, num_reinforced=0
    )
    assert third['edges'][-1] == 0.3333


def test_logits_are_weighted_sums_and_gaps_stay_gaps(tmp_path):
    run = tables.make_run(tmp_path, Config(depth=2), 3, {'dev': [0, 1], 'test': [0]})
    first = tables.make_system(run, 'first', [[1, 2, 3], [4, 5, 6]])
    second = tables.make_system(run, 'second', [[10, 0, 0], [0, 0, 20]])
    teacher = teachers.Teacher([first, second])
    lists = Lists.from_originals(
        np.array([0, 1, 1], np.int32), np.array([[0, -1], [2, 1], [-1, -1]], np.int32)
    )
    weighted = teacher.with_weights({'second': 0.5, 'first': 2.0})
    found = weighted.logits(run.held_out, lists, tmp_path, prefix='x.')
    np.testing.assert_array_equal(found, [[7, np.nan], [22, 10], [np.nan, np.nan]])
    # The query without any passage is not scored at all.
    assert np.load(tmp_path / 'x.first.00000.npy').shape == (2, 2)
    assert weighted.inputs == {'first': ['first', 2.0], 'second': ['second', 0.5]}
    scores = {'first': np.zeros(1), 'second': np.ones(1)}
    fitted = teacher.fit(scores, lambda given: [float(s[0]) for s in given])
    assert fitted == {'first': 0.0, 'second': 1.0}
    assert weighted.fit(scores, None) == {'first': 2.0, 'second': 0.5}


def test_a_first_stage_that_finds_nothing_is_an_error(tmp_path):
    class Silent(tables.Table):
        def rank(self, queries):
            ranking, facts = super().rank(queries)
            return dataclasses.replace(ranking, passages=np.full((1, 2), -1, np.int32)), facts

    run = tables.make_run(tmp_path, Config(depth=2), 2, {'dev': [0], 'test': [0]})
    first = Silent('first', 'first', 1.0, run, np.array([[1, 2]]))
    with pytest.raises(ValueError, match="first_stage 'first' finds no passage .* 'dev'"):
        teachers.rerank(run, 'teacher', teachers.Teacher.alone(first), first, run.held_out)


def test_reranking_of_nothing_that_has_scores_is_none(tmp_path):
    class Partial(tables.Table):
        is_partial = True

        def covers(self, queries, lists):
            return lists.passages == self.scores.shape[1] - 1

    run = tables.make_run(tmp_path, Config(depth=2), 3, {'dev': [0], 'test': [0]})
    partial = Partial('partial', 'partial', 1.0, run, np.array([[0, 0, 5]]))
    teacher = teachers.Teacher.alone(partial)
    for name, best, expected in (('a', [3, 2, 1], None), ('b', [1, 2, 3], [2, 1])):
        first = tables.make_system(run, name, [best])
        found = teachers.rerank(run, name, teacher, first, run.held_out)
        assert (found and found.passages[0].tolist()) == expected
