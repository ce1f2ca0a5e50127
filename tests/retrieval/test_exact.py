"""Exact search equals brute force, on any number of devices and in any blocks."""

import jax
import ml_dtypes
import numpy as np
import pytest

from jdkd.config import IndexConfig
from jdkd.retrieval import approximate, exact
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.vectors import Vectors
from jdkd.runtime import mesh as meshes


def vectors(n, dim=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def in_parts(array, size):
    return Vectors(tuple(array[i : i + size] for i in range(0, len(array), size)))


def mesh_of(devices, model=1):
    return meshes.make_mesh(model=model, devices=jax.devices()[:devices])


def sorted_scores(queries, passages, depth):
    scores = queries @ passages.T
    rows = np.argsort(-scores, axis=1, kind='stable')[:, :depth]
    return rows, np.take_along_axis(scores, rows, axis=1)


@pytest.mark.parametrize(
    ('devices', 'block', 'tile'),
    [(1, None, 65_536), (1, 8, 3), (2, 17, 4), (8, None, 3), (8, 9, 1)],
)
def test_exact_search_equals_sorting_all_scores(devices, block, tile):
    queries, passages = vectors(7, seed=1), vectors(50)
    searcher = ExactIndex(passages, mesh_of(devices), block=block, tile=tile)
    for _ in range(2):  # The second search finds the passages on the devices, if they fit.
        found = searcher.search(queries, 10)
        rows, scores = sorted_scores(queries, passages, 10)
        np.testing.assert_array_equal(found.passages, rows)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)


def test_all_devices_of_a_mesh_share_the_passages():
    searcher = ExactIndex(vectors(48), mesh_of(8, model=2))
    found = searcher.search(vectors(3, seed=1), 5)
    np.testing.assert_array_equal(
        found.passages, sorted_scores(vectors(3, seed=1), vectors(48), 5)[0]
    )
    shards = searcher._resident.addressable_shards
    assert [shard.data.shape for shard in shards] == [(6, 16)] * 8


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('block', [2, 4, 100])
def test_ties_keep_the_order_of_the_collection_in_any_blocks(devices, block):
    passages = np.ones((9, 4), np.float32)
    searcher = ExactIndex(passages, mesh_of(devices), block=block, tile=2)
    found = searcher.search(np.ones((1, 4), np.float32), 5)
    np.testing.assert_array_equal(found.passages, [[0, 1, 2, 3, 4]])


def test_padding_is_never_found_even_if_all_scores_are_negative():
    passages = -np.abs(vectors(11))
    found = ExactIndex(passages, mesh_of(8)).search(np.abs(vectors(2, seed=1)), 11)
    assert np.array_equal(np.sort(found.passages, axis=1), [range(11)] * 2)
    assert (found.scores < 0).all()


def test_depth_is_at_most_the_collection():
    assert ExactIndex(vectors(3)).search(vectors(2), 10).passages.shape == (2, 3)


def test_more_queries_than_a_block(monkeypatch):
    monkeypatch.setattr('jdkd.retrieval.exact.QUERY_BLOCK', 4)
    queries, passages = vectors(10, seed=1), vectors(30)
    found = ExactIndex(passages, block=9).search(queries, 3)
    np.testing.assert_array_equal(found.passages, sorted_scores(queries, passages, 3)[0])


def test_parts_are_searched_as_one_array():
    queries, passages = vectors(7, seed=1), vectors(50)
    whole = ExactIndex(passages).search(queries, 10)
    found = ExactIndex(in_parts(passages, 12), block=20).search(queries, 10)
    np.testing.assert_array_equal(found.passages, whole.passages)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-6)


def test_bfloat16_passages_stay_bfloat16_on_the_device_and_meet_float32_queries():
    queries, passages = vectors(5, seed=1), vectors(40).astype(ml_dtypes.bfloat16)
    searcher = ExactIndex(in_parts(passages, 16))
    found = searcher.search(queries, 6)
    rows, scores = sorted_scores(queries, passages.astype(np.float32), 6)
    np.testing.assert_array_equal(found.passages, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)  # Of bfloat16: 4e-3.
    assert searcher._resident.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize('devices', [1, 2])
def test_passages_are_put_on_devices_slice_by_slice(monkeypatch, devices):
    queries, passages = vectors(5, seed=1), vectors(61)
    whole = ExactIndex(passages, mesh_of(devices), block=20).search(queries, 9)
    monkeypatch.setattr(exact, '_READ_ROWS', 7)
    found = ExactIndex(passages, mesh_of(devices), block=20).search(queries, 9)
    np.testing.assert_array_equal(found.passages, whole.passages)
    np.testing.assert_array_equal(found.scores, whole.scores)


def test_a_recall_target_is_met():
    queries, passages = vectors(20, seed=1), vectors(3000)
    found = ExactIndex(passages, mesh_of(2)).search(queries, 50, recall_target=0.9)
    assert found.recall(ExactIndex(passages).search(queries, 50)) >= 0.9
    assert (np.diff(found.scores, axis=1) <= 0).all()


@pytest.mark.parametrize(
    ('platform', 'mining', 'kind'),
    [('cpu', 'auto', 'scann'), ('tpu', 'auto', 'exact'), ('gpu', 'scann', 'scann')],
)
def test_accelerators_mine_exactly(platform, mining, kind):
    assert approximate.for_mining(IndexConfig(mining=mining), platform).kind == kind
