"""Topics of queries: the clusters of their embeddings."""

import numpy as np

from jdkd.algorithm import topics


def test_vectors_that_lie_together_share_a_topic():
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(3, 8)
    group = rng.integers(0, 3, 60)
    vectors = centres[group] + 0.1 * rng.normal(size=(60, 8))
    found = topics.find(vectors, 20, seed=1)
    assert found.shape == (60,) and found.dtype == np.int32
    for topic in np.unique(found):  # No topic holds vectors of two groups.
        assert len(set(group[found == topic])) == 1
    np.testing.assert_array_equal(found, topics.find(vectors, 20, seed=1))


def test_one_topic_holds_what_is_few():
    assert topics.find(np.eye(3), 5, seed=0).tolist() == [0, 0, 0]


def test_topics_of_many_vectors_are_found_from_some(monkeypatch):
    sizes, kmeans = [], topics.vq.kmeans2

    def spy(sample, centres, **kwargs):
        sizes.append((len(sample), len(centres)))
        return kmeans(sample, centres, **kwargs)

    monkeypatch.setattr(topics.vq, 'kmeans2', spy)
    vectors = np.random.default_rng(0).normal(size=(50_010, 2))
    assert len(topics.find(vectors, 25_000, seed=0)) == 50_010
    assert len(topics.find(vectors[:50_000], 25_000, seed=0)) == 50_000
    assert sizes == [(50_000, 3), (50_000, 2)]
