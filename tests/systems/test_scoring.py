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
