"""Search: exact equals brute force, ScaNN comes close and says how close."""

import ml_collections
import numpy as np
import pytest

from jdkd.retrieval import index


def vectors(n, dim=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_exact_search_equals_sorting_all_scores():
    queries, passages = vectors(7, seed=1), vectors(50)
    found = index.exact_search(queries, passages, 10, query_block=3, passage_block=8)
    scores = queries @ passages.T
    expected = np.argsort(-scores, axis=1)[:, :10]
    np.testing.assert_array_equal(found.passages, expected)
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(scores, expected, axis=1), atol=1e-6
    )


def test_exact_ties_keep_the_order_of_the_collection_in_any_blocks():
    passages = np.ones((9, 4), np.float32)
    for block in (2, 4, 100):
        found = index.exact_search(np.ones((1, 4)), passages, 5, passage_block=block)
        np.testing.assert_array_equal(found.passages, [[0, 1, 2, 3, 4]])


def test_depth_is_at_most_the_collection():
    assert index.exact_search(vectors(2), vectors(3), 10).passages.shape == (2, 3)


def test_scann_finds_nearly_all_and_recall_says_so():
    queries, passages = vectors(64, 32, seed=1), vectors(4000, 32)
    exact = index.exact_search(queries, passages, 20)
    found = index.scann_search(queries, passages, 20, reorder=200, threshold=0.2)
    recall = index.recall(found, exact)
    shared = [len(set(a) & set(b)) for a, b in zip(found.passages, exact.passages, strict=True)]
    assert recall == pytest.approx(np.mean(shared) / 20)
    assert recall > 0.9
    assert (np.diff(found.scores, axis=1) <= 0).all()
    np.testing.assert_allclose(  # reordering makes the scores exact
        found.scores[:, 0], (queries * passages[found.passages[:, 0]]).sum(axis=1), atol=1e-5
    )


def test_scann_builds_the_same_index_again():
    queries, passages = vectors(64, 32, seed=1), vectors(4000, 32)
    a, b = (index.scann_search(queries, passages, 20, reorder=40, threshold=0.2) for _ in range(2))
    np.testing.assert_array_equal(a.passages, b.passages)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_scann_on_a_handful_of_passages_is_exact():
    queries, passages = vectors(5, seed=1), vectors(40)
    found = index.scann_search(queries, passages, 10, reorder=20, threshold=0.2)
    assert index.recall(found, index.exact_search(queries, passages, 10)) == 1


def test_unknown_kind():
    with pytest.raises(ValueError, match="use 'scann' or 'exact'"):
        index.search(vectors(1), vectors(2), 1, ml_collections.ConfigDict({'kind': 'faiss'}))


def test_rankings_are_kept(tmp_path):
    ranking = index.exact_search(vectors(3, seed=1), vectors(9), 4)
    ranking.save(tmp_path, 'a')
    found = index.load_ranking(tmp_path, 'a')
    np.testing.assert_array_equal(found.passages, ranking.passages)
    np.testing.assert_array_equal(found.scores, ranking.scores)
