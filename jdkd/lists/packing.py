"""Packs the texts of a batch's candidates into rows of tokens with little padding.

A batch is split into parts, one or more for each device. The texts of a part fill the rows of a
layout: one text a row in rows of few lengths, or several texts a row in rows of one length. All
parts of all batches share one layout, so that a step compiles once.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from jdkd.config import RowsConfig

_LENGTH_MULTIPLE = 8  # Of the lengths of rows: devices compute with whole registers.


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """How rows are made and computed: `config.rows` with its defaults resolved."""

    lengths: int = 4  # Most different lengths of rows, where each text has its own row.
    shared: int = 0  # Tokens of a row that several texts share; 0 if none do.
    texts: int = 1  # Most texts of a row.
    parts: int = 1  # Parts of a batch, each with its own rows.
    chunks: int = 1  # Equal shares of a part's rows that are computed one after another.


def resolve_rows(config: RowsConfig, ways: int, *, share: bool = True) -> RowSpec:
    """Resolves the defaults of `config.rows`.

    Args:
        ways: Number of devices that a batch is split over.
        share: False if the model cannot tell apart the texts of a row.
    """
    shared = config.shared if share else 0
    texts, parts = config.texts if shared else 1, config.parts or ways
    return RowSpec(config.lengths, shared, texts, parts, config.chunks)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rows of each part of a batch."""

    # (rows, tokens of a row) of each array of rows, the longest rows first.
    tiles: tuple[tuple[int, int], ...]
    slots: int = 1  # Most texts of a row.
    parts: int = 1  # Parts of a batch, which divide its lists in order.

    @property
    def num_tokens(self) -> int:
        """Tokens of a batch, padding included."""
        return self.parts * sum(rows * length for rows, length in self.tiles)


def round_length(longest: int, limit: int) -> int:
    """Tokens of rows that hold texts of at most `longest`, a multiple of 8 if `limit` allows it."""
    return min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, limit)


