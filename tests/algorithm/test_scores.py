"""Scores of a round's lists: flatness, as it is told of each system."""

import numpy as np

from jdkd.algorithm import scores
from jdkd.config import Config
from tests.helpers import tables


def test_flatness_is_counted_list_by_list(tmp_path):
    run = tables.make_run(tmp_path, Config(), 4, {'train': [0]})
    system = tables.make_system(run, 'a', np.zeros((1, 4)))
    originals = np.array([[1.0, 1.0, 1.0], [0.0, 5.0, 9.0], [9.0, 9.0, 9.0], [0.0, 0.0, 3.0]])
    found = scores._flatness(system, originals)
    assert found['constant_share'] == 0.5
    # Three at the lower end and four at the upper, less one of each, of the ten others.
    assert found['saturated_share'] == 0.5

    class Unbounded(tables.Table):
        may_saturate = False

    other = Unbounded('b', 'b', None, run, np.zeros((1, 4)))
    assert scores._flatness(other, originals) == {'constant_share': 0.5}


def test_logits_are_weighted_and_scaled_scores():
    raw = {'a': np.array([[1.0, 2.0]]), 'b': np.array([[10.0, 30.0]])}
    found = scores._logits(raw, {'a': 2.0, 'b': 0.5}, {'b': 3.0, 'a': 4.0})
    np.testing.assert_array_equal(found['teacher'], [[7.0, 19.0]])
    np.testing.assert_array_equal(found['assistants'], [[[30.0, 90.0], [4.0, 8.0]]])
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    assert set(scores._logits(raw, {'a': 1.0}, {})) == {'teacher'}
