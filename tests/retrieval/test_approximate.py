"""ScaNN comes close to exact search."""

import subprocess
import sys

import numpy as np
import pytest

from jdkd.config import IndexConfig
from jdkd.retrieval import approximate
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.vectors import Vectors


def vectors(n, dim=16, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def scann(**overrides):
    fields = {'kind': 'scann', 'reorder': 200, 'threshold': 0.2, 'leaves': 0.7, 'shard': 10**6}
    return IndexConfig(**fields | overrides)


def search_anew(directory, queries, passages, depth, config):
    """Searches an index that is built for it."""
    approximate.build(directory, passages, config)
    return approximate.search(queries, passages, depth, config, directory)


def in_parts(array, size):
    return Vectors(tuple(array[i : i + size] for i in range(0, len(array), size)))


def test_scann_finds_nearly_all_and_recall_says_so(tmp_path):
    queries, passages = vectors(64, 32, seed=1), vectors(4000, 32)
    exact = ExactIndex(passages).search(queries, 20)
    found = search_anew(tmp_path, queries, passages, 20, scann())
    recall = found.recall(exact)
    shared = [len(set(a) & set(b)) for a, b in zip(found.passages, exact.passages, strict=True)]
    assert recall == pytest.approx(np.mean(shared) / 20)
    assert recall > 0.9
    assert (np.diff(found.scores, axis=1) <= 0).all()
    np.testing.assert_allclose(  # what is returned is scored exactly
        found.scores, np.einsum('qd,qnd->qn', queries, passages[found.passages]), atol=1e-6
    )


@pytest.mark.slow
def test_a_tree_is_the_same_in_every_process(tmp_path):
    program = (
        'import pathlib, sys, numpy as np; from jdkd.config import IndexConfig; '
        'from jdkd.retrieval import approximate; '
        'x = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32); '
        'approximate.build(pathlib.Path(sys.argv[1]), x, IndexConfig(shard=20_000))'
    )
    for name in 'ab':
        subprocess.run([sys.executable, '-c', program, tmp_path / name], check=True)
    files = [p for p in (tmp_path / 'a').rglob('*') if p.suffix in ('.npy', '.pb')]
    assert len(files) > 3
    for path in files:
        other = tmp_path / 'b' / path.relative_to(tmp_path / 'a')
        assert path.read_bytes() == other.read_bytes(), path.name


def test_scann_builds_the_same_index_again(tmp_path):
    queries, passages = vectors(64, 32, seed=1), vectors(4000, 32)
    a, b = (search_anew(tmp_path / name, queries, passages, 20, scann(reorder=40)) for name in 'ab')
    np.testing.assert_array_equal(a.passages, b.passages)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_threads_score_candidates_in_blocks_of_any_size(tmp_path, monkeypatch):
    queries, passages = vectors(37, 32, seed=1), in_parts(vectors(3000, 32), 1300)
    expected = search_anew(tmp_path, queries, passages, 20, scann())
    for size in (1, 5 * 200 * 32 * 4):  # One query, or five, at once.
        monkeypatch.setattr(approximate, '_RESCORED_BYTES', size)
        found = approximate.search(queries, passages, 20, scann(), tmp_path)
        np.testing.assert_array_equal(found.passages, expected.passages)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize('tree', [False, True])
def test_an_index_is_built_once_and_searched_shard_by_shard(tmp_path, monkeypatch, tree):
    monkeypatch.setattr(approximate, 'TREE_FROM', 1000 if tree else 10**9)
    queries, passages = vectors(64, 32, seed=1), in_parts(vectors(5000, 32), 1300)
    config = scann(shard=2000)
    approximate.build(tmp_path, passages, config)
    sizes = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
    assert len(list(tmp_path.iterdir())) == 3
    assert not list(tmp_path.rglob('dataset.npy'))  # the vectors are kept once
    found = approximate.search(queries, passages, 20, config, tmp_path)
    approximate.build(tmp_path, passages, config)
    assert sizes == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
    assert found.recall(ExactIndex(passages).search(queries, 20)) > 0.9
    again = search_anew(tmp_path / 'again', queries, passages, 20, config)
    np.testing.assert_array_equal(found.passages, again.passages)


def test_few_candidates_in_the_leaves_leave_no_gaps_or_strangers(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, 'TREE_FROM', 1000)
    queries, passages = vectors(8, 32, seed=1), vectors(1500, 32)
    found = search_anew(tmp_path, queries, passages, 300, scann(leaves=0.01))
    known = found.passages >= 0
    assert 0 < known.mean() < 1  # one leaf of 77 holds no 300 passages
    assert (np.diff(known.astype(int), axis=1) <= 0).all()  # what is missing comes last
    assert np.isneginf(found.scores[~known]).all()
    for row, mask in zip(found.passages, known, strict=True):
        assert len(set(row[mask])) == mask.sum()


def test_a_search_of_all_shards_for_all_passages_is_exact(tmp_path):
    queries, passages = vectors(10, seed=1), np.repeat(vectors(1100), 2, axis=0)
    found = search_anew(tmp_path, queries, passages, 9, scann(shard=2000, reorder=2200))
    exact = ExactIndex(passages).search(queries, 9)
    np.testing.assert_array_equal(found.passages, exact.passages)  # with every tie in order
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-6)


@pytest.mark.parametrize('depth', [20, 4000])
def test_candidates_of_shards_smaller_than_their_number_are_merged(tmp_path, depth):
    queries, passages = vectors(10, seed=1), vectors(5000)
    # Three shards of 1,667 passages, so the first two do not fill 4,500 places.
    found = search_anew(tmp_path, queries, passages, depth, scann(shard=2000, reorder=4500))
    exact = ExactIndex(passages).search(queries, depth)
    assert [len(set(row)) for row in found.passages] == [depth] * 10
    assert found.passages.min() >= 0
    np.testing.assert_array_equal(found.passages[:, :20], exact.passages[:, :20])
    assert found.recall(exact) > 0.9
    assert (found.passages >= 3334).any(axis=1).all()  # the last shard counts


def test_tiny_shards_are_an_error(tmp_path):
    with pytest.raises(ValueError, match='index.shard=1999 is too small; set at least 2000'):
        approximate.build(tmp_path, vectors(4000), scann(shard=1999))


def test_rankings_are_kept(tmp_path):
    ranking = ExactIndex(vectors(9)).search(vectors(3, seed=1), 4)
    ranking.save(tmp_path, 'a')
    found = Ranking.load(tmp_path, 'a')
    np.testing.assert_array_equal(found.passages, ranking.passages)
    np.testing.assert_array_equal(found.scores, ranking.scores)


def test_a_handful_of_passages_is_searched_exactly_and_all_without_scann(monkeypatch):
    said = []
    monkeypatch.setattr(approximate.logging, 'warning', said.append)
    approximate._warn_of_missing_scann.cache_clear()
    config, exact = scann(), scann(kind='exact')
    assert [approximate.is_exact(config, n) for n in (40, 999, 1000)] == [True, True, False]
    assert approximate.is_exact(exact, 10**6)
    monkeypatch.setattr(approximate, 'scann', None)
    assert approximate.is_exact(config, 999) and approximate.is_exact(exact, 10**6)
    assert said == []  # As with ScaNN.
    assert approximate.is_exact(config, 1000) and approximate.is_exact(config, 2000)
    (sentence,) = said
    assert 'ScaNN is not installed' in sentence and 'are searched exactly' in sentence
