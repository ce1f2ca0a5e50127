"""The candidates' texts of a batch as rows of tokens with little padding.

A batch is cut into parts (one for each device, or more), and the texts of a part are put into the
rows of a layout: one text a row in rows of few lengths, or several texts a row in rows of one. All
parts of all batches have one layout, so that a step compiles once.
"""

import bisect
import dataclasses
from collections.abc import Iterable

import numpy as np

_MULTIPLE = 8  # Of the lengths of rows: devices compute with whole registers.


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """How rows are made and computed; `config.rows`, resolved.

    Attributes:
        lengths: Lengths of rows at most, where each text has a row of its own.
        shared: Tokens of a row that several texts share; 0: none do.
        texts: Most texts of a row.
        parts: Of a batch, each with rows of its own.
        chunks: Shares of every part's rows that are computed one after another.
    """

    lengths: int = 4
    shared: int = 0
    texts: int = 1
    parts: int = 1
    chunks: int = 1


def resolve_rows(config, ways: int, *, share: bool = True) -> RowSpec:
    """How `config.rows` makes rows.

    Args:
        config: `config.rows`.
        ways: Devices that a batch is split over.
        share: False where the model cannot tell texts of a row apart.
    """
    shared = config.shared if share else 0
    return RowSpec(
        lengths=config.lengths,
        shared=shared,
        texts=config.texts if shared else 1,
        parts=config.parts or ways,
        chunks=config.chunks,
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rows that the texts of each part are put into.

    Attributes:
        tiles: (rows, tokens a row) of each array of rows, the longest rows first.
        slots: Most texts of a row.
        parts: Of a batch; its lists are divided among them in order.
    """

    tiles: tuple[tuple[int, int], ...]
    slots: int = 1
    parts: int = 1

    @property
    def num_tokens(self) -> int:
        """Tokens of a batch, padding included."""
        return self.parts * sum(rows * length for rows, length in self.tiles)


def fit_layout(lengths: Iterable[np.ndarray], config: RowSpec) -> Layout:
    """The layout with the least padding that every batch fits into.

    Args:
        lengths: For each batch `[B, N]` tokens of its texts.
        config: How rows are made.

    Raises:
        ValueError: if parts do not divide the lists of a batch, or a text is longer than the rows
            that are to be shared.
    """
    if config.shared:
        count = 0
        for batch in lengths:
            for part in _parts(batch, config.parts):
                row, _, _ = _share(part, config.shared, config.texts)
                count = max(count, row.max() + 1)
        return Layout(((_up(count, config.chunks), config.shared),), config.texts, config.parts)
    longest = None  # Of the i-th longest text of any part.
    for batch in lengths:
        part = np.sort(_parts(batch, config.parts), axis=1)[:, ::-1].max(axis=0)
        longest = part if longest is None else np.maximum(longest, part)
    longest = -(-longest // _MULTIPLE) * _MULTIPLE
    tiles = [(_up(rows, config.chunks), size) for rows, size in _steps(longest, config.lengths)]
    return Layout(tuple(tiles), 1, config.parts)


def pack(
    texts: dict[str, np.ndarray],
    lengths: np.ndarray,
    layout: Layout,
    *,
    pad_id: int,
    parts: np.ndarray | None = None,
) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
    """Puts the texts of a batch, or of some of its parts, into rows.

    Args:
        texts: {name: `[b, N, L]` int32}, `tokens` and what goes along with them.
        lengths: `[b, N]` tokens of each text.
        layout: Of the batch.
        pad_id: What `tokens` are filled up with; the others with 0.
        parts: Numbers of the parts that these are, in order; None for all.

    Returns:
        For each of `texts` a tuple of `[rows, length]` arrays, one for each tile; `segments`
        likewise, 1 + slot of a token's text in its row or 0, where rows are shared; and `where`
        `[b, N]` int32, for each text the number of its slot among all slots of the global batch.

    Raises:
        ValueError: if the texts do not fit.
    """
    numbers = np.arange(layout.parts) if parts is None else parts
    parts = len(numbers)
    sizes = np.array([size for _, size in layout.tiles])
    counts = np.array([rows for rows, _ in layout.tiles])
    row_of = np.repeat(np.arange(len(counts)), counts)  # Tile of each row of a part.
    in_tile = np.arange(len(row_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_part = _parts(lengths, parts)
    places = [_place(part, layout) for part in by_part]
    row, start, slot = (np.stack(x) for x in zip(*places, strict=True))
    tile = row_of[row]
    # Rows of a tile: part after part.
    local = np.arange(parts)[:, None] * counts[tile] + in_tile[row]
    before = np.cumsum(parts * counts * sizes) - parts * counts * sizes
    start = before[tile] + local * sizes[tile] + start
    slots_before = layout.parts * (np.cumsum(counts) - counts)
    first = slots_before[tile] + numbers[:, None] * counts[tile] + in_tile[row]
    where = (first * layout.slots + slot).reshape(lengths.shape).astype(np.int32)

    columns = np.arange(texts['tokens'].shape[-1])
    real = columns < lengths[..., None]
    to = (start.reshape(lengths.shape)[..., None] + columns)[real]

    def rows(values, fill):
        flat = np.full(int((parts * counts * sizes).sum()), fill, np.int32)
        flat[to] = values[real]
        cuts = np.split(flat, before[1:])
        return tuple(cut.reshape(-1, size) for cut, size in zip(cuts, sizes, strict=True))

    found = {name: rows(x, pad_id if name == 'tokens' else 0) for name, x in texts.items()}
    if layout.slots > 1:
        segments = 1 + slot.reshape(lengths.shape)[..., None]
        found['segments'] = rows(np.broadcast_to(segments, real.shape), 0)
    return found | {'slots': where}


def _parts(lengths: np.ndarray, parts: int) -> np.ndarray:
    """`[parts, texts]` lengths of each part."""
    if len(lengths) % parts:
        raise ValueError(
            f'{len(lengths)} lists do not divide among {parts} parts of a batch; change '
            'batch_size, rows.parts or mesh.data.'
        )
    return lengths.reshape(parts, -1)


def _up(count: int, multiple: int) -> int:
    return -(-int(count) // multiple) * multiple


def _place(lengths: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and slot of each of one part's texts `[n]`."""
    if layout.slots > 1:
        ((rows, size),) = layout.tiles
        row, start, slot = _share(lengths, size, layout.slots)
        fits = row.max() < rows
    else:
        row = np.empty(len(lengths), np.int64)
        row[np.argsort(-lengths, kind='stable')] = np.arange(len(lengths))
        start = slot = np.zeros_like(row)
        sizes = np.concatenate([np.full(rows, size) for rows, size in layout.tiles])
        fits = len(lengths) <= len(sizes) and bool(np.all(lengths <= sizes[row]))
    if not fits:
        raise ValueError('the texts of a batch do not fit into the rows that were made for them.')
    return row, start, slot


def _share(lengths: np.ndarray, size: int, slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_place` says of rows of one size: the longest first, into the fullest with room."""
    if lengths.max() > size:
        raise ValueError(
            f'a text of {lengths.max()} tokens is longer than rows.shared={size}; raise that, or '
            'lower train_passage_length.'
        )
    row, start, slot = np.empty((3, len(lengths)), np.int64)
    used, room = [], []  # Texts of each row; (tokens left, row) of those with a slot left, sorted.
    for i in np.argsort(-lengths, kind='stable'):
        at = bisect.bisect_left(room, (lengths[i], -1))
        left, r = room.pop(at) if at < len(room) else (size, len(used))
        if r == len(used):
            used.append(0)
        row[i], start[i], slot[i] = r, size - left, used[r]
        used[r] += 1
        if used[r] < slots:
            bisect.insort(room, (left - lengths[i], r))
    return row, start, slot


def _steps(longest: np.ndarray, most: int) -> list[tuple[int, int]]:
    """(rows, length) of at most `most` lengths that hold rows of falling lengths most tightly."""
    sizes, counts = np.unique(longest, return_counts=True)
    sizes, counts = sizes[::-1], counts[::-1]
    ends = np.cumsum(counts)
    n = len(sizes)
    # best[j]: fewest tokens that hold the rows before size j, and the lengths that do.
    best = [(0, [])] + [None] * n
    for _ in range(most):
        new = list(best)
        for j in range(1, n + 1):
            for i in range(j):
                if best[i] is None:
                    continue
                rows = ends[j - 1] - (ends[i - 1] if i else 0)
                cost = best[i][0] + rows * sizes[i]
                if new[j] is None or cost < new[j][0]:
                    new[j] = (cost, [*best[i][1], (int(rows), int(sizes[i]))])
        best = new
    return best[n][1]
