"""Searching embeddings by inner product: ScaNN, and exact search as its oracle."""

import concurrent.futures
import dataclasses
import functools
import math
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jdkd.retrieval.vectors import Vectors
from jdkd.runtime import distributed
from jdkd.runtime.parts import write_part

try:
    import scann
except ImportError:  # Wheels exist for Linux on x86-64 only.
    scann = None

KINDS = ('scann', 'exact')
_HASH_FROM = 1000  # Passages from which ScaNN's codes can be trained; fewer are searched exactly.
_TREE_FROM = 20_000  # Passages from which ScaNN's guide partitions first.
_TRAINED_ON = 250_000  # Passages of a shard that its leaves are made from.
BUILDERS = 4  # Shards that are indexed side by side.
_QUERY_BLOCK = 32_768  # Queries whose candidates are kept at once.
_RESCORED = 2**26  # Bytes of the vectors of candidates that are gathered at once.


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
    # top_k takes the earlier of two equal scores: ties keep the order of the collection.
    scores, rows = jax.lax.top_k(scores, min(depth, block.shape[0]))
    scores = jnp.concatenate([best_scores, scores], axis=1)
    rows = jnp.concatenate([best_rows, offset + rows], axis=1)
    best_scores, at = jax.lax.top_k(scores, depth)
    return best_scores, jnp.take_along_axis(rows, at, axis=1)


def exact_search(
    queries: np.ndarray,
    passages: np.ndarray | Vectors,
    depth: int,
    *,
    query_block: int = 1024,
    passage_block: int = 65_536,
) -> Ranking:
    """Exact inner-product search on the device, in blocks; ties are in the order of the rows.

    The device holds the queries, one block of passages and `[query_block, passage_block]` scores,
    the host one block of passages.

    Args:
        queries: `[num_queries, dim]`.
        passages: `[num_passages, dim]`; may be memory-mapped.
        depth: Passages to return for each query, at most num_passages.
        query_block: Queries a block.
        passage_block: Passages a block.
    """
    depth = min(depth, len(passages))
    starts = range(0, len(queries), query_block)
    blocks = [jnp.asarray(queries[q : q + query_block], jnp.float32) for q in starts]
    best = [
        (jnp.full((len(q), depth), -jnp.inf), jnp.full((len(q), depth), -1, jnp.int32))
        for q in blocks
    ]
    for p in range(0, len(passages), passage_block):
        block_p = jnp.asarray(passages[p : p + passage_block], jnp.float32)
        for i, block_q in enumerate(blocks):
            # Waited for, since blocks of scores that are computed side by side would add up.
            best[i] = jax.block_until_ready(_top_block(block_q, block_p, p, *best[i], depth))
    scores, rows = (np.concatenate([np.asarray(x) for x in xs]) for xs in zip(*best, strict=True))
    return Ranking(rows, scores)


def check(config) -> None:
    """Checks `config.index`.

    Raises:
        ValueError: if `kind` is none of `KINDS`, or `shard` is too small.
    """
    if config.kind not in KINDS:
        raise ValueError(f"index.kind is '{config.kind}'; use one of {', '.join(KINDS)}.")
    if config.shard < 2 * _HASH_FROM:  # Half of it may be the size of a shard.
        raise ValueError(f'index.shard={config.shard} is too small; set at least {2 * _HASH_FROM}.')


def check_installed(num_passages: int) -> None:
    """Checks that ScaNN is there where so many passages ask for it.

    Raises:
        ImportError: if not.
    """
    if scann is None and num_passages >= _HASH_FROM:
        raise ImportError(
            'ScaNN is not installed (it has wheels for Linux on x86-64 only); '
            "set index.kind='exact'."
        )


def build(directory: pathlib.Path, passages: np.ndarray | Vectors, config) -> None:
    """Writes ScaNN's index (Guo et al., 2020) of passages; `search` reads it.

    Made for a resumable stage, which processes share out. The passages are cut into shards of equal
    size, at most `config.shard`, and each has an index of its own: anisotropic hashing of two
    dimensions a code, after a partitioning tree where there are many. An index holds half a byte
    for two dimensions of a passage (twice, under a tree) and no vectors: those that it finds are
    scored from `passages`. Fewer than 1,000 passages have no index, as they are searched exactly.
    Memory is bounded by four shards, indexed side by side: two times their vectors in float32.

    Args:
        directory: Of the stage.
        passages: `[num_passages, dim]`.
        config: `config.index`: `shard`, `threshold`.

    Raises:
        ImportError: if ScaNN is not installed.
        ValueError: if `config.shard` is too small.
    """
    check(config)
    check_installed(len(passages))
    if len(passages) < _HASH_FROM:
        return

    def write(i, rows):
        def write_shard(out):
            searcher = _train(passages[rows.start : rows.stop], config.threshold)
            out.mkdir(parents=True)
            searcher.serialize(str(out), relative_path=True)

        write_part(_shard_directory(directory, i), write_shard)

    shards = list(enumerate(_shards(len(passages), config.shard)))
    shards = shards[distributed.process_index() :: distributed.process_count()]
    with concurrent.futures.ThreadPoolExecutor(min(BUILDERS, os.cpu_count() or 1)) as builders:
        list(builders.map(lambda shard: write(*shard), shards))
    distributed.barrier(f'{directory}: all shards')