def fit_layout(lengths: Iterable[np.ndarray], spec: RowSpec) -> Layout:
    """Finds the layout with the least padding that fits every batch.

    Args:
        lengths: For each batch `[B, N]` tokens of its texts.

    Raises:
        ValueError: `spec.parts` does not divide the lists of a batch, or a text is longer than
            `spec.shared`.
    """
    if spec.shared:
        count = 0
        for batch in lengths:
            for part in _split_parts(batch, spec.parts):
                row, _, _ = _share_rows(part, spec.shared, spec.texts)
                count = max(count, row.max() + 1)
        tiles = [(count, spec.shared)]
    else:
        longest = np.zeros((), int)  # Of the i-th shortest text of any part.
        for batch in lengths:
            part = np.sort(_split_parts(batch, spec.parts), axis=1).max(axis=0)
            longest = np.maximum(longest, part)
        longest = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        tiles = _tightest_tiles(longest, spec.lengths)
    tiles = tuple((-(-int(rows) // spec.chunks) * spec.chunks, size) for rows, size in tiles)
    return Layout(tiles, spec.texts if spec.shared else 1, spec.parts)


def pack(
    texts: Mapping[str, np.ndarray],
    lengths: np.ndarray,
    layout: Layout,
    *,
    pad_id: int,
    parts: np.ndarray | None = None,
) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
    """Packs the texts of a batch, or of some of its parts, into rows.

    Args:
        texts: {name: `[b, N, L]` int32}: `tokens` and arrays parallel to it.
        lengths: `[b, N]` tokens of each text.
        pad_id: Pads `tokens`; 0 pads the other arrays.
        parts: Numbers of the parts that are given, in order; None for all.

    Returns:
        For each of `texts` a tuple of `[rows, length]` arrays, one for each tile; if texts share
        rows, `segments` likewise, 1 + slot of a token's text in its row, 0 for padding; and `slots`
        `[b, N]` int32, for each text the number of its slot among all slots of the global batch.

    Raises:
        ValueError: The texts do not fit.
    """
    numbers = np.arange(layout.parts) if parts is None else parts
    num_parts = len(numbers)
    places = [_place_texts(part, layout) for part in _split_parts(lengths, num_parts)]
    row, column, slot = (np.stack(x) for x in zip(*places, strict=True))
    rows_of_tile, size_of_tile = np.array(layout.tiles).T
    tile = np.repeat(np.arange(len(rows_of_tile)), rows_of_tile)[row]
    rows_before = np.cumsum(rows_of_tile) - rows_of_tile
    row_in_tile = row - rows_before[tile]

    # The rows of a tile are those of part after part.
    sizes = num_parts * rows_of_tile * size_of_tile
    tile_start = np.cumsum(sizes) - sizes
    local_row = np.arange(num_parts)[:, None] * rows_of_tile[tile] + row_in_tile
    start = tile_start[tile] + local_row * size_of_tile[tile] + column
    global_row = (
        layout.parts * rows_before[tile] + numbers[:, None] * rows_of_tile[tile] + row_in_tile
    )
    slots = (global_row * layout.slots + slot).reshape(lengths.shape).astype(np.int32)

    columns = np.arange(texts['tokens'].shape[-1])
    real = columns < lengths[..., None]
    target = (start.reshape(lengths.shape)[..., None] + columns)[real]

    def to_tiles(values: np.ndarray, fill: int) -> tuple[np.ndarray, ...]:
        flat = np.full(int(sizes.sum()), fill, np.int32)
        flat[target] = values[real]
        tiles = np.split(flat, tile_start[1:])
        return tuple(x.reshape(-1, size) for x, size in zip(tiles, size_of_tile, strict=True))

    packed = {name: to_tiles(x, pad_id if name == 'tokens' else 0) for name, x in texts.items()}
    if layout.slots > 1:
        segments = 1 + slot.reshape(lengths.shape)[..., None]
        packed['segments'] = to_tiles(np.broadcast_to(segments, real.shape), 0)
    return packed | {'slots': slots}


def _split_parts(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Reshapes `[B, N]` lengths to `[parts, texts of a part]`."""
    if len(lengths) % parts:
        raise ValueError(
            f'{len(lengths)} lists do not divide among {parts} parts of a batch; change '
            'batch_size, rows.parts or mesh.data.'
        )
    return lengths.reshape(parts, -1)


def _place_texts(lengths: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, first column and slot of each text `[n]` of a part."""
    if layout.slots > 1:
        ((rows, size),) = layout.tiles
        row, column, slot = _share_rows(lengths, size, layout.slots)
        fits = row.max() < rows
    else:
        row = np.empty(len(lengths), np.int64)
        row[np.argsort(-lengths, kind='stable')] = np.arange(len(lengths))
        column = slot = np.zeros_like(row)
        sizes = np.concatenate([np.full(rows, size) for rows, size in layout.tiles])
        fits = len(lengths) <= len(sizes) and bool(np.all(lengths <= sizes[row]))
    if not fits:
        raise ValueError('the texts of a batch do not fit into the rows of its layout.')
    return row, column, slot


def _share_rows(
    lengths: np.ndarray, size: int, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like `_place_texts` for shared rows: the longest first, each into the fullest with room."""
    if lengths.max() > size:
        raise ValueError(
            f'a text of {lengths.max()} tokens is longer than rows.shared={size}; raise that, or '
            'lower train_passage_length.'
        )
    row, column, slot = np.empty((3, len(lengths)), np.int64)
    num_texts: list[int] = []  # In each row.
    room: list[tuple[int, int]] = []  # Sorted (tokens left, row) of the rows with a slot left.
    for i in np.argsort(-lengths, kind='stable'):
        at = bisect.bisect_left(room, (lengths[i], -1))
        left, r = room.pop(at) if at < len(room) else (size, len(num_texts))
        if r == len(num_texts):
            num_texts.append(0)
        row[i], column[i], slot[i] = r, size - left, num_texts[r]
        num_texts[r] += 1
        if num_texts[r] < slots:
            bisect.insort(room, (left - int(lengths[i]), r))
    return row, column, slot


def _tightest_tiles(longest: np.ndarray, max_lengths: int) -> list[tuple[int, int]]:
    """Finds at most `max_lengths` tiles that hold rows of these lengths most tightly."""
    sizes, counts = np.unique(longest, return_counts=True)
    sizes, ends = sizes[::-1], np.cumsum(counts[::-1])
    n = len(sizes)
    # best[j]: fewest tokens that hold the rows longer than sizes[j], and the tiles that do.
    best: list[tuple[float, list[tuple[int, int]]]] = [(0, []), *[(math.inf, [])] * n]
    for _ in range(max_lengths):
        new = list(best)
        for j in range(1, n + 1):
            for i, (tokens, tiles) in enumerate(best[:j]):
                rows = ends[j - 1] - (ends[i - 1] if i else 0)
                if (cost := tokens + rows * sizes[i]) < new[j][0]:
                    new[j] = (cost, [*tiles, (int(rows), int(sizes[i]))])
        best = new
    return best[n][1]
