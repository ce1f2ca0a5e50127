"""Embeddings of a collection on disk: numbered npy files, memory-mapped, read as one array."""

import dataclasses
import pathlib

import ml_dtypes
import numpy as np

PART = 65_536  # Vectors a file.
STORES = ('float32', 'bfloat16')
NAME = 'vectors-{}.npy'


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """`[n, dim]` vectors in parts; slices and rows of them are float32 arrays in memory.

    Attributes:
        parts: `[m, dim]` each, float32 or bfloat16, of one length but the last.
    """

    parts: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, int]:
        first, last = self.parts[0], self.parts[-1]
        return (len(self.parts) - 1) * len(first) + len(last), first.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """`[..., dim]` float32: a slice without step, or the vectors of rows in any shape."""
        size, (total, dim) = len(self.parts[0]), self.shape
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(total)
            numbers = range(start // size, -(-stop // size))
            at = [max(start - i * size, 0) for i in numbers]
            found = [self.parts[i][a : stop - i * size] for i, a in zip(numbers, at, strict=True)]
            out = np.empty((max(stop - start, 0), dim), np.float32)
            return np.concatenate(found, out=out, casting='unsafe') if found else out
        rows = np.asarray(rows)
        flat = rows.ravel()
        # Part by part and from front to back, as the disk is read best.
        order = np.argsort(flat, kind='stable')
        edges = np.searchsorted(flat[order], [*(np.arange(len(self.parts)) * size), total])
        if edges[0] or edges[-1] != len(flat):
            raise IndexError(f'rows must lie between 0 and {total - 1}.')
        touched = np.flatnonzero(np.diff(edges))
        if len(touched) == 1:
            found = self.parts[touched[0]][rows - touched[0] * size]
            return found.astype(np.float32, copy=False)
        out = np.empty((len(flat), dim), np.float32)
        for i in touched:
            at = order[edges[i] : edges[i + 1]]
            out[at] = self.parts[i][flat[at] - i * size]
        return out.reshape(*rows.shape, dim)


def save(file, vectors: np.ndarray, store: str) -> None:
    """Writes `[m, dim]` vectors as npy.

    Args:
        file: Open for writing.
        vectors: float32.
        store: 'float32', or 'bfloat16' for half the bytes and 8 bits of precision; npy knows no
            bfloat16 and has its bits as uint16.
    """
    if store == 'bfloat16':
        vectors = vectors.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.save(file, vectors)


def load(directory: pathlib.Path) -> Vectors:
    """The vectors that a directory holds, memory-mapped.

    Raises:
        FileNotFoundError: if there are none.
    """
    paths = sorted(pathlib.Path(directory).glob(NAME.format('*')))
    if not paths:
        raise FileNotFoundError(f'{directory} holds no {NAME.format("*")}.')

    def view(path):
        # A plain view of the mapped file: memmap's own indexing is slow.
        part = np.asarray(np.load(path, mmap_mode='r'))
        return part.view(ml_dtypes.bfloat16) if part.dtype == np.uint16 else part

    return Vectors(tuple(map(view, paths)))