def _train(vectors: np.ndarray, threshold: float):
    # How many are found is said in each search.
    builder = scann.scann_ops_pybind.builder(vectors, 1, 'dot_product')
    if len(vectors) >= _TREE_FROM:
        # SOAR (Sun et al., 2023) puts each passage into two leaves, the second where the first
        # leaf's error is not: half as many leaves need to be searched for the same recall.
        # Centres that start at random would make another tree in every process.
        builder = builder.tree(
            _leaves(len(vectors)),
            1,
            training_sample_size=_TRAINED_ON,
            random_init=False,
            soar_lambda=1.5,
            overretrieve_factor=2.0,
        )
    # Several threads would round in another way in every process.
    builder = builder.set_n_training_threads(1)
    return builder.score_ah(2, anisotropic_quantization_threshold=threshold).build()


def _leaves(num_passages: int) -> int:
    return int(2 * np.sqrt(num_passages))


def search(
    queries: np.ndarray | Vectors,
    passages: np.ndarray | Vectors,
    depth: int,
    config,
    directory: pathlib.Path | None = None,
) -> Ranking:
    """The best passages of each query by inner product; ties are in the order of the rows.

    With ScaNN, the candidates of all shards with the best approximate scores are scored exactly.
    Memory, beside the ranking, is bounded by the codes of one shard and the candidates of
    32,768 queries, 16 bytes each.

    Args:
        queries: `[num_queries, dim]` float32.
        passages: `[num_passages, dim]` float32; may be memory-mapped.
        depth: Passages to return for each query, at most num_passages.
        config: `config.index`: `kind` is `scann` or `exact`; `reorder` candidates are scored
            exactly, after a search of the share `leaves` of a tree's leaves.
        directory: What `build` wrote from the same passages; None to build it and throw it away.

    Raises:
        ImportError: if ScaNN is not installed.
        ValueError: if the kind is neither.
    """
    check(config)
    if config.kind == 'exact' or len(passages) < _HASH_FROM:
        return exact_search(queries, passages, depth)
    if directory is None:
        with tempfile.TemporaryDirectory() as temporary:
            build(pathlib.Path(temporary), passages, config)
            return search(queries, passages, depth, config, pathlib.Path(temporary))
    depth = min(depth, len(passages))
    count = min(max(config.reorder, depth), len(passages))
    found = []
    for start in range(0, len(queries), _QUERY_BLOCK):
        block = np.ascontiguousarray(queries[start : start + _QUERY_BLOCK], np.float32)
        candidates = _candidates(block, len(passages), count, config, directory)
        found.append(_rescored(block, passages, candidates, depth))
    return Ranking(
        np.concatenate([f.passages for f in found]), np.concatenate([f.scores for f in found])
    )


def _candidates(
    queries: np.ndarray, num_passages: int, count: int, config, directory: pathlib.Path
) -> np.ndarray:
    """`[num_queries, count]` rows with the best approximate scores of all shards, -1 for none."""
    best = None
    for i, rows in enumerate(_shards(num_passages, config.shard)):
        searcher = scann.scann_ops_pybind.load_searcher(str(_shard_directory(directory, i)))
        leaves = max(math.ceil(config.leaves * _leaves(len(rows))), 1)
        found, scores = searcher.search_batched_parallel(
            queries, min(count, len(rows)), leaves_to_search=leaves
        )
        # Where the leaves hold fewer, ScaNN fills up with row 0 and no score.
        missing = np.isnan(scores)
        found = np.where(missing, -1, found.astype(np.int32) + np.int32(rows.start))
        scores = np.where(missing, -np.inf, scores).astype(np.float32)
        if best is not None:
            found = np.concatenate([best[0], found], axis=1)
            scores = np.concatenate([best[1], scores], axis=1)
            at = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            found, scores = (np.take_along_axis(x, at, axis=1) for x in (found, scores))
        best = found, scores
    return best[0]


def _rescored(
    queries: np.ndarray, passages: np.ndarray | Vectors, candidates: np.ndarray, depth: int
) -> Ranking:
    """The best of `candidates` `[num_queries, count]` by their exact inner products."""
    # In the order of rows, so that a stable sort leaves ties in it.
    candidates = np.sort(candidates, axis=1)
    rows = np.empty((len(queries), depth), np.int32)
    scores = np.empty((len(queries), depth), np.float32)
    size = max(_RESCORED // (candidates.shape[1] * queries.shape[1] * 4), 1)
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        known = candidates[part]
        exact = np.einsum('qd,qnd->qn', queries[part], passages[np.maximum(known, 0)])
        exact = np.where(known < 0, -np.inf, exact).astype(np.float32)
        order = np.argsort(-exact, axis=1, kind='stable')[:, :depth]
        rows[part] = np.take_along_axis(known, order, axis=1)
        scores[part] = np.take_along_axis(exact, order, axis=1)
    return Ranking(rows, scores)


def _shards(num_passages: int, largest: int) -> list[range]:
    """Rows in as few ranges of equal size as there can be; equal, so that none is tiny."""
    count = -(-num_passages // largest)
    edges = [num_passages * i // count for i in range(count + 1)]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _shard_directory(directory: pathlib.Path, i: int) -> pathlib.Path:
    return directory / f'shard-{i:05d}'


def recall(approximate: Ranking, exact: Ranking) -> float:
    """Mean share of the exact top passages that the approximate search returned too."""
    shares = [
        len(np.intersect1d(a, e)) / len(e)
        for a, e in zip(approximate.passages, exact.passages, strict=True)
    ]
    return float(np.mean(shares))
