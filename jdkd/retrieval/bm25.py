"""BM25: bm25s for search, and the same formula for any text with the collection's statistics."""

import dataclasses
import pathlib
from collections.abc import Sequence

import bm25s
import numpy as np
import scipy.sparse
import Stemmer

from jdkd.retrieval.index import Ranking


@dataclasses.dataclass(frozen=True)
class BM25:
    """A BM25 index and the collection's statistics.

    The score of a text d for a query is the sum over query terms t of
    idf(t) * tf / (tf + k1 (1 - b + b |d| / avgdl)), idf(t) = ln(1 + (N - n_t + 1/2) / (n_t + 1/2))
    (Robertson et al. with the idf of Lucene; bm25s' method `lucene`).

    Attributes:
        retriever: The bm25s index.
        idf: `[V]` float32.
        average_length: avgdl, in tokens.
        weights: `[P, V]` sparse float32, the score that each term of a passage adds.
        k1, b: The formula's.
        language: Of the stemmer and the stop words.
    """

    retriever: bm25s.BM25
    idf: np.ndarray
    average_length: float
    weights: scipy.sparse.csr_matrix
    k1: float
    b: float
    language: str

    def search(self, queries: Sequence[str], depth: int) -> Ranking:
        """The best passages of each query; a passage that shares no term scores 0.

        Args:
            queries: Texts.
            depth: Passages to return.
        """
        depth = min(depth, self.weights.shape[0])
        tokens = _tokenize(queries, self.language)
        rows, scores = self.retriever.retrieve(tokens, k=depth, show_progress=False)
        return Ranking(rows.astype(np.int32), scores.astype(np.float32))

    def text_weights(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        """`[len(texts), V]` what each term of new texts adds; unknown terms add nothing."""
        counts, sizes = self._counts(texts)
        return _weights(counts, sizes, self.idf, self.average_length, self.k1, self.b)

    def query_terms(self, queries: Sequence[str]) -> scipy.sparse.csr_matrix:
        """`[len(queries), V]` how often each term stands in a query."""
        return self._counts(queries)[0]

    def _counts(self, texts):
        vocabulary = self.retriever.vocab_dict
        words = _tokenize(texts, self.language)
        ids = [[vocabulary[w] for w in text if w in vocabulary] for text in words]
        return _count_matrix(ids, len(self.idf)), np.array([len(text) for text in words])


def pair_scores(
    queries: scipy.sparse.csr_matrix,
    query_rows: np.ndarray,
    texts: scipy.sparse.csr_matrix,
    text_rows: np.ndarray,
) -> np.ndarray:
    """Scores of (query, text) pairs.

    Args:
        queries: `[Q, V]` from `query_terms`.
        query_rows: `[n]` rows of `queries`.
        texts: `[T, V]` from `weights` or `text_weights`.
        text_rows: `[n]` rows of `texts`.

    Returns:
        `[n]` float32.
    """
    out = np.empty(len(query_rows), np.float32)
    for start in range(0, len(out), 65_536):  # Bounds the memory of the gathered rows.
        part = slice(start, start + 65_536)
        product = queries[query_rows[part]].multiply(texts[text_rows[part]])
        out[part] = np.asarray(product.sum(axis=1)).ravel()
    return out


def build(
    directory: pathlib.Path, passages: Sequence[str], *, k1: float, b: float, language: str
) -> None:
    """Indexes passages into a directory; `load` reads it.

    Raises:
        ValueError: if no passage holds a term.
    """
    words = _tokenize(passages, language)
    sizes = np.array([len(text) for text in words])
    if not sizes.sum():
        raise ValueError(
            f"BM25 finds no terms in {len(passages)} passages with language '{language}'."
        )
    # Sorted: bm25s would number terms in an order that differs from process to process, and so
    # would the rounding of sums over them.
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in words for w in text}))}
    ids = [[vocabulary[word] for word in text] for text in words]
    counts = _count_matrix(ids, len(vocabulary))
    retriever = bm25s.BM25(k1=k1, b=b, method='lucene', idf_method='lucene')
    retriever.index((ids, vocabulary), show_progress=False)
    retriever.save(str(directory / 'bm25s'))
    n = np.asarray((counts > 0).sum(axis=0)).ravel()
    idf = np.log(1 + (len(passages) - n + 0.5) / (n + 0.5)).astype(np.float32)
    weights = _weights(counts, sizes, idf, sizes.mean(), k1, b)
    np.savez(
        directory / 'statistics.npz',
        idf=idf,
        average_length=sizes.mean(),
        data=weights.data,
        indices=weights.indices,
        indptr=weights.indptr,
        shape=weights.shape,
    )


def load(directory: pathlib.Path, *, k1: float, b: float, language: str) -> BM25:
    """Loads what `build` wrote with the same parameters."""
    with np.load(directory / 'statistics.npz') as f:
        weights = scipy.sparse.csr_matrix(
            (f['data'], f['indices'], f['indptr']), shape=tuple(f['shape'])
        )
        idf, average_length = f['idf'], float(f['average_length'])
    retriever = bm25s.BM25.load(str(directory / 'bm25s'))
    return BM25(retriever, idf, average_length, weights, k1, b, language)


def _tokenize(texts: Sequence[str], language: str) -> list[list[str]]:
    return bm25s.tokenize(
        list(texts),
        stopwords='en' if language == 'english' else [],
        stemmer=Stemmer.Stemmer(language),
        return_ids=False,
        show_progress=False,
    )


def _count_matrix(ids: Sequence[Sequence[int]], size: int) -> scipy.sparse.csr_matrix:
    sizes = [len(row) for row in ids]
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.fromiter((i for row in ids for i in row), np.int32, indptr[-1])
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, indptr), shape=(len(ids), size)
    )
    counts.sum_duplicates()
    return counts


def _weights(counts, sizes, idf, average_length, k1, b) -> scipy.sparse.csr_matrix:
    weights = counts.copy()
    norm = k1 * (1 - b + b * sizes / average_length)
    per_entry = np.repeat(norm, np.diff(counts.indptr)).astype(np.float32)
    weights.data = idf[counts.indices] * counts.data / (counts.data + per_entry)
    return weights
