"""BM25: the formula for new text equals the index's scores and values computed by hand."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jdkd.retrieval import bm25

PASSAGES = [
    'A list sorts its items in place.',
    'Return a new sorted list from the items of an iterable.',
    'Open a file and return a stream.',
    'Close the stream of the file; items stay.',
    '...',
]
QUERIES = ['sort the items of a list', 'open file stream', 'nothing-in-common zebra']
PARAMETERS = dict(k1=0.9, b=0.4, language='english')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp('bm25')
    bm25.build(directory, PASSAGES, **PARAMETERS)
    return bm25.load(directory, **PARAMETERS)


def test_pairs_score_as_the_index_does(model):
    ranking = model.search(QUERIES, depth=5)
    rows = np.repeat(np.arange(3), 5)
    terms = model.query_terms(QUERIES)
    found = bm25.pair_scores(terms, rows, model.weights, ranking.passages.ravel())
    np.testing.assert_allclose(found.reshape(3, 5), ranking.scores, atol=1e-5)


def test_new_text_scores_as_a_passage_of_the_same_words(model):
    np.testing.assert_allclose(
        model.text_weights(PASSAGES).toarray(), model.weights.toarray(), rtol=1e-6
    )


def test_a_score_by_hand(model):
    # 'open' stands in 1 of 5 passages; its text has the terms open, file, return, stream.
    sizes = [5, 7, 4, 5, 0]
    idf = np.log(1 + (5 - 1 + 0.5) / (1 + 0.5))
    expected = idf / (1 + 0.9 * (1 - 0.4 + 0.4 * 4 / np.mean(sizes)))
    terms = model.query_terms(['open'])
    found = bm25.pair_scores(terms, np.array([0]), model.weights, np.array([2]))
    assert model.average_length == pytest.approx(np.mean(sizes))
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_unknown_words_add_nothing_but_length(model):
    plain, longer = model.text_weights(['open file', 'open file zebra zebra zebra'])
    assert (longer.data < plain.data).all() and longer.nnz == plain.nnz


def test_a_query_without_known_terms_scores_zero(model):
    assert (model.search(QUERIES[2:], depth=3).scores == 0).all()


def test_passages_without_terms_are_an_error(tmp_path):
    with pytest.raises(ValueError, match='no terms in 2 passages'):
        bm25.build(tmp_path, ['...', '!!!'], **PARAMETERS)


def test_an_index_is_the_same_in_every_process(tmp_path):
    """Strings hash in another way in each process; nothing may depend on it."""
    program = (
        'import pathlib, sys; from jdkd.retrieval import bm25; '
        f'bm25.build(pathlib.Path(sys.argv[1]), {PASSAGES!r}, **{PARAMETERS!r})'
    )
    for seed in ('1', '2'):
        directory = tmp_path / seed
        directory.mkdir()
        env = {**os.environ, 'PYTHONHASHSEED': seed}
        subprocess.run([sys.executable, '-c', program, directory], env=env, check=True)
    for path in (tmp_path / '1').rglob('*.np*'):
        other = tmp_path / '2' / path.relative_to(tmp_path / '1')
        assert path.read_bytes() == other.read_bytes(), path.name
