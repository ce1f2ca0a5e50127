"""Embeddings of a collection on disk: numbered npy files, memory-mapped and read as one array."""

import dataclasses
import functools
import pathlib
from typing import Protocol

import ml_dtypes
import numpy as np

from jdkd.retrieval.quantization import Binary, Int8
from jdkd.runtime import files

FILE_ROWS = 65_536  # Vectors per file.
FILE_NAME = 'vectors-{}.npy'
QUANTISED = ('int8', 'binary')
Part = np.ndarray | Int8 | Binary


class Readable(Protocol):
    """`[n, dim]` vectors that are read block by block."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """`[n, dim]` vectors in several arrays; indexing reads float32 copies into memory."""

    parts: tuple[Part, ...]  # `[m, dim]`, arrays float32 or bfloat16; each has an m of its own.

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._starts[-1]), self.parts[0].shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Reads a slice without step, or rows in an array of any shape: `[..., dim]` float32."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self._read_slice(start, max(start, stop))
        return self._read_rows(np.asarray(rows))

    def round(self, vectors: np.ndarray) -> np.ndarray:
        """Rounds float32 vectors as those of the first part."""
        part = self.parts[0]
        if isinstance(part, np.ndarray):
            return vectors.astype(part.dtype).astype(np.float32)
        return part.round(vectors)

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The first row of each part, then the number of all rows."""
        return np.cumsum([0, *map(len, self.parts)])

    def _read_slice(self, start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, self.shape[1]), np.float32)
        begin, end = np.searchsorted(self._starts, [start, stop], side='right') - 1
        for i in range(int(begin), min(int(end) + 1, len(self.parts))):
            own = int(self._starts[i])
            first, last = max(start, own), min(stop, int(self._starts[i + 1]))
            out[first - start : last - start] = self.parts[i][first - own : last - own]
        return out

    def _read_rows(self, rows: np.ndarray) -> np.ndarray:
        total, dim = self.shape
        if rows.size and not 0 <= rows.min() <= rows.max() < total:
            raise IndexError(f'rows must lie between 0 and {total - 1}.')
        if len(self.parts) == 1:
            return self.parts[0][rows].astype(np.float32, copy=False)
        flat = rows.ravel()
        order = np.argsort(flat, kind='stable')  # Disks read fastest from front to back.
        edges = np.searchsorted(flat[order], self._starts)
        out = np.empty((len(flat), dim), np.float32)
        for i in np.flatnonzero(np.diff(edges)):
            selected = order[edges[i] : edges[i + 1]]
            out[selected] = self.parts[i][flat[selected] - self._starts[i]]
        return out.reshape(*rows.shape, dim)


def bytes_per_vector(width: int, store: str) -> float:
    """Bytes of a stored vector."""
    return width * {'float32': 4, 'bfloat16': 2, 'int8': 1, 'binary': 1 / 8}[store]


def save(file, vectors: np.ndarray, store: str) -> None:
    """Writes `[m, dim]` float32 vectors as npy to an open file.

    `store` is 'float32', or 'bfloat16' for half the bytes at 8 bits of precision. npy has no
    bfloat16, so its bits are stored as uint16. 'int8' takes a quarter of the bytes, with ranges
    that fit the vectors of this file, and 'binary' one in 32; see `quantization`.
    """
    if store == 'bfloat16':
        vectors = vectors.astype(ml_dtypes.bfloat16).view(np.uint16)
    elif store == 'int8':
        vectors = Int8.of(vectors).to_rows()
    elif store == 'binary':
        vectors = Binary.of(vectors).bits
    np.save(file, vectors)


def load(directory: pathlib.Path) -> Vectors:
    """Loads the vectors in a directory, memory-mapped; FileNotFoundError if there are none."""
    paths = sorted(pathlib.Path(directory).glob(FILE_NAME.format('*')))
    if not paths:
        raise FileNotFoundError(f'{directory} holds no {FILE_NAME.format("*")}.')

    def view(path):
        part = files.map_array(path)
        if part.dtype == np.int8:
            return Int8.from_rows(part)
        if part.dtype == np.uint8:
            return Binary(part)
        return part.view(ml_dtypes.bfloat16) if part.dtype == np.uint16 else part

    return Vectors(tuple(map(view, paths)))
