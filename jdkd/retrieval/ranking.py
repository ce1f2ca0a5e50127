"""Rankings of passages for queries."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import numpy as np

from jdkd.runtime import files
from jdkd.runtime.parts import join_rows

_FIELDS = ('passages', 'scores')


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best passages of each query, best first; both arrays are `[num_queries, depth]`."""

    passages: np.ndarray  # int32 rows of the collection; -1 where there is none.
    scores: np.ndarray  # float32, not increasing along a row.

    def save(self, directory: pathlib.Path, name: str) -> None:
        np.save(directory / f'{name}.passages.npy', self.passages)
        np.save(directory / f'{name}.scores.npy', self.scores)

    @classmethod
    def load(cls, directory: pathlib.Path, name: str) -> 'Ranking':
        """The ranking that `save` or `join_files` wrote, memory-mapped."""
        paths = (directory / f'{name}.{field}.npy' for field in _FIELDS)
        return cls(*map(files.map_array, paths))

    def write(self, file: BinaryIO) -> None:
        """Writes it to an open npz file, which `join_files` reads."""
        np.savez(file, passages=self.passages, scores=self.scores)

    @classmethod
    def join(cls, parts: Iterable['Ranking']) -> 'Ranking':
        """The rankings of the queries of all parts, one after another."""
        pairs = [(part.passages, part.scores) for part in parts]
        return cls(*map(np.concatenate, zip(*pairs, strict=True)))

    @staticmethod
    def join_files(
        directory: pathlib.Path, name: str, parts: Sequence[pathlib.Path], num_queries: int
    ) -> None:
        """Saves the rankings in npz files, one after another, and holds one at a time."""
        for field in _FIELDS:
            arrays = (_read(part, field) for part in parts)
            join_rows(directory / f'{name}.{field}.npy', arrays, num_queries)

    def of(self, queries: slice) -> 'Ranking':
        """The ranking of some of the queries."""
        return Ranking(self.passages[queries], self.scores[queries])

    def without(self, rows: np.ndarray, depth: int) -> 'Ranking':
        """Removes from each query's ranking its passage in `rows`, and keeps `depth` others.

        `rows` is `[num_queries]` int32, with -1 for none.
        """
        removed = (self.passages == rows[:, None]) | (self.passages < 0)
        order = np.argsort(removed, axis=1, kind='stable')[:, :depth]
        removed, passages, scores = (
            np.take_along_axis(x, order, axis=1) for x in (removed, self.passages, self.scores)
        )
        return Ranking(
            np.where(removed, np.int32(-1), passages), np.where(removed, -np.inf, scores)
        )

    def recall(self, exact: 'Ranking') -> float:
        """Returns the mean share of the exact top passages that this ranking holds."""
        pairs = zip(self.passages, exact.passages, strict=True)
        return float(np.mean([len(np.intersect1d(a, e)) / len(e) for a, e in pairs]))


def _read(path: pathlib.Path, field: str) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays[field]
