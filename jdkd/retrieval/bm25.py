"""BM25: bm25s for search, and the same formula for any text with the collection's statistics.

bm25s is imported where it is used: it runs JAX as it is imported, and several processes must have
found each other before any of them does (`distributed.start`).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import Stemmer

from jdkd.retrieval.index import Ranking
from jdkd.runtime import distributed, stages
from jdkd.runtime.parts import write_parts

_PART = 65_536  # Passages whose terms are counted at once.


@dataclasses.dataclass(frozen=True)
class BM25:
    """A BM25 index and the collection's statistics.

    The score of a text d for a query is the sum over query terms t of
    idf(t) * tf / (tf + k1 (1 - b + b |d| / avgdl)), idf(t) = ln(1 + (N - n_t + 1/2) / (n_t + 1/2))
    (Robertson et al. with the idf of Lucene; bm25s' method `lucene`).

    Attributes:
        retriever: The bm25s index, memory-mapped: for each term the passages that hold it, in
            order, and what it adds to their scores.
        average_length: avgdl, in tokens.
        k1, b: The formula's.
        language: Of the stemmer and the stop words.
    """

    retriever: Any
    average_length: float
    k1: float
    b: float
    language: str

    def __len__(self) -> int:
        return self.retriever.scores['num_docs']

    @functools.cached_property
    def idf(self) -> np.ndarray:
        """`[V]` float32."""
        return _idf(np.diff(self.retriever.scores['indptr']), len(self))

    def search(self, queries: Sequence[str], depth: int) -> Ranking:
        """The best passages of each query; a passage that shares no term scores 0.

        Args:
                queries: Texts.
            depth: Passages to return.
        """
        depth = min(depth, len(self))
        tokens = _tokenize(queries, self.language)
        rows, scores = self.retriever.retrieve(tokens, k=depth, show_progress=False)
        return Ranking(rows.astype(np.int32), scores.astype(np.float32))

    def query_terms(self, queries: Sequence[str]) -> scipy.sparse.csr_matrix:
        """`[len(queries), V]` how often each term stands in a query."""
        return self._counts(queries)[0]

    def list_scores(self, terms: scipy.sparse.csr_matrix, passages: np.ndarray) -> np.ndarray:
        """Scores `[M, N]` float32 of candidate lists.

        Args:
            terms: `[M, V]` from `query_terms`, the query of each list.
            passages: `[M, N]` rows of the collection.
        """
        out = np.zeros(passages.shape, np.float32)
        for term, lists, counts in _by_term(terms):
            out[lists] += counts[:, None] * self._added(term, passages[lists])
        return out

    def all_scores(self, terms: scipy.sparse.csr_matrix, passages: np.ndarray) -> np.ndarray:
        """Scores `[Q, C]` float32 of each query, as `[Q, V]` terms, with each of `[C]` passages."""
        out = np.zeros((terms.shape[0], len(passages)), np.float32)
        for term, queries, counts in _by_term(terms):
            out[queries] += counts[:, None] * self._added(term, passages)
        return out

    def text_scores(self, terms: scipy.sparse.csr_matrix, texts: Sequence[str]) -> np.ndarray:
        """Scores `[n]` float32 of pairs of a query, as `[n, V]` terms, and a new text.

        Texts are weighed with the collection's statistics; unknown terms add nothing but length.
        """
        counts, sizes = self._counts(texts)
        weights = _weights(counts, sizes, self.idf, self.average_length, self.k1, self.b)
        return np.asarray(terms.multiply(weights).sum(axis=1), np.float32).ravel()

    def _added(self, term: int, passages: np.ndarray) -> np.ndarray:
        """What a term adds to the scores of passages, in the shape of these."""
        scores = self.retriever.scores
        start, end = scores['indptr'][term : term + 2]
        holding, added = scores['indices'][start:end], scores['data'][start:end]
        at = np.minimum(np.searchsorted(holding, passages.astype(holding.dtype)), len(holding) - 1)
        return np.where(holding[at] == passages, added[at], np.float32(0))

    def _counts(self, texts):
        vocabulary = self.retriever.vocab_dict
        words = _tokenize(texts, self.language)
        ids = [[vocabulary[w] for w in text if w in vocabulary] for text in words]
        return _count_matrix(ids, len(self.idf)), np.array([len(text) for text in words])


def build(
    directory: pathlib.Path, passages: Sequence[str], *, k1: float, b: float, language: str
) -> None:
    """Indexes passages into a directory; `load` reads it.

    Made for a resumable stage. Terms are counted in parts on disk, from which the index is put
    together in memory-mapped files: memory is bounded by the words of 65,536 passages and the
    vocabulary, whatever their number.

    Args:
        directory: Of the stage.
        passages: Texts; taken in slices.
        k1, b: The formula's.
        language: Of the stemmer and the stop words.

    Raises:
        ValueError: if no passage holds a term.
    """
    import bm25s

    def count(i, file):
        words = _tokenize(passages[i * _PART : (i + 1) * _PART], language)
        known = sorted({word for text in words for word in text})
        number = {word: j for j, word in enumerate(known)}
        counts = _count_matrix([[number[word] for word in text] for text in words], len(known))
        np.savez(
            file,
            words=np.frombuffer('\n'.join(known).encode(), np.uint8),
            data=counts.data,
            indices=counts.indices,
            indptr=counts.indptr,
            sizes=np.array([len(text) for text in words]),
        )

    paths = write_parts(directory, 'counts-{}.npz', -(-len(passages) // _PART), count)
    if not distributed.is_primary():
        return
    known, total = set(), 0
    for path in paths:
        part = _read_counts(path)
        known.update(part.words)
        total += part.sizes.sum()
    if not total:
        raise ValueError(
            f"BM25 finds no terms in {len(passages)} passages with language '{language}'."
        )
    # Sorted: bm25s would number terms in an order that differs from process to process, and so
    # would the rounding of sums over them.
    vocabulary = {word: i for i, word in enumerate(sorted(known))}
    del known
    holding = np.zeros(len(vocabulary), np.int64)  # Passages that hold each term.
    for path in paths:
        part = _read_counts(path)
        holding[part.terms(vocabulary)] += part.counts.getnnz(axis=0)
    idf, average_length = _idf(holding, len(passages)), total / len(passages)
    indptr = np.concatenate([[0], np.cumsum(holding)])
    data, indices = (
        _on_disk(directory / f'{name}.npy', dtype, indptr[-1])
        for name, dtype in (('data', np.float32), ('indices', np.int32))
    )
    free = indptr[:-1].copy()  # Where the next passage of each term goes.
    for i, path in enumerate(paths):
        part = _read_counts(path)
        terms = part.terms(vocabulary)
        weights = _weights(part.counts, part.sizes, idf[terms], average_length, k1, b).tocsc()
        sizes = np.diff(weights.indptr)
        at = np.repeat(free[terms] - weights.indptr[:-1], sizes) + np.arange(weights.nnz)
        data[at], indices[at] = weights.data, weights.indices + i * _PART
        free[terms] += sizes
    retriever = bm25s.BM25(k1=k1, b=b, method='lucene', idf_method='lucene')
    retriever.scores = {
        'data': data,
        'indices': indices,
        'indptr': indptr,
        'num_docs': len(passages),
    }
    retriever.vocab_dict, retriever.nonoccurrence_array = vocabulary, None
    retriever.save(str(directory / 'bm25s'))
    stages.write_json(directory / 'statistics.json', {'average_length': average_length})
    for path in (*paths, directory / 'data.npy', directory / 'indices.npy'):
        path.unlink()


def _on_disk(path: pathlib.Path, dtype: type, size: int) -> np.ndarray:
    """`[size]` of a new memory-mapped file that has its place on the disk already.

    Raises:
        OSError: if the disk is full, which writing into the map would answer with a signal.
    """
    array = np.lib.format.open_memmap(path, 'w+', dtype, (size,))
    with path.open('r+b') as f:
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
    return array


def load(directory: pathlib.Path, *, k1: float, b: float, language: str) -> BM25:
    """Loads what `build` wrote with the same parameters, memory-mapped."""
    import bm25s

    retriever = bm25s.BM25.load(str(directory / 'bm25s'), mmap=True)
    # Plain views of the mapped files: memmap's own indexing is slow.
    for name in ('data', 'indices', 'indptr'):
        retriever.scores[name] = np.asarray(retriever.scores[name])
    average_length = stages.read_json(directory / 'statistics.json')['average_length']
    return BM25(retriever, average_length, k1, b, language)


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Terms of a part of the collection.

    Attributes:
        words: In order, no others than the part's.
        counts: `[m, len(words)]` how often each stands in a passage.
        sizes: `[m]` words of each passage.
    """

    words: list[str]
    counts: scipy.sparse.csr_matrix
    sizes: np.ndarray

    def terms(self, vocabulary: dict[str, int]) -> np.ndarray:
        """Numbers of the words in the collection's vocabulary."""
        return np.array([vocabulary[word] for word in self.words], np.int64)


def _read_counts(path: pathlib.Path) -> _Counts:
    with np.load(path) as f:
        # No word holds a line break: bm25s' words are of letters, digits and underscores.
        words = f['words'].tobytes().decode().split('\n') if len(f['words']) else []
        counts = scipy.sparse.csr_matrix(
            (f['data'], f['indices'], f['indptr']), shape=(len(f['sizes']), len(words))
        )
        return _Counts(words, counts, f['sizes'])


def _by_term(terms: scipy.sparse.csr_matrix):
    """(term, rows that hold it, how often) for each term of a `[n, V]` matrix, in order."""
    order = np.argsort(terms.indices, kind='stable')
    rows = np.repeat(np.arange(terms.shape[0]), np.diff(terms.indptr))[order]
    found, starts = np.unique(terms.indices[order], return_index=True)
    groups = zip(np.split(rows, starts[1:]), np.split(terms.data[order], starts[1:]), strict=True)
    for term, (rows_of_term, counts) in zip(found, groups, strict=False):
        yield term, rows_of_term, counts


def _idf(holding: np.ndarray, num_passages: int) -> np.ndarray:
    return np.log(1 + (num_passages - holding + 0.5) / (holding + 0.5)).astype(np.float32)


def _tokenize(texts: Sequence[str], language: str) -> list[list[str]]:
    import bm25s

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
