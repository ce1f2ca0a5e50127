"""Features of candidate lists that training reads beside scores."""

import types

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.lists.features import record_features


def test_relevant_groups_are_distinct_sorted_and_padded():
    collection = types.SimpleNamespace(group=np.array([0, 1, 1, 3, 0], np.int32))
    run = types.SimpleNamespace(collection=collection, max_relevant=3)
    lists = Lists.from_originals(np.array([1, 0, 1], np.int32), np.array([[3, 2], [1, 4], [0, 1]]))
    positives = [np.array([2, 1]), np.array([3, 4])]
    features = record_features(run, lists, positives)
    np.testing.assert_array_equal(features['query_row'], [1, 0, 1])
    np.testing.assert_array_equal(features['passages'], lists.passages)
    np.testing.assert_array_equal(features['group'], [[3, 1], [1, 0], [0, 1]])
    # Passages 1 and 2 are one text: one group.
    np.testing.assert_array_equal(features['relevant'], [[0, 3, -1], [1, -1, -1], [0, 3, -1]])
    assert features['relevant'].dtype == np.int32
