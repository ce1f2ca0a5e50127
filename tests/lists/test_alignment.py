"""Texts of an alignment: how many, and that each comes as often as any other."""

import dataclasses

import numpy as np
import pytest

from jdkd.config import AlignConfig
from jdkd.lists import alignment
from jdkd.lists.alignment import AlignmentSize


@pytest.mark.parametrize(
    'passages, queries, parts, expected',
    [
        (900, 300, 1, AlignmentSize(per_query=3, batch_size=10, steps=60)),  # 40 texts a batch
        (900, 300, 4, AlignmentSize(per_query=3, batch_size=8, steps=75)),
        (100, 500, 1, AlignmentSize(per_query=1, batch_size=20, steps=30)),
        (10_000, 10, 1, AlignmentSize(per_query=39, batch_size=1, steps=501)),
        (3, 1, 8, AlignmentSize(per_query=3, batch_size=8, steps=1)),
    ],
)
def test_sizes(passages, queries, parts, expected):
    config = AlignConfig(epochs=2, batch_size=40)
    assert alignment.plan_size(passages, queries, config, parts) == expected
    at_most = config.replace(max_steps=60)
    found = alignment.plan_size(passages, queries, at_most, parts)
    assert found == dataclasses.replace(expected, steps=min(expected.steps, 60))
    at_least = at_most.replace(min_steps=40)
    found = alignment.plan_size(passages, queries, at_least, parts)
    assert found == dataclasses.replace(expected, steps=min(max(expected.steps, 40), 60))


def test_no_text_comes_again_before_all_have():
    texts, size = np.array([2, 3, 5, 8]), AlignmentSize(per_query=3, batch_size=2, steps=3)
    queries, passages = alignment.draw(texts, 4, size, seed=0)
    assert queries.shape == (6,) and passages.shape == (6, 3)
    for values, every in ((queries, range(4)), (passages.ravel(), texts)):
        for start in range(0, len(values) - 3, 4):
            assert set(values[start : start + 4]) == set(every)
    again = alignment.draw(texts, 4, size, seed=0)
    np.testing.assert_array_equal(again[1], passages)
    assert (alignment.draw(texts, 4, size, seed=1)[1] != passages).any()


def test_random_draws_are_those_of_earlier_runs():
    """Draws are an interface: whoever changes them says so in the changelog."""
    size = AlignmentSize(per_query=3, batch_size=2, steps=3)
    queries, passages = alignment.draw(np.array([2, 3, 5, 8]), 4, size, seed=3)
    assert queries.tolist() == [0, 3, 1, 2, 0, 2]
    assert passages.tolist() == [[2, 8, 5], [3, 3, 5], [2, 8, 8], [2, 3, 5], [8, 2, 5], [3, 8, 5]]
    assert queries.dtype == passages.dtype == np.int32
