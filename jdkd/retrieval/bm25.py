"""BM25: searches with bm25s, and scores any text with the statistics of the collection.

bm25s is imported inside functions: importing it initialises JAX, which must not happen before
several processes have connected (`distributed.start`).
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from scipy.sparse import csr_matrix

from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.words import tokenize
from jdkd.runtime import distributed, stages
from jdkd.runtime.parts import write_parts

_PASSAGES_PER_PART = 65_536  # Passages whose terms are counted at once.
_ZEROS = 2**24  # Bytes written at once.
_SEARCH_BYTES = 2**32  # Of the scores that threads hold.
_BLOCK = 256  # Passages, at most, whose best score bounds those of the collection.


@dataclasses.dataclass(frozen=True)
class BM25:
    """A BM25 index and the collection's statistics.

    The score of a text d for a query is the sum over query terms t of
    idf(t) * tf / (tf + k1 (1 - b + b |d| / avgdl)), idf(t) = ln(1 + (N - n_t + 1/2) / (n_t + 1/2))
    (Robertson et al. with the idf of Lucene; bm25s' method `lucene`).
    """

    # The memory-mapped bm25s index: for each term its passages in order, and what it adds to each.
    retriever: Any
    average_length: float  # avgdl, in tokens.
    k1: float
    b: float
    language: str  # Of the stemmer and the stop words.

    def __len__(self) -> int:
        return self.retriever.scores['num_docs']

    @functools.cached_property
    def idf(self) -> np.ndarray:
        """Inverse document frequencies, `[V]` float32."""
        return _idf(np.diff(self.retriever.scores['indptr']), len(self))

    def search(self, queries: Sequence[str], depth: int) -> Ranking:
        """The best passages of each query, found by all cores.

        Ties keep the order of the collection; passages that share no term score 0.
        """
        depth = min(depth, len(self))
        best = functools.partial(self._best_passages, depth=depth)
        all_words = tokenize(queries, self.language)
        with concurrent.futures.ThreadPoolExecutor(
            search_threads(len(self), os.cpu_count() or 1)
        ) as threads:
            rows, scores = zip(*threads.map(best, all_words), strict=True)
        return Ranking(np.stack(rows), np.stack(scores))

    def query_terms(self, queries: Sequence[str]) -> csr_matrix:
        """Counts the terms of each query, `[len(queries), V]`."""
        return self._counts(queries)[0]

    def passage_scores(self, terms: csr_matrix, passages: np.ndarray) -> np.ndarray:
        """Scores rows of the collection for each query: `[M, N]` float32.

        Args:
            terms: `[M, V]` from `query_terms`.
            passages: `[M, N]` rows of each query's passages, or `[N]` for all queries.
        """
        shared = passages.ndim == 1
        out = np.zeros((len(terms.indptr) - 1, passages.shape[-1]), np.float32)
        for term, queries, counts in _by_term(terms):
            rows = passages if shared else passages[queries]
            out[queries] += counts[:, None] * self._term_scores(term, rows)
        return out

    def text_scores(self, terms: csr_matrix, texts: Sequence[str]) -> np.ndarray:
        """Scores pairs of a query, as `[n, V]` terms, and a new text: `[n]` float32.

        The statistics are those of the collection; unknown terms only count for the text's length.
        """
        counts, lengths = self._counts(texts)
        weights = _weights(counts, lengths, self.idf, self.average_length, self.k1, self.b)
        return np.asarray(terms.multiply(weights).sum(axis=1), np.float32).ravel()

    def _best_passages(self, words: list[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores of a query's best passages, on this thread alone.

        Not bm25s' own selection, which puts the scores of all passages on JAX's default device.
        """
        scores = np.zeros(len(self), np.float32)
        if words:
            scores = self.retriever.get_scores(words)
        # Among so many maxima of blocks, the least is at most the least of the best scores.
        size = min(max(len(scores) // (2 * depth), 1), _BLOCK)
        blocks = scores[: len(scores) // size * size].reshape(-1, size)
        least = _largest(blocks.max(axis=1), depth)
        rows = np.flatnonzero(scores >= least if least else scores)
        found = scores[rows]
        rows = rows[found >= _largest(found, depth)]
        rows = rows[np.argsort(-scores[rows], kind='stable')][:depth]
        if len(rows) < depth:
            others = np.flatnonzero(scores == 0)[: depth - len(rows)]
            rows = np.concatenate([rows, others])
        return rows.astype(np.int32), scores[rows].astype(np.float32)

    def _term_scores(self, term: int, passages: np.ndarray) -> np.ndarray:
        """Returns what a term adds to the scores of passages, in their shape."""
        scores = self.retriever.scores
        start, end = scores['indptr'][term : term + 2]
        rows, added = scores['indices'][start:end], scores['data'][start:end]
        at = np.minimum(np.searchsorted(rows, passages.astype(rows.dtype)), len(rows) - 1)
        return np.where(rows[at] == passages, added[at], np.float32(0))

    def _counts(self, texts: Sequence[str]) -> tuple[csr_matrix, np.ndarray]:
        """Counts known terms, `[n, V]`, and all words, `[n]`, of texts."""
        vocabulary = self.retriever.vocab_dict
        texts_words = tokenize(texts, self.language)
        ids = [[vocabulary[w] for w in words if w in vocabulary] for words in texts_words]
        return _count_matrix(ids, len(self.idf)), np.array([*map(len, texts_words)])


def _largest(scores: np.ndarray, rank: int) -> np.float32:
    """The score of a rank, from 1; 0 if there are fewer."""
    return np.partition(scores, -rank)[-rank] if len(scores) >= rank else np.float32(0)


def search_threads(num_passages: int, cores: int) -> int:
    """Queries that are searched at once: one a core, as far as their scores take 4 GiB."""
    # The scores of a query, which are summed by term, and which of them count.
    fit = _SEARCH_BYTES // (13 * num_passages)
    return max(min(cores, fit), 1)


def build(
    directory: pathlib.Path, passages: Sequence[str], *, k1: float, b: float, language: str
) -> None:
    """Indexes passages, which are read in slices; `load` reads the index.

    A builder of a resumable stage. Each part of the collection first has its terms counted into a
    file, from which the index is assembled in memory-mapped files. Memory is therefore bounded by
    the vocabulary and the words of 65,536 passages.

    Raises:
        ValueError: if no passage holds a term.
    """
    import bm25s

    size = _PASSAGES_PER_PART

    def count(i, file):
        _write_counts(file, tokenize(passages[i * size : (i + 1) * size], language))

    paths = write_parts(directory, 'counts-{}.npz', -(-len(passages) // size), count)
    if not distributed.is_primary():
        return
    vocabulary, frequencies, num_words = _merge_counts(paths)
    if not num_words:
        raise ValueError(
            f"BM25 finds no terms in {len(passages)} passages with language '{language}'."
        )
    average_length = num_words / len(passages)
    idf, indptr = _idf(frequencies, len(passages)), np.append(0, np.cumsum(frequencies))
    data = _allocate(directory / 'data.npy', np.float32, indptr[-1])
    indices = _allocate(directory / 'indices.npy', np.int32, indptr[-1])
    ends = indptr[:-1].copy()  # Where the next passage of each term goes.
    for i, path in enumerate(paths):
        part = _read_counts(path)
        terms = part.terms(vocabulary)
        weights = _weights(part.counts, part.lengths, idf[terms], average_length, k1, b).tocsc()
        added = np.diff(weights.indptr)
        at = np.repeat(ends[terms] - weights.indptr[:-1], added) + np.arange(weights.nnz)
        data[at], indices[at] = weights.data, weights.indices + i * size
        ends[terms] += added
    scores = {'data': data, 'indices': indices, 'indptr': indptr, 'num_docs': len(passages)}
    retriever = bm25s.BM25(k1=k1, b=b, method='lucene', idf_method='lucene')
    retriever.scores, retriever.vocab_dict = scores, vocabulary
    retriever.nonoccurrence_array = None
    retriever.save(str(directory / 'bm25s'))
    stages.write_json(directory / 'statistics.json', {'average_length': average_length})
    for path in (*paths, directory / 'data.npy', directory / 'indices.npy'):
        path.unlink()


def _allocate(path: pathlib.Path, dtype: type, size: int) -> np.ndarray:
    """Returns a new memory-mapped array `[size]` whose blocks are allocated on disk."""
    array = np.lib.format.open_memmap(path, 'w+', dtype, (size,))
    total = path.stat().st_size
    # OSError if the disk is full; writing into a map without blocks would kill the process.
    with path.open('r+b') as f:
        if hasattr(os, 'posix_fallocate'):
            os.posix_fallocate(f.fileno(), 0, total)
        else:  # On macOS and Windows.
            f.seek(array.offset)
            for start in range(array.offset, total, _ZEROS):
                f.write(bytes(min(_ZEROS, total - start)))
    return array


def load(directory: pathlib.Path, *, k1: float, b: float, language: str) -> BM25:
    """Loads an index that `build` wrote with the same parameters, memory-mapped."""
    import bm25s

    retriever = bm25s.BM25.load(str(directory / 'bm25s'), mmap=True)
    # Plain views, because indexing np.memmap is slow.
    for name in ('data', 'indices', 'indptr'):
        retriever.scores[name] = np.asarray(retriever.scores[name])
    average_length = stages.read_json(directory / 'statistics.json')['average_length']
    return BM25(retriever, average_length, k1, b, language)


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Word counts of one part of the collection."""

    words: list[str]  # Of this part, sorted.
    counts: csr_matrix  # `[m, len(words)]`, of each word in each passage.
    lengths: np.ndarray  # `[m]`, in words.

    def terms(self, vocabulary: dict[str, int]) -> np.ndarray:
        """Returns the ids of the words in the collection's vocabulary."""
        return np.array([vocabulary[word] for word in self.words], np.int64)


def _write_counts(file: IO, texts_words: Sequence[Sequence[str]]) -> None:
    """Counts the words of each text of a part; `_read_counts` reads the file."""
    words = sorted({word for words in texts_words for word in words})
    ids = {word: i for i, word in enumerate(words)}
    counts = _count_matrix([[ids[word] for word in text] for text in texts_words], len(words))
    np.savez(
        file,
        words=np.frombuffer('\n'.join(words).encode(), np.uint8),
        data=counts.data,
        indices=counts.indices,
        indptr=counts.indptr,
        sizes=np.array([*map(len, texts_words)]),
    )


def _read_counts(path: pathlib.Path) -> _Counts:
    with np.load(path) as f:
        # Words are letters, digits, underscores and marks, so none holds a line break.
        words = f['words'].tobytes().decode().split('\n') if len(f['words']) else []
        shape = len(f['sizes']), len(words)
        counts = csr_matrix((f['data'], f['indices'], f['indptr']), shape)
        return _Counts(words, counts, f['sizes'])


def _merge_counts(paths: Sequence[pathlib.Path]) -> tuple[dict[str, int], np.ndarray, np.int64]:
    """Returns the vocabulary, the number of passages with each term, and the number of words."""
    words, num_words = set(), np.int64(0)
    for path in paths:
        part = _read_counts(path)
        words.update(part.words)
        num_words += part.lengths.sum()
    # Sorted, since the order in bm25s, and with it the rounding of sums, varies between processes.
    vocabulary = {word: i for i, word in enumerate(sorted(words))}
    del words
    frequencies = np.zeros(len(vocabulary), np.int64)
    for path in paths:
        part = _read_counts(path)
        frequencies[part.terms(vocabulary)] += part.counts.getnnz(axis=0)
    return vocabulary, frequencies, num_words


def _by_term(terms: csr_matrix) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields each term of a `[n, V]` matrix, in order, with its rows and its counts in them."""
    order = np.argsort(terms.indices, kind='stable')
    rows = np.repeat(np.arange(len(terms.indptr) - 1), np.diff(terms.indptr))[order]
    ids, starts = np.unique(terms.indices[order], return_index=True)
    for term, start, end in zip(ids, starts, np.append(starts, len(rows))[1:], strict=True):
        yield term, rows[start:end], terms.data[order[start:end]]


def _idf(frequencies: np.ndarray, num_passages: int) -> np.ndarray:
    return np.log(1 + (num_passages - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)


def _count_matrix(ids: Sequence[Sequence[int]], size: int) -> csr_matrix:
    """Counts the ids in each row, `[len(ids), size]`."""
    indptr = np.append(0, np.cumsum([len(row) for row in ids]))
    indices = np.fromiter((i for row in ids for i in row), np.int32, indptr[-1])
    counts = csr_matrix((np.ones(len(indices), np.float32), indices, indptr), (len(ids), size))
    counts.sum_duplicates()
    return counts


def _weights(
    counts: csr_matrix, lengths: np.ndarray, idf: np.ndarray, avgdl: float, k1: float, b: float
) -> csr_matrix:
    """Returns what each term adds to the score of each text, in the shape of `counts`."""
    weights = counts.copy()
    norm = k1 * (1 - b + b * lengths / avgdl)
    per_entry = np.repeat(norm, np.diff(counts.indptr)).astype(np.float32)
    weights.data = idf[counts.indices] * counts.data / (counts.data + per_entry)
    return weights
