"""Scores of lists in parts: their order, what a restart keeps, and what is read back."""

import types

import numpy as np
import pytest

from jdkd.lists.candidates import Lists
from jdkd.run import Queries
from jdkd.systems import scoring

QUERIES = Queries('train', ['a', 'b', 'c'], ['x', 'y', 'z'], [], [])
LISTS = Lists.from_originals(
    np.array([2, 0, 1, 0, 2], np.int32), np.arange(10, dtype=np.int32).reshape(5, 2)
)


PART_LISTS = scoring._PART_LISTS


@pytest.fixture(autouse=True)
def parts_of_two(monkeypatch):
    monkeypatch.setattr(scoring, '_PART_LISTS', 2)


class Stub:
    """Scores a pair with ten times the query and the passage."""

    name = 'stub'
    run = types.SimpleNamespace(
        collection=types.SimpleNamespace(passage_ids=[f'p{i}' for i in range(10)])
    )

    def __init__(self, spoilt=None):
        self.calls, self.spoilt = [], spoilt

    def list_scorer(self, queries):
        def score(lists):
            self.calls.append(len(lists))
            scores = (10 * lists.query[:, None] + lists.passages).astype(np.float32)
            return np.where(lists.passages == self.spoilt, np.nan, scores)

        return score


def test_parts_are_joined_in_order_and_read_back(tmp_path):
    system = Stub()
    scores = scoring.score_in_parts(system, QUERIES, LISTS, tmp_path, 'train.stub')
    np.testing.assert_array_equal(scores, 10 * LISTS.query[:, None] + LISTS.passages)
    assert scores.dtype == np.float32 and system.calls == [2, 2, 1]
    parts = sorted(path.name for path in tmp_path.glob('*.npy'))
    assert parts == [f'train.stub.0000{i}.npy' for i in range(3)]
    np.testing.assert_array_equal(scoring.read_parts(tmp_path, 'train.stub', 5), scores)


def test_a_restart_scores_the_missing_parts_alone(tmp_path):
    expected = scoring.score_in_parts(Stub(), QUERIES, LISTS, tmp_path, 'stub')
    (tmp_path / 'stub.00001.npy').unlink()
    system = Stub()
    scores = scoring.score_in_parts(system, QUERIES, LISTS, tmp_path, 'stub')
    assert system.calls == [2]
    np.testing.assert_array_equal(scores, expected)


def test_a_bad_score_is_named_and_its_part_not_kept(tmp_path):
    with pytest.raises(FloatingPointError, match="'stub' gives query 'a' and passage 'p7' the"):
        scoring.score_in_parts(Stub(spoilt=7), QUERIES, LISTS, tmp_path, 'stub')
    assert [path.name for path in tmp_path.glob('*.npy')] == ['stub.00000.npy']


def test_a_bad_score_of_a_dark_example_is_named():
    scores = np.zeros((5, 2, 4))
    scores[3, 1, 3] = np.inf
    with pytest.raises(FloatingPointError, match="query 'a' and dark example 1 the score inf"):
        scoring.check_finite('assistants', scores, Stub.run, QUERIES, LISTS)


def test_parts_have_4096_lists(tmp_path):
    """A restart, and whoever reads the stage, finds the parts by it."""
    assert PART_LISTS == 4096
    assert scoring.read_parts(tmp_path, 'none', 0).shape == (0, 1)


def test_the_first_of_several_bad_scores_is_named():
    scores = np.zeros((5, 4))
    scores[1, 2], scores[3, 0] = np.nan, np.inf
    message = "query 'a' and dark example 0 the score nan, and 2 of 20 scores of split 'train'"
    with pytest.raises(FloatingPointError, match=message):
        scoring.check_finite('llm', scores, Stub.run, QUERIES, LISTS)
    scores[1, 2] = 0
    with pytest.raises(FloatingPointError, match="passage 'p6' the score inf, and 1 of 20"):
        scoring.check_finite('llm', scores, Stub.run, QUERIES, LISTS)


def test_covered_are_the_passages_that_all_systems_cover():
    def covering(*rows):
        return types.SimpleNamespace(covers=lambda queries, lists: np.isin(lists.passages, rows))

    lists = Lists.from_originals(np.array([0, 1], np.int32), np.array([[0, 1, -1], [2, 0, 3]]))
    found = scoring.covered([covering(-1, 0, 1, 2), covering(-1, 0, 2, 3)], QUERIES, lists)
    np.testing.assert_array_equal(found, [[True, False, False], [True, True, False]])
    alone = scoring.covered([], QUERIES, lists)
    np.testing.assert_array_equal(alone, [[True, True, False], [True] * 3])
