"""BM25: the formula for new text equals the index's scores and values computed by hand."""

import os
import subprocess
import sys

import bm25s
import numpy as np
import pytest
import scipy.sparse
import Stemmer

from jdkd.retrieval import bm25
from jdkd.retrieval.words import tokenize
from jdkd.runtime import stages

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


def weights(model):
    """`[P, V]` what each term adds to each passage."""
    scores = model.retriever.scores
    shape = (len(model), len(model.idf))
    return scipy.sparse.csc_matrix(
        (scores['data'], scores['indices'], scores['indptr']), shape
    ).toarray()


def test_lists_score_as_the_index_does(model):
    ranking = model.search(QUERIES, depth=5)
    terms = model.query_terms(QUERIES)
    found = model.passage_scores(terms, ranking.passages)
    np.testing.assert_allclose(found, ranking.scores, atol=1e-5)
    everything = model.passage_scores(terms, np.arange(5))
    np.testing.assert_allclose(
        np.take_along_axis(everything, ranking.passages, axis=1), ranking.scores, atol=1e-5
    )
    np.testing.assert_allclose(everything, terms @ weights(model).T, atol=1e-5)


def test_blocks_are_allocated_without_posix_fallocate(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'posix_fallocate')
    monkeypatch.setattr(bm25, '_ZEROS', 100)
    array = bm25._allocate(tmp_path / 'a.npy', np.float32, 1000)
    assert os.stat(tmp_path / 'a.npy').st_blocks * 512 >= 4000
    array[:] = np.arange(1000)
    array.flush()
    np.testing.assert_array_equal(np.load(tmp_path / 'a.npy'), np.arange(1000))


@pytest.mark.parametrize('depth', [2, 5, 100, 900])  # Blocks of 256, 150, 7 and 1 passages.
def test_search_finds_what_bm25s_finds_ties_in_the_order_of_the_collection(tmp_path, depth):
    rng = np.random.default_rng(0)
    passages = [' '.join(f'w{i}' for i in rng.zipf(1.3, rng.integers(1, 9))) for _ in range(1500)]
    queries = ['w1 w2 w3', 'w9', 'w5 w5 w17', 'unknown', 'w1 w1 w1 w2 w99']
    bm25.build(tmp_path, passages, **PARAMETERS)
    model = bm25.load(tmp_path, **PARAMETERS)
    found = model.search(queries, depth)
    for query, rows, scores in zip(queries, found.passages, found.scores, strict=True):
        words = tokenize([query], 'english')[0]
        every = model.retriever.get_scores(words) if words else np.zeros(1500)
        expected = np.argsort(-every, kind='stable')[:depth]
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(scores, every[expected])  # To the last digit.


def test_new_text_scores_as_a_passage_of_the_same_words(model):
    for query in QUERIES:
        terms = model.query_terms([query] * len(PASSAGES))
        np.testing.assert_allclose(
            model.text_scores(terms, PASSAGES),
            model.passage_scores(terms, np.arange(len(PASSAGES))[:, None])[:, 0],
            rtol=1e-6,
        )


def test_a_score_by_hand(model):
    # 'open' stands in 1 of 5 passages; its text has the terms open, file, return, stream.
    sizes = [5, 7, 4, 5, 0]
    idf = np.log(1 + (5 - 1 + 0.5) / (1 + 0.5))
    expected = idf / (1 + 0.9 * (1 - 0.4 + 0.4 * 4 / np.mean(sizes)))
    found = model.passage_scores(model.query_terms(['open', 'open open']), np.array([[2, 0]] * 2))
    assert model.average_length == pytest.approx(np.mean(sizes))
    np.testing.assert_allclose(found, [[expected, 0], [2 * expected, 0]], rtol=1e-5)


def test_unknown_words_add_nothing_but_length(model):
    texts = ['open file', 'open file zebra zebra zebra', 'zebra']
    plain, longer, none = model.text_scores(model.query_terms(['open file'] * 3), texts)
    assert plain > longer > 0 == none


def test_parts_and_a_kill_make_the_index_that_bm25s_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(bm25, '_PASSAGES_PER_PART', 2)
    taken = []

    class Texts(list):
        """Notes which texts were taken; the machine goes down at the third part, once."""

        def __getitem__(self, rows):
            taken.append(rows.start)
            if taken == [0, 2, 4]:
                raise KeyboardInterrupt
            return super().__getitem__(rows)

    def stage():
        stages.build_stage(
            tmp_path / 'index',
            {},
            lambda out: bm25.build(out, Texts(PASSAGES), **PARAMETERS),
            resumable=True,
        )

    with pytest.raises(KeyboardInterrupt):
        stage()
    stage()
    assert taken == [0, 2, 4, 4]
    assert sorted(p.name for p in (tmp_path / 'index').iterdir()) == [
        'bm25s',
        'manifest.json',
        'statistics.json',
    ]
    found = bm25.load(tmp_path / 'index', **PARAMETERS)
    words = bm25s.tokenize(
        PASSAGES,
        stopwords='en',
        stemmer=Stemmer.Stemmer('english'),
        return_ids=False,
        show_progress=False,
    )
    theirs = bm25s.BM25(k1=0.9, b=0.4, method='lucene')
    theirs.index(words, show_progress=False)
    ours = weights(found)
    for word, i in found.retriever.vocab_dict.items():
        np.testing.assert_allclose(ours[:, i], theirs.get_scores([word]), rtol=1e-6)
    assert {*found.retriever.vocab_dict} == {*theirs.vocab_dict} - {''}
    assert [*found.retriever.vocab_dict] == sorted(found.retriever.vocab_dict)


def test_a_query_without_known_terms_scores_zero(model):
    assert (model.search(QUERIES[2:], depth=3).scores == 0).all()


def test_passages_without_terms_are_an_error(tmp_path):
    with pytest.raises(ValueError, match='no terms in 2 passages'):
        bm25.build(tmp_path, ['...', '!!!'], **PARAMETERS)


@pytest.mark.slow
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


def test_scripts_without_spaces_and_with_vowel_marks_are_found(tmp_path):
    passages = ['北京大学在海淀区', '東京は日本の首都です', 'हिन्दी भाषा', 'हिम गिरि', 'Python 3']
    bm25.build(tmp_path, passages, **PARAMETERS)
    model = bm25.load(tmp_path, **PARAMETERS)
    ranking = model.search(['海淀区的大学', '日本の首都', 'हिन्दी', 'गिरि', '東北'], depth=2)
    assert ranking.passages[:, 0].tolist() == [0, 1, 2, 3, 0]
    assert (ranking.scores[:, 0] > 0).tolist() == [True] * 4 + [False]
    assert not ranking.scores[:, 1].any()
