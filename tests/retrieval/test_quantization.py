"""Quantised embeddings: the codes of sentence-transformers, and what searches read of them."""

import numpy as np
import pytest

from jdkd.config import IndexConfig
from jdkd.retrieval import approximate, exact, vectors
from jdkd.retrieval.quantization import Binary, Int8


def unit(n, dim=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def keep(directory, array, store, size=1000):
    directory.mkdir()
    for i, start in enumerate(range(0, len(array), size)):
        with (directory / vectors.FILE_NAME.format(f'{i:05d}')).open('wb') as f:
            vectors.save(f, array[start : start + size], store)
    return vectors.load(directory)


def test_codes_are_those_of_sentence_transformers():
    theirs = pytest.importorskip('sentence_transformers.util.quantization')
    array = unit(500, 24)
    array[:, 3] = 0.25  # A dimension without a range.
    np.testing.assert_array_equal(
        Int8.of(array).codes, theirs.quantize_embeddings(array, precision='int8')
    )
    np.testing.assert_array_equal(
        Binary.of(array).bits, theirs.quantize_embeddings(array, precision='ubinary')
    )


def test_int8_by_hand():
    array = np.array([[0.0, 5.0], [255.0, 5.0], [100.5, 5.0]], np.float32)
    found = Int8.of(array)
    np.testing.assert_array_equal(found.ranges, [[0, 5], [255, 5]])
    np.testing.assert_array_equal(found.codes[:, 0], [-128, 127, -28])
    np.testing.assert_array_equal(found[:], [[0.5, 5], [255, 5], [100.5, 5]])
    # Others are cut to the ranges.
    np.testing.assert_array_equal(found.round(np.array([[-9.0, 9.0]])), [[0.5, 5]])


def test_binary_by_hand():
    array = np.array([[3.0, -1.0, 0.0, 2.0] * 4], np.float32)
    found = Binary.of(array)
    assert found.bits.tolist() == [[0b10011001, 0b10011001]]
    expected = np.array([[1, -1, -1, 1] * 4]) / 4
    np.testing.assert_array_equal(found[:], expected)
    np.testing.assert_array_equal(found.round(array), expected)


def test_int8_takes_any_width(tmp_path):
    array = unit(20)[:, :6]
    found = Int8.from_rows(Int8.of(array).to_rows())
    np.testing.assert_array_equal(found[:], Int8.of(array)[:])
    assert np.abs(found[:] - array).max() < 0.01


@pytest.mark.parametrize(('store', 'share'), [('int8', 4), ('binary', 32)])
def test_files_hold_the_codes_and_are_read_as_vectors(tmp_path, store, share):
    array = unit(2500)
    found = keep(tmp_path / 'w', array, store)
    assert found.shape == array.shape and found[:].dtype == np.float32
    written = sum(p.stat().st_size for p in (tmp_path / 'w').iterdir())
    assert written <= array.nbytes / share + 3 * (8 * 16 + 128)  # Ranges and headers.
    own = {'int8': Int8, 'binary': Binary}[store].of(array[2000:])
    np.testing.assert_array_equal(found[2000:2500], own[:])  # In ranges of their own.
    rows = np.array([[2499, 3], [0, 1200]])
    np.testing.assert_array_equal(found[rows], found[:][rows])
    np.testing.assert_array_equal(found.round(array[:1000]), found[:1000])
    if store == 'int8':
        steps = np.ptp(array[:1000], axis=0) / 255
        assert (np.abs(found[:1000] - array[:1000]) <= 0.51 * steps).all()


@pytest.mark.parametrize(('store', 'least'), [('int8', 0.97), ('binary', 0.3)])
def test_searches_score_the_codes_with_float32_queries(tmp_path, store, least):
    queries, array = unit(64, 32, seed=1), unit(3000, 32)
    passages = keep(tmp_path / 'w', array, store)
    found = exact.ExactIndex(passages).search(queries, 20)
    scores = queries @ passages[:].T
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :20], atol=1e-6)
    assert found.recall(exact.ExactIndex(array).search(queries, 20)) > least
    config = IndexConfig(kind='scann', reorder=300, leaves=0.7)
    approximate.build(tmp_path / 'index', passages, config)
    nearest = approximate.search(queries, passages, 20, config, tmp_path / 'index')
    assert nearest.recall(found) > 0.9
    np.testing.assert_allclose(
        nearest.scores, np.take_along_axis(scores, nearest.passages, axis=1), atol=1e-6
    )
