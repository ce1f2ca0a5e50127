"""Which train queries come again in the next round."""

import dataclasses

import numpy as np
import pytest

from jdkd.algorithm import hard_queries
from jdkd.algorithm.teacher import Teacher
from jdkd.config import Config
from jdkd.retrieval.ranking import Ranking
from tests.helpers import tables


def test_hard_queries_and_a_share_of_the_others_go_on():
    hard = np.array([True, False, False, True, False, False])
    found = hard_queries.choose(hard, 0.5, seed=0, round_index=0)
    assert {0, 3} <= set(found) and len(found) == 4
    np.testing.assert_array_equal(hard_queries.choose(hard, 0, seed=0, round_index=0), [0, 3])
    none = np.zeros(3, bool)
    np.testing.assert_array_equal(hard_queries.choose(none, 0, seed=0, round_index=0), range(3))


@pytest.mark.parametrize(
    ('rule', 'expected'),
    [('wrong', [False, True, True, True, True]), ('prod', [False, True, False, False, False])],
)
def test_the_rules_by_hand(tmp_path, rule, expected):
    """The student has the positive, p0, at ranks 1, 2, 3, 16 and 15 of its queries."""
    student = np.tile(-np.arange(20.0), (5, 1))
    for row, rank in enumerate((1, 2, 3, 16, 15)):
        student[row, 0] = 0.5 - rank
    teacher = np.zeros((5, 20))
    teacher[:, 0] = 1.0
    teacher[2, 5] = 2.0  # It prefers another passage of the student's.
    teacher[4, 14] = 2.0
    teacher[1, 19] = 2.0  # Not among the student's best 15.
    positives = {'train': [0] * 5, 'dev': [0], 'test': [0]}
    run = tables.make_run(tmp_path, Config(hard_queries=rule, depth=20), 20, positives)
    systems = {n: tables.make_system(run, n, s) for n, s in (('m', student), ('t', teacher))}
    found = hard_queries.find(run, 0, systems['m'], Teacher.alone(systems['t']))
    np.testing.assert_array_equal(found, expected)
    # Another teacher matters to the one rule alone.
    other = dataclasses.replace(systems['t'], digest='other', scores=-teacher)
    run = dataclasses.replace(run, workdir=tmp_path / 'other')
    found = hard_queries.find(run, 0, systems['m'], Teacher.alone(other))
    np.testing.assert_array_equal(found, np.array(expected) & (rule == 'wrong'))


def test_a_passage_without_a_score_is_not_the_teachers_best(tmp_path):
    """The student's order is p1, p0, p2; only query 1 has a score of p1, query 2 none at all."""
    student = np.tile([2.0, 3.0, 1.0], (3, 1))
    teacher = np.array([[1.0, np.nan, 0.0], [1.0, 2.0, 0.0], [np.nan] * 3])
    positives = {'train': [0] * 3, 'dev': [0], 'test': [0]}
    run = tables.make_run(tmp_path, Config(hard_queries='prod', depth=3), 3, positives)
    T = Teacher.alone(tables.Partial('t', 't', 1.0, run, teacher))
    found = hard_queries.find(run, 0, tables.make_system(run, 'm', student), T)
    np.testing.assert_array_equal(found, [True, False, False])


def test_the_choice_is_that_of_earlier_runs():
    """Draws are an interface: whoever changes them says so in the changelog."""
    hard = np.arange(12) % 4 == 0
    found = hard_queries.choose(hard, 0.4, seed=3, round_index=2)
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 8] and found.dtype == np.int32
    again = hard_queries.choose(hard, 0.4, seed=3, round_index=1)
    assert again.tolist() == [0, 1, 2, 4, 6, 8, 11]


def test_padding_is_no_positive():
    """The last passage is one, and -1 would name it."""
    passages = np.array([[0, -1, -1], [0, 2, -1], [0, 1, 2]], np.int32)
    ranking = Ranking(passages, np.zeros(passages.shape, np.float32))
    found = hard_queries._at_rank_2_to_15(ranking, [np.array([2])] * 3, np.arange(3))
    assert found.tolist() == [1, 2] and found.dtype == np.int32
