"""BM25 as a system: rankings, lists with dark examples, whole batches, and new questions."""

import numpy as np
import pytest

from jdkd.config import BM25Spec, Config
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.run import Run
from jdkd.systems import lexical

TEXTS = ['the cat sleeps', 'a dog runs', 'cat and dog', 'red bird', 'blue fish swims']


@pytest.fixture(scope='module')
def system(tmp_path_factory):
    passages = Passages.from_columns([f'p{i}' for i in range(5)], [''] * 5, TEXTS)
    queries = {'test': {'a': 'cat', 'b': 'dog runs'}}
    collection = Collection('c', passages, queries, {'test': {'a': {'p0': 1}, 'b': {'p1': 1}}})
    run = Run(Config(depth=2), tmp_path_factory.mktemp('w'), None, collection)
    return lexical.load(run, 'bm25', BM25Spec())


def test_searches_and_scores_agree(system):
    queries = system.run.test
    ranking, _ = system.rank(queries)
    assert ranking.passages.tolist()[1] == [1, 2] and set(ranking.passages[0]) == {0, 2}
    lists = Lists.from_originals(np.arange(2), np.tile(np.arange(5), (2, 1)))
    scores = system.list_scorer(queries)(lists)
    rows = np.arange(2)[:, None]
    np.testing.assert_allclose(scores[rows, ranking.passages], ranking.scores, rtol=1e-6)
    batch = system.batch_scorer(queries)(np.array([1, 0]), np.arange(5))
    np.testing.assert_allclose(batch, scores[::-1], rtol=1e-6)
    np.testing.assert_allclose(system.score('dog runs', np.arange(5)), scores[1], rtol=1e-6)
    assert system.search('dog runs', 2).passages.tolist() == [[1, 2]]


def test_dark_examples_follow_the_originals_and_are_scored_as_texts(system):
    # Query b: 'red bird', 'a dog runs the cat'; query a: 'the cat', '[a dog] runs'.
    slices = np.array([[3, 0, 8], [1, 0, 10], [0, 0, 7], [0, 0, 7], [-1, 0, 5], [1, 5, 10]])
    dark = SlicedTexts(slices, np.array([[1, 2], [1, 2]]))
    lists = Lists(np.array([1, 0]), np.array([[1, 3], [0, 4]]), dark)
    scores = system.list_scorer(system.run.test)(lists)
    assert scores.shape == (2, 4)
    assert (scores > 0).tolist() == [[True, False, False, True], [True, False, True, False]]


def test_zeros_are_no_saturation_and_every_pair_has_a_score(system):
    assert not system.may_saturate and not system.reads_index
    assert not system.is_partial
