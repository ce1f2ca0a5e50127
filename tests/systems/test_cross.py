"""Cross-encoders: whom their errors name, and what they cannot do."""

import types

import numpy as np
import pytest

from jdkd.config import Config
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.systems import cross
from tests.helpers import tables


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Scores a pair with ten times the query and the passage; `names` are those of all pairs."""
    run = tables.make_run(tmp_path, Config(), 6, {'test': [0] * 3})
    names = []

    def score_pairs(model, params, queries, query_rows, passages, passage_rows, **kwargs):
        assert (kwargs['separators'], kwargs['mesh']) == (2, run.mesh)
        names.extend(map(kwargs['name'], range(len(query_rows))))
        return np.float32(10 * queries[query_rows] + passages[passage_rows])

    monkeypatch.setattr(cross.encode, 'score_pairs', score_pairs)
    encoder = types.SimpleNamespace(
        model='model',
        params='params',
        separators=2,
        query_tokens=lambda run, queries: np.arange(len(queries)),
        passage_tokens=lambda run: np.arange(6),
        dark_tokens=lambda run, lists: 100 + np.arange(len(lists) * lists.num_dark),
        encode_queries=lambda texts: np.array([*map(int, texts)]),
    )
    system = cross.CrossEncoderSystem('x', 'digest', None, run, encoder)
    return types.SimpleNamespace(system=system, names=names, run=run)


def test_originals_and_dark_examples_are_scored_and_named(system):
    dark = SlicedTexts(np.zeros((6, 3), np.int64), np.ones((2, 3), np.int64))
    lists = Lists(np.array([2, 0]), np.array([[5, 1], [0, 4]]), dark)
    found = system.system.list_scorer(system.run.test)(lists)
    np.testing.assert_array_equal(found, [[25, 21, 120, 121, 122], [0, 4, 103, 104, 105]])
    assert system.names == [
        *("query 'test2' with passage 'p5'", "query 'test2' with passage 'p1'"),
        *("query 'test0' with passage 'p0'", "query 'test0' with passage 'p4'"),
        *(f"query '{q}' with dark example {i}" for q in ('test2', 'test0') for i in range(3)),
    ]
    plain = system.system.list_scorer(system.run.test)(
        Lists.from_originals(lists.query, lists.passages)
    )
    np.testing.assert_array_equal(plain, found[:, :2])


def test_a_question_is_scored_with_passages(system):
    np.testing.assert_array_equal(system.system.score('7', np.array([3, 1])), [73, 71])


def test_it_has_a_model_and_cannot_search(system):
    assert not system.system.is_partial
    with pytest.raises(ValueError, match="'x' is a cross-encoder and cannot search a collection"):
        system.system.rank(system.run.test)
    with pytest.raises(ValueError, match="'x' cannot search for a new question"):
        system.system.search('7', 3)
    with pytest.raises(ValueError, match="'x' scores lists, not whole batches"):
        system.system.batch_scorer(system.run.test)
