"""Searching embeddings by inner product: ScaNN, and exact search as its oracle."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

try:
    import scann
except ImportError:  # Wheels exist for Linux on x86-64 only.
    scann = None

_TREE_FROM = 20_000  # Passages from which ScaNN's guide partitions first.


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


def load_ranking(directory: pathlib.Path, name: str) -> Ranking:
    return Ranking(
        np.load(directory / f'{name}.passages.npy'), np.load(directory / f'{name}.scores.npy')
    )


def without(ranking: Ranking, rows: np.ndarray, depth: int) -> Ranking:
    """A ranking less one passage of each query, cut to a depth.

    Args:
        ranking: The ranking.
        rows: `[num_queries]` int32, the passage to leave out; -1 for none.
        depth: Passages to keep.
    """
    gone = (ranking.passages == rows[:, None]) | (ranking.passages < 0)
    order = np.argsort(gone, axis=1, kind='stable')[:, :depth]
    gone, passages, scores = (
        np.take_along_axis(x, order, axis=1) for x in (gone, ranking.passages, ranking.scores)
    )
    return Ranking(np.where(gone, np.int32(-1), passages), np.where(gone, -np.inf, scores))


@functools.partial(jax.jit, static_argnames='depth')
def _top_block(queries, block, offset, best_scores, best_rows, depth):
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    rows = jnp.broadcast_to(offset + jnp.arange(block.shape[0]), scores.shape)
    scores = jnp.concatenate([best_scores, scores], axis=1)
    rows = jnp.concatenate([best_rows, rows], axis=1)
    # top_k takes the earlier of two equal scores: ties keep the order of the collection.
    best_scores, at = jax.lax.top_k(scores, depth)
    return best_scores, jnp.take_along_axis(rows, at, axis=1)


def exact_search(
    queries: np.ndarray,
    passages: np.ndarray,
    depth: int,
    *,
    query_block: int = 1024,
    passage_block: int = 65_536,
) -> Ranking:
    """Exact inner-product search on the device, in blocks.

    Args:
        queries: `[num_queries, dim]`.
        passages: `[num_passages, dim]`; may be memory-mapped.
        depth: Passages to return for each query, at most num_passages.
        query_block: Queries a block.
        passage_block: Passages a block.
    """
    depth = min(depth, len(passages))
    out_rows, out_scores = [], []
    for q in range(0, len(queries), query_block):
        block_q = jnp.asarray(queries[q : q + query_block], jnp.float32)
        scores = jnp.full((len(block_q), depth), -jnp.inf)
        rows = jnp.full((len(block_q), depth), -1, jnp.int32)
        for p in range(0, len(passages), passage_block):
            block_p = jnp.asarray(passages[p : p + passage_block], jnp.float32)
            scores, rows = _top_block(block_q, block_p, p, scores, rows, depth)
        out_rows.append(np.asarray(rows))
        out_scores.append(np.asarray(scores))
    return Ranking(np.concatenate(out_rows), np.concatenate(out_scores))


def scann_search(
    queries: np.ndarray, passages: np.ndarray, depth: int, *, reorder: int, threshold: float
) -> Ranking:
    """Approximate inner-product search by ScaNN (Guo et al., 2020).

    Anisotropic hashing over all passages, after a partitioning tree where there are many, then
    exact reordering of the best candidates.

    Args:
        queries: `[num_queries, dim]` float32.
        passages: `[num_passages, dim]` float32.
        depth: Passages to return for each query.
        reorder: Candidates that are scored exactly; at least depth.
        threshold: Anisotropic quantization threshold.

    Raises:
        ImportError: if ScaNN is not installed.
    """
    if scann is None:
        raise ImportError(
            'ScaNN is not installed (it has wheels for Linux on x86-64 only); '
            "set index.kind='exact'."
        )
    depth = min(depth, len(passages))
    builder = scann.scann_ops_pybind.builder(
        np.ascontiguousarray(passages, np.float32), depth, 'dot_product'
    )
    if len(passages) >= _TREE_FROM:
        leaves = int(np.sqrt(len(passages)))
        builder = builder.tree(leaves, max(leaves // 20, 10), training_sample_size=250_000)
    # Two dimensions a block need an even number of them; 16 codes need some passages to train on.
    if len(passages) >= 1000:
        builder = builder.score_ah(2, anisotropic_quantization_threshold=threshold)
        builder = builder.reorder(max(reorder, depth))
    else:
        builder = builder.score_brute_force()
    rows, scores = builder.build().search_batched(np.ascontiguousarray(queries, np.float32))
    return Ranking(rows.astype(np.int32), scores.astype(np.float32))


def search(queries: np.ndarray, passages: np.ndarray, depth: int, config) -> Ranking:
    """Searches as the config's `index` says: `kind` is `scann` or `exact`."""
    if config.kind == 'exact':
        return exact_search(queries, passages, depth)
    if config.kind == 'scann':
        return scann_search(
            queries, passages, depth, reorder=config.reorder, threshold=config.threshold
        )
    raise ValueError(f"index.kind is '{config.kind}'; use 'scann' or 'exact'.")


def recall(approximate: Ranking, exact: Ranking) -> float:
    """Mean share of the exact top passages that the approximate search returned too."""
    shares = [
        len(np.intersect1d(a, e)) / len(e)
        for a, e in zip(approximate.passages, exact.passages, strict=True)
    ]
    return float(np.mean(shares))
