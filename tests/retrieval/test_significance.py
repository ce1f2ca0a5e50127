"""Paired tests: by hand, against scipy's own form of them, and at the edges."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jdkd.retrieval import significance


def values(scores, measure='m'):
    return {f'q{i}': {measure: float(x)} for i, x in enumerate(scores)}


def test_equals_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(50), rng.random(50)
    ours[:5] = theirs[:5]
    found = significance.paired_tests(values(ours), values(theirs))['m']
    assert found['p'] == pytest.approx(scipy.stats.ttest_rel(ours, theirs).pvalue)
    assert found['p_randomisation'] == pytest.approx(found['p'], abs=0.03)
    assert found['difference'] == pytest.approx(ours.mean() - theirs.mean())
    assert found['ties'] == 5 and found['wins'] + found['losses'] == 45
    assert found['wins'] == (ours > theirs).sum()


def test_groups_of_queries_are_taken_together():
    rng = np.random.default_rng(2)
    ours, theirs = rng.random(40), rng.random(40)
    plain = significance.paired_tests(values(ours), values(theirs))
    alone = {f'q{i}': str(i) for i in range(40)}
    found = significance.paired_tests(values(ours), values(theirs), alone)
    assert found['m']['p'] == pytest.approx(plain['m']['p'])
    assert found['m']['p_randomisation'] == plain['m']['p_randomisation']
    # Every query four times tells no more than once.
    repeated = [values(np.repeat(x, 4)) for x in (ours, theirs)]
    groups = {f'q{i}': str(i // 4) for i in range(160)}
    found = significance.paired_tests(*repeated, groups)['m']
    assert found['p'] == pytest.approx(plain['m']['p'])
    assert found['p_randomisation'] == pytest.approx(plain['m']['p_randomisation'], abs=0.01)
    assert significance.paired_tests(*repeated)['m']['p'] < plain['m']['p']
    assert found['difference'] == pytest.approx(plain['m']['difference'])


def test_the_level_is_held_where_groups_differ():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(20), 10)
    found = []
    for _ in range(1000):
        difference = rng.normal(size=20)[group] + rng.normal(size=200)  # Of mean 0.
        found.append([significance.t_test(difference, g) for g in (group, np.arange(200))])
    grouped, alone = np.mean(np.array(found) < 0.05, axis=0)
    assert 0.03 < grouped < 0.07 and alone > 0.3


def test_the_randomisation_test_by_hand():
    differences = np.array([0.5, 0.25, -0.125, 0.5])
    found = significance.paired_tests(values(differences), values(np.zeros(4)))['m']
    signs = itertools.product((-1, 1), repeat=4)
    means = np.array([np.mean(differences * s) for s in signs])
    assert found['p_randomisation'] == np.mean(np.abs(means) >= differences.mean())


def test_the_other_way_round_it_is_the_same_but_for_the_sign():
    rng = np.random.default_rng(1)
    ours, theirs = values(rng.random(30)), values(rng.random(30))
    there, back = (significance.paired_tests(*x)['m'] for x in ((ours, theirs), (theirs, ours)))
    assert there['difference'] == -back['difference'] and there['wins'] == back['losses']
    assert there['p'] == pytest.approx(back['p'])


@pytest.mark.parametrize(
    ('ours', 'theirs', 'p'),
    [([0.5, 0.1], [0.5, 0.1], 1), ([0.5, 0.75], [0.25, 0.5], 0), ([0.5], [0.25], None)],
)
def test_where_t_is_not_defined(ours, theirs, p):
    assert significance.paired_tests(values(ours), values(theirs))['m']['p'] == p


def test_other_queries_are_an_error_and_other_measures_are_left_out():
    with pytest.raises(ValueError, match='3 and 2 were measured, 1 of them on one side only'):
        significance.paired_tests(values([1, 0, 1]), values([1, 0]))
    with pytest.raises(ValueError, match='0 and 0 were measured'):
        significance.paired_tests({}, {})
    assert significance.paired_tests(values([1, 0]), values([1, 0], 'n')) == {}


def test_a_measure_is_compared_over_the_queries_that_have_it():
    ours, theirs = values([1, 0.5, 1]), values([0.5, 0.5, 0])
    ours['q2'] = {'other': 1.0}
    found = significance.paired_tests(ours, theirs)
    assert list(found) == ['m'] and (found['m']['wins'], found['m']['ties']) == (1, 1)
