"""Embeddings of 8 bits or 1 bit a dimension, read as float32 vectors.

The codes are those of sentence-transformers' `quantize_embeddings` with precision `int8` and
`ubinary`. Searches read them back as vectors and score them with float32 queries. For binary codes
that is what re-scores candidates by Hamming distance elsewhere, here for every passage (ours).
"""

import dataclasses

import numpy as np

_LEVELS = 255  # Steps between the ends of a range.
_RANGE_ROWS = 8  # Rows of int8 codes that hold the bytes of a range: two float32 a dimension.


@dataclasses.dataclass(frozen=True, eq=False)
class Int8:
    """`[m, dim]` vectors as numbers of steps of a range of their own in each dimension.

    Attributes:
        ranges: `[2, dim]` float32, the least and the largest value of each dimension.
        codes: `[m, dim]` int8.
    """

    ranges: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> 'Int8':
        """Vectors `[m, dim]` float32, rounded in ranges that fit them."""
        ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)
        return cls(ranges, _round(vectors, ranges))

    @classmethod
    def from_rows(cls, rows: np.ndarray) -> 'Int8':
        """The vectors in `to_rows`' array, which may be memory-mapped."""
        ranges = np.ascontiguousarray(rows[:_RANGE_ROWS]).reshape(-1).view(np.float32)
        return cls(ranges.reshape(2, -1), rows[_RANGE_ROWS:])

    def to_rows(self) -> np.ndarray:
        """`[8 + m, dim]` int8: the bytes of the ranges, then the codes."""
        return np.concatenate([self.ranges.view(np.int8).reshape(_RANGE_ROWS, -1), self.codes])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """`[..., dim]` float32, each value the middle of its step."""
        return self._read(self.codes[rows])

    def round(self, vectors: np.ndarray) -> np.ndarray:
        """Rounds other vectors as these; they are cut to the ranges."""
        return self._read(_round(vectors, self.ranges))

    def _read(self, codes: np.ndarray) -> np.ndarray:
        starts, ends = self.ranges
        steps = (ends - starts) / _LEVELS
        return np.minimum(starts + steps * (codes + np.float32(128.5)), ends)


def _round(vectors: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    starts, ends = ranges
    steps = (ends - starts) / _LEVELS
    steps = np.where(steps == 0, 1, steps)
    codes = np.clip(np.floor((vectors - starts) / steps), 0, _LEVELS)
    return (codes - 128).astype(np.int8)


@dataclasses.dataclass(frozen=True, eq=False)
class Binary:
    """`[m, dim]` vectors of unit length of which the signs are known.

    Attributes:
        bits: `[m, dim / 8]` uint8, 1 for a value above 0, the first in the highest bit.
    """

    bits: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> 'Binary':
        """The signs of vectors `[m, dim]`; dim is a multiple of 8."""
        return cls(np.packbits(vectors > 0, axis=-1))

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.bits.shape[:-1], 8 * self.bits.shape[-1]

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """`[..., dim]` float32."""
        return self._read(self.bits[rows])

    def round(self, vectors: np.ndarray) -> np.ndarray:
        """Rounds other vectors as these."""
        return self._read(np.packbits(vectors > 0, axis=-1))

    def _read(self, bits: np.ndarray) -> np.ndarray:
        signs = 2 * np.unpackbits(bits, axis=-1).astype(np.float32) - 1
        return signs / np.float32(np.sqrt(signs.shape[-1]))
