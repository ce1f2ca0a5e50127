"""Exact search by inner product, with the passages split over the devices of this process."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.vectors import Readable, Vectors
from jdkd.runtime import mesh as meshes

QUERY_BLOCK = 1024  # Queries that are searched at once.
_TILE = 65_536  # Passages whose scores a device holds at once.
_READ_ROWS = 65_536  # Passages that are read at once.
_CPU_BYTES = 2**28  # Of passages in memory at once, where devices do not tell their size.


@dataclasses.dataclass(frozen=True)
class Blocking:
    """How passages pass through the devices: in blocks, of which each device has equal tiles."""

    count: int
    rows: int  # Of a block, on all devices.
    tiles: int  # Of a device's share of a block.

    @classmethod
    def of(cls, passages: int, devices: int, block: int, tile: int = _TILE) -> 'Blocking':
        """Blocks of about `block` passages at most, in the fewest equal tiles of at most `tile`."""
        count = max(-(-passages // block), 1)
        share = max(-(-passages // (count * devices)), 1)
        tiles = -(-share // tile)
        return cls(count, -(-share // tiles) * tiles * devices, tiles)


class ExactIndex:
    """Passages to search exactly; ties keep the order of the rows.

    Each device holds a share of the passages, in bfloat16 if they are stored so and else in
    float32, quantised ones too, and finds the best of it; scores are float32 products. Passages
    that do not fit into half of the devices' memory pass through in blocks, anew in every search.

    Args:
        passages: `[P, D]`; may be memory-mapped.
        mesh: Devices to use, of this process; the first one by default.
        block: Most passages on the devices at once; by default what fits.
        tile: Passages whose scores a device holds at once.
    """

    def __init__(
        self,
        passages: Readable,
        mesh: Mesh | None = None,
        *,
        block: int | None = None,
        tile: int = _TILE,
    ):
        self._passages = passages
        mesh = meshes.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self._mesh = mesh.local_mesh
        block = block or _rows_that_fit(self._mesh, passages.shape[1] * self._dtype.itemsize)
        self._blocking = Blocking.of(len(passages), self._mesh.size, block, tile)
        self._resident: jax.Array | None = None

    @property
    def width(self) -> int:
        """Dimensions of the passages."""
        return self._passages.shape[1]

    @property
    def _dtype(self) -> np.dtype:
        part = self._passages.parts[0] if isinstance(self._passages, Vectors) else None
        return part.dtype if isinstance(part, np.ndarray) else np.dtype(np.float32)

    def search(
        self, queries: np.ndarray | Vectors, depth: int, *, recall_target: float | None = None
    ) -> Ranking:
        """The `depth` best passages, or all if there are fewer, of queries `[Q, D]`.

        `recall_target` is the share of them that accelerators are to find at least, with
        `jax.lax.approx_max_k` (Chern et al., 2022); None for all.
        """
        depth = min(depth, len(self._passages))
        size = min(QUERY_BLOCK, 1 << max(len(queries) - 1, 0).bit_length())
        starts = range(0, len(queries), size)
        best = [
            (np.full((size, depth), -np.inf, np.float32), np.full((size, depth), -1, np.int32))
            for _ in starts
        ]
        for first, block in self._blocks():
            pending = []
            for i, start in enumerate(starts):
                own = np.zeros((size, self._passages.shape[1]), np.float32)
                rows = queries[start : start + size]
                own[: len(rows)] = rows
                result = search_block(
                    *meshes.put((own, *best[i]), self._mesh),
                    block,
                    np.int32(first),
                    np.int32(len(self._passages)),
                    mesh=self._mesh,
                    tiles=self._blocking.tiles,
                    recall_target=recall_target,
                )
                pending.append((i, result))
                if len(pending) > 1:  # The devices compute while the last result is fetched.
                    _fetch(best, pending)
            while pending:
                _fetch(best, pending)
        scores, rows = (np.concatenate(x)[: len(queries)] for x in zip(*best, strict=True))
        return Ranking(rows, scores)

    def _blocks(self) -> Iterator[tuple[int, jax.Array]]:
        """First row and passages `[rows, D]` of each block; rows past the last are zero."""
        if self._resident is not None:
            yield 0, self._resident
            return
        for i in range(self._blocking.count):
            block = self._put(i * self._blocking.rows)
            if self._blocking.count == 1:
                self._resident = block
            yield i * self._blocking.rows, block

    def _put(self, first: int) -> jax.Array:
        shape = (self._blocking.rows, self._passages.shape[1])
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        dtype = ml_dtypes.bfloat16 if self._dtype == ml_dtypes.bfloat16 else np.float32

        def read(index: Any) -> np.ndarray:  # A tuple of slices.
            start, stop, _ = index[0].indices(self._blocking.rows)
            out = np.zeros((stop - start, shape[1]), dtype)
            end = min(first + stop, len(self._passages))
            # At once, it would need twice the memory.
            for at in range(first + start, end, _READ_ROWS):
                rows = self._passages[at : min(at + _READ_ROWS, end)]
                out[at - first - start :][: len(rows)] = rows
            return out

        return jax.make_array_from_callback(shape, sharding, read)


def _rows_that_fit(mesh: Mesh, row_bytes: int) -> int:
    """Passages that half of the devices' memory holds."""
    limits = [(d.memory_stats() or {}).get('bytes_limit') for d in mesh.devices.flat]
    half = [_CPU_BYTES // len(limits) if limit is None else limit // 2 for limit in limits]
    return max(min(half) * len(limits) // row_bytes, len(limits))


def _fetch(best: list, pending: list) -> None:
    i, result = pending.pop(0)
    best[i] = tuple(map(np.asarray, result))


@functools.partial(jax.jit, static_argnames=('mesh', 'tiles', 'recall_target'))
def search_block(
    queries: jax.Array,
    best_scores: jax.Array,
    best_rows: jax.Array,
    passages: jax.Array,
    first: jax.Array,
    count: jax.Array,
    *,
    mesh: Mesh,
    tiles: int,
    recall_target: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Merges the best of a block of passages with those of earlier blocks.

    Args:
        queries: `[Q, D]`, on every device.
        best_scores, best_rows: `[Q, k]` of earlier blocks.
        passages: `[rows, D]`, split over all devices.
        first: Row of the block's first passage.
        count: Rows from here on are padding.
        tiles: Equal parts of a device's passages, one after another.
    """
    depth, axes = best_scores.shape[1], mesh.axis_names

    def search_share(queries, own, first, count):
        size = len(own) // tiles
        start = first + jax.lax.axis_index(axes) * len(own)

        def search_tile(tile):
            number, vectors = tile
            rows = start + number * size + jnp.arange(size)
            exact = jax.lax.Precision.HIGHEST
            scores = jnp.matmul(queries, vectors.astype(jnp.float32).T, precision=exact)
            scores = jnp.where(rows < count, scores, -jnp.inf)
            # Prefers the earlier of equal scores, so ties keep the order of the collection.
            if recall_target is None:
                scores, at = jax.lax.top_k(scores, min(depth, size))
            else:
                scores, at = jax.lax.approx_max_k(
                    scores, min(depth, size), recall_target=recall_target
                )
            return scores, rows[at]

        numbers, parts = jnp.arange(tiles), own.reshape(tiles, size, -1)
        found = jax.lax.map(search_tile, (numbers, parts))
        by_query = [jnp.swapaxes(x, 0, 1).reshape(len(queries), -1) for x in found]
        return tuple(jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in by_query)

    everywhere = PartitionSpec()
    scores, rows = jax.shard_map(
        search_share,
        mesh=mesh,
        in_specs=(everywhere, PartitionSpec(axes), everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        check_vma=False,
    )(queries, passages, first, count)
    scores = jnp.concatenate([best_scores, scores], axis=1)
    rows = jnp.concatenate([best_rows, rows], axis=1)
    scores, at = jax.lax.top_k(scores, depth)
    return scores, jnp.take_along_axis(rows, at, axis=1)
