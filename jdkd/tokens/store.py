"""Token store: the ids of texts that are tokenised once, concatenated and memory-mapped."""

import dataclasses
import functools

import numpy as np

from jdkd.tokens.pairs import row_lengths


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of many texts without padding.

    Lengths are stored rather than inferred from padding: a text may spell out the padding token.
    """

    ids: np.ndarray  # `[sum of lengths]` ids of all texts; uint16 where the vocabulary fits.
    offsets: np.ndarray  # `[n + 1]` int64; text i has `ids[offsets[i]:offsets[i + 1]]`.
    length: int  # Most tokens of a text.
    pad_id: int  # Pads rows.
    cuts_left: bool = False  # Whether texts longer than a row lose their beginning, not their end.

    @classmethod
    def from_rows(cls, rows: np.ndarray, pad_id: int) -> 'TokenStore':
        """Makes a store of padded rows `[n, length]`; see `row_lengths`."""
        lengths = row_lengths(rows, pad_id)
        real = np.arange(rows.shape[1]) < lengths[:, None]
        return cls(rows[real], row_offsets(lengths), rows.shape[1], pad_id)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns the ids of one text."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def dtype(self) -> np.dtype:
        return self.ids.dtype

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """`[n]` int32 tokens of each text, special tokens included."""
        return np.diff(self.offsets).astype(np.int32)

    def rows(
        self, rows: np.ndarray, length: int | None = None, *, end: int | None = None
    ) -> np.ndarray:
        """Returns `[..., length]` ids of texts `[...]`, padded on the right.

        Args:
            rows: Numbers of the texts, in any shape.
            length: Tokens of a row, to which longer texts are cut; None for the store's length.
            end: Replaces the last token of a cut text, such as the separator; None leaves it. Then
                a text that is cut on the left keeps its first token, and ends as it is.
        """
        rows, length = np.asarray(rows), self.length if length is None else length
        starts = self.offsets[rows][..., None]
        lengths = self.offsets[rows + 1][..., None] - starts
        columns = np.arange(length)
        real = columns < lengths
        if self.cuts_left:
            moved = columns >= (end is not None)
            columns = columns + moved * np.maximum(lengths - length, 0)
        out = np.full(real.shape, self.pad_id, self.dtype)
        out[real] = self.ids[(starts + columns)[real]]
        if end is not None and not self.cuts_left:
            out[lengths[..., 0] > length, -1] = end
        return out


def row_offsets(lengths: np.ndarray) -> np.ndarray:
    """Returns the `[n + 1]` offsets of concatenated texts of `[n]` lengths."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
