"""Texts made of slices of passages, described by the slices alone."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

MASK = -1  # In place of a passage's row: the slice is hidden by a mask token.


@dataclasses.dataclass(frozen=True)
class SlicedTexts:
    """`[M, N]` texts, each the slices of one or several passages, some of them masked.

    A few integers a text, so that whoever reads one gets it in full, with case and punctuation, and
    tokenises and cuts it like any passage.
    """

    slices: np.ndarray  # `[K, 3]` int32, text after text: passage's row or MASK, start, end.
    counts: np.ndarray  # `[M, N]` int32 slices of each text; N may be 0.

    @classmethod
    def empty(cls, count: int) -> 'SlicedTexts':
        """Makes `[count, 0]` texts."""
        return cls(np.zeros((0, 3), np.int32), np.zeros((count, 0), np.int32))

    @classmethod
    def join(cls, parts: Sequence['SlicedTexts']) -> 'SlicedTexts':
        """Concatenates texts along their first axis."""
        return cls(
            np.concatenate([part.slices for part in parts]),
            np.concatenate([part.counts for part in parts]),
        )

    def __getitem__(self, part: slice) -> 'SlicedTexts':
        start, stop, _ = part.indices(len(self.counts))
        first, end = self.counts[:start].sum(), self.counts[:stop].sum()
        return SlicedTexts(self.slices[first:end], self.counts[part])

    def render(self, passages: Sequence[str], mask: str = '') -> list[str]:
        """Returns the `M * N` texts, with `mask` in place of masked slices.

        Slices are concatenated as they are; a space separates two that would touch.

        Args:
            passages: Texts of the collection's passages, of which only those needed are read.
        """
        rows = np.unique(self.slices[:, 0])
        texts = {int(row): passages[int(row)] for row in rows[rows != MASK]}
        # Columns, not rows: lists of lists keep the garbage collector busy.
        parts = (
            mask if row == MASK else texts[row][start:end]
            for row, start, end in zip(*self.slices.T.tolist(), strict=True)
        )
        counts = self.counts.ravel().tolist()
        return [_concatenate(itertools.islice(parts, count)) for count in counts]


def _concatenate(parts: Iterable[str]) -> str:
    text = ''
    for part in parts:
        touch = text and part and not (text[-1].isspace() or part[0].isspace())
        text += f' {part}' if touch else part
    return text
