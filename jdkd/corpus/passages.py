"""Passages as columns that may be larger than memory, indexed by id without a dict of ids."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema([(name, pa.large_string()) for name in ('id', 'title', 'text')])

_ITERATION_CHUNK = 4096  # Texts converted to str at once while iterating.
_TAKEN_ALONE = 100  # Rows that are read one by one, if there are fewer.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Column(Sequence[str]):
    """A column of texts as a sequence of str; a slice is a list."""

    data: pa.ChunkedArray  # large_string, in memory or memory-mapped.

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int | slice) -> Any:
        return self.data[i].to_pylist() if isinstance(i, slice) else self.data[int(i)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _ITERATION_CHUNK):
            yield from self[start : start + _ITERATION_CHUNK]

    def take(self, rows: np.ndarray) -> list[str]:
        """Returns the texts of some rows `[n]`, in the order of `rows`."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f'rows must lie between 0 and {len(self) - 1}.')
        if len(rows) < _TAKEN_ALONE:
            return [self.data[row].as_py() for row in rows.tolist()]
        # Arrow's own take first concatenates all chunks, however few rows are taken.
        order = np.argsort(rows, kind='stable')
        edges = np.searchsorted(rows[order], self._starts)
        texts = np.empty(len(rows), object)
        for i in np.flatnonzero(np.diff(edges)):
            own = order[edges[i] : edges[i + 1]]
            texts[own] = self.data.chunk(i).take(pa.array(rows[own] - self._starts[i])).to_pylist()
        return texts.tolist()

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """The first row of each chunk, then the number of all rows."""
        return np.cumsum([0, *map(len, self.data.chunks)])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IdIndex(Mapping[str, int]):
    """Maps passage ids to rows in 12 bytes a passage, which may be memory-mapped."""

    ids: Column
    hashes: np.ndarray  # `[P]` uint64, `id_hashes` of the ids, sorted.
    order: np.ndarray  # `[P]` int32, the row of each hash.

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Returns `[len(ids)]` int32 rows, -1 for an unknown id."""
        rows = np.full(len(ids), -1, np.int32)
        wanted = id_hashes(ids)
        at = np.searchsorted(self.hashes, wanted)
        left = np.arange(len(ids))
        while True:  # A second pass only where two ids share a hash.
            left = left[at[left] < len(self.hashes)]
            left = left[self.hashes[at[left]] == wanted[left]]
            if not len(left):
                return rows
            candidates = self.order[at[left]]
            pairs = zip(left.tolist(), self.ids.take(candidates), strict=True)
            same = np.array([ids[i] == passage_id for i, passage_id in pairs])
            rows[left[same]] = candidates[same]
            left = left[~same]
            at[left] += 1

    def __getitem__(self, passage_id: str) -> int:
        row = int(self.find([passage_id])[0])
        if row < 0:
            raise KeyError(passage_id)
        return row

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Passages(Sequence[str]):
    """The passages of a collection, each a str of title and text; a slice is a list."""

    ids: Column  # The position in this column is the passage's row everywhere.
    titles: Column  # Possibly empty.
    texts: Column
    id_index: IdIndex  # Passage id -> row.
    # `[P]` int32: the first row whose passage is equal but for case and whitespace. Rows of one
    # group are one text under several ids: none can be a negative of another.
    group: np.ndarray
    fingerprint: str  # sha256 of the three columns.

    @classmethod
    def from_columns(
        cls, ids: Sequence[str], titles: Sequence[str], texts: Sequence[str]
    ) -> 'Passages':
        """Makes passages in memory.

        Raises:
            ValueError: The columns differ in length.
        """
        table = pa.table([list(ids), list(titles), list(texts)], schema=SCHEMA)
        digests = b''.join(text_digest(a, b) for a, b in zip(titles, texts, strict=True))
        fingerprint = Fingerprint()
        fingerprint.update(table)
        hashes, order = sorted_hashes(id_hashes(ids))
        group = equal_text_groups(digests)
        return cls.from_table(table, hashes, order, group, fingerprint.hexdigest())

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        hashes: np.ndarray,
        order: np.ndarray,
        group: np.ndarray,
        fingerprint: str,
    ) -> 'Passages':
        """Makes passages from a table with the columns of SCHEMA and the values derived from it."""
        ids, titles, texts = (Column(table.column(name)) for name in SCHEMA.names)
        return cls(ids, titles, texts, IdIndex(ids, hashes, order), group, fingerprint)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [join_title(*pair) for pair in zip(self.titles[i], self.texts[i], strict=True)]
        return join_title(self.titles[i], self.texts[i])

    def __iter__(self) -> Iterator[str]:
        for pair in zip(self.titles, self.texts, strict=True):
            yield join_title(*pair)


class Fingerprint:
    """sha256 of tables of strings, independent of how they are split into batches."""

    def __init__(self):
        self._columns = [(hashlib.sha256(), hashlib.sha256()) for _ in SCHEMA]

    def update(self, table: pa.Table | pa.RecordBatch) -> None:
        for column, (lengths, characters) in zip(table.columns, self._columns, strict=True):
            # Lengths are hashed beside the characters, so that the borders of texts count.
            sizes = np.asarray(pc.call_function('binary_length', [column]))
            lengths.update(sizes.astype('<i8').tobytes())
            for chunk in getattr(column, 'chunks', [column]):
                offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :]
                start, end = int(offsets[0]), int(offsets[len(chunk)])
                characters.update(memoryview(chunk.buffers()[2] or b'')[start:end])

    def hexdigest(self) -> str:
        parts = b''.join(part.digest() for column in self._columns for part in column)
        return hashlib.sha256(parts).hexdigest()


def join_title(title: str, text: str) -> str:
    """Joins title and text as BEIR does: the passage as encoders and BM25 read it."""
    return f'{title} {text}'.strip()


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """Hashes ids to `[n]` uint64, the same on every machine."""
    # An id with a lone surrogate can be looked up, although no passage has it.
    encoded = (i.encode(errors='surrogatepass') for i in ids)
    digests = b''.join(hashlib.blake2b(i, digest_size=8).digest() for i in encoded)
    return np.frombuffer(digests, '<u8')


def text_digest(title: str, text: str) -> bytes:
    """Hashes a passage to 16 bytes, equal for passages that differ in case and whitespace only."""
    key = ' '.join(join_title(title, text).casefold().split())
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def sorted_hashes(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts hashes; returns them and the int32 row of each."""
    order = np.argsort(hashes, kind='stable')
    return hashes[order], order.astype(np.int32)


def equal_text_groups(digests: bytes | bytearray) -> np.ndarray:
    """Returns `[P]` int32, each passage's first row of equal text, from their joined digests."""
    high, low = np.frombuffer(digests, '<u8').reshape(-1, 2).T
    order = np.lexsort((low, high))  # Stable: the first row of a digest comes first.
    first = np.ones(len(order), bool)
    for part in (high, low):
        part = part[order]
        first[1:] &= part[1:] == part[:-1]
    first[1:] = ~first[1:]
    group = np.empty(len(order), np.int32)
    group[order] = order[first][np.cumsum(first) - 1]
    return group
