"""Searches an index that `jdkd index` made."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jdkd import retriever
from jdkd.corpus.passages import Column, Passages
from jdkd.indexing.building import open_passages
from jdkd.indexing.contents import (
    STUDENT,
    Contents,
    check_student,
    read_part,
    segment_directory,
)
from jdkd.retrieval import vectors
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.vectors import Vectors
from jdkd.retriever import Retriever


@dataclasses.dataclass(frozen=True)
class Found:
    """A passage that a search of an index returns.

    Attributes:
        id: Its id in the collection.
        score: Inner product of its embedding with the query's.
        title: Its title; '' if it has none.
        text: Its text.
    """

    id: str
    score: float
    title: str
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """A student's index of passages; `open_index` opens one.

    Attributes:
        directory: Where it lies.
        retriever: The student.
        contents: What index.json says.
        ids, titles, texts: The passages, in the order of their addition.
        vectors: Their embeddings, memory-mapped.
    """

    directory: pathlib.Path
    retriever: Retriever
    contents: Contents
    ids: Column
    titles: Column
    texts: Column
    vectors: Vectors

    def __repr__(self) -> str:
        return f'Index({str(self.directory)!r}: {len(self)} passages)'

    def __len__(self) -> int:
        return len(self.vectors)

    @functools.cached_property
    def exact(self) -> ExactIndex:
        """Stays on the devices between searches, if it fits."""
        return ExactIndex(self.vectors, self.retriever.mesh)

    def rank(self, queries: Sequence[str], k: int) -> Ranking:
        """The k best passages, or all if there are fewer, of each query by exact search."""
        return self.exact.search(self.retriever.encode(queries, kind='query'), k)

    def search(self, query: str, k: int = 10) -> list[Found]:
        """Finds the k best passages for a query by exact search, the best first.

        Of equal scores, the passage that was added first comes first.

        Raises:
            ValueError: if k is not positive.
        """
        if k < 1:
            raise ValueError(f'k={k} must be at least 1.')
        ranking = self.rank([query], k)
        return read(self, ranking.passages[0], ranking.scores[0])


def read(passages: Index | Passages, rows: np.ndarray, scores: np.ndarray) -> list[Found]:
    """The passages of rows, with their scores; row -1 is left out."""
    return [
        Found(passages.ids[row], float(score), passages.titles[row], passages.texts[row])
        for row, score in zip(rows.tolist(), scores, strict=True)
        if row >= 0
    ]


def open_index(directory: str | os.PathLike[str]) -> Index:
    """Opens an index that `jdkd index` made.

    >>> index = jdkd.open_index(index_directory)
    >>> len(index)
    3
    >>> [found.id for found in index.search('red cat', k=2)]
    ['p1', 'p2']

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is unfinished, or its files have changed since they were written.
    """
    directory = pathlib.Path(directory)
    contents = Contents.read(directory)
    if not contents.segments:
        raise ValueError(
            f'{directory} is unfinished; run the `jdkd index` that began it again to finish it.'
        )
    passages = [open_passages(directory, segment) for segment in contents.segments]
    parts: list[vectors.Part] = []
    for segment in contents.segments:
        read_part(directory, segment, 'vectors')
        parts += vectors.load(segment_directory(directory, segment.name) / 'vectors').parts
    check_student(directory)
    ids, titles, texts = (
        Column(pa.chunked_array([c for p in passages for c in getattr(p, name).data.chunks]))
        for name in ('ids', 'titles', 'texts')
    )
    student = retriever.load(directory / STUDENT)
    return Index(directory, student, contents, ids, titles, texts, Vectors(tuple(parts)))
