"""Embeddings in parts read as one array."""

import numpy as np
import pytest

from jdkd.retrieval import vectors


@pytest.fixture
def written(tmp_path):
    array = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    for i in range(3):
        with (tmp_path / vectors.FILE_NAME.format(f'{i:05d}')).open('wb') as f:
            vectors.save(f, array[i * 10 : (i + 1) * 10], 'float32')
    return array, vectors.load(tmp_path)


def test_slices_and_rows_are_those_of_the_whole(written):
    array, found = written
    assert len(found) == 23 and found.shape == (23, 4)
    for part in (slice(None), slice(3, 7), slice(8, 21), slice(10, 20), slice(19, 99), slice(5, 5)):
        np.testing.assert_array_equal(found[part], array[part])
    for rows in ([22, 0, 10, 9, 0], [[3, 15], [21, 20]], []):
        rows = np.array(rows, int)
        np.testing.assert_array_equal(found[rows], array[rows])


def test_parts_may_differ_in_length():
    array = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    found = vectors.Vectors((array[:5], array[5:6], array[6:9], array[9:]))
    assert found.shape == (12, 3)
    for start in range(13):
        for stop in range(start, 13):
            np.testing.assert_array_equal(found[start:stop], array[start:stop])
    rows = np.array([[11, 5, 0], [6, 4, 9]])
    np.testing.assert_array_equal(found[rows], array[rows])


@pytest.mark.parametrize('row', [-1, 23])
def test_rows_beyond_the_collection_are_an_error(written, row):
    with pytest.raises(IndexError, match='between 0 and 22'):
        written[1][np.array([3, row])]


def test_an_empty_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no vectors-'):
        vectors.load(tmp_path)
