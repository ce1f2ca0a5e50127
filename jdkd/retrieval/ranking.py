"""Rankings of passages for queries."""

import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best passages of each query, best first.

    Attributes:
        passages: `[num_queries, depth]` int32 rows of the collection; -1 where there is none.
        scores: `[num_queries, depth]` float32, not increasing along a row.
    """

    passages: np.ndarray
    scores: np.ndarray

    def save(self, directory: pathlib.Path, name: str) -> None:
        np.save(directory / f'{name}.passages.npy', self.passages)
        np.save(directory / f'{name}.scores.npy', self.scores)

    @classmethod
    def load(cls, directory: pathlib.Path, name: str) -> 'Ranking':
        fields = ('passages', 'scores')
        return cls(*(np.load(directory / f'{name}.{field}.npy') for field in fields))

    def without(self, rows: np.ndarray, depth: int) -> 'Ranking':
        """Removes one passage from each query's ranking and truncates the rest.

        Args:
            rows: `[num_queries]` int32 passage to remove; -1 for none.
            depth: Passages to keep.
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
        shares = [
            len(np.intersect1d(a, e)) / len(e)
            for a, e in zip(self.passages, exact.passages, strict=True)
        ]
        return float(np.mean(shares))
