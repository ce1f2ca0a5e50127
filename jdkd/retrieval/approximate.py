"""Approximate search by inner product, with ScaNN."""

import concurrent.futures
import functools
import itertools
import math
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from jdkd.config import IndexConfig
from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.vectors import Vectors
from jdkd.runtime import distributed
from jdkd.runtime.parts import await_parts, write_part

try:
    import scann
except ImportError:  # Wheels exist for Linux on x86-64 and Python below 3.14 only.
    scann = None

_HASH_FROM = 1000  # Passages that ScaNN's codes need for training; fewer are searched exactly.
TREE_FROM = 20_000  # Passages from which an index partitions first, as ScaNN's guide advises.
_TREE_SAMPLE = 250_000  # Passages of a shard that train its tree.
BUILDERS = 16  # Shards indexed in parallel, at most.
_RESCORED_BYTES = 2**22  # Of candidates' vectors that a thread gathers at once: caches hold them.


def for_mining(config: IndexConfig, platform: str) -> IndexConfig:
    """The config that train queries are searched with: `mining` decides its `kind`.

    They are far more than the queries that are measured. Accelerators search for them exactly in
    less time than ScaNN takes to index the collection. `platform` is the devices'.
    """
    kind = config.mining
    if kind == 'auto':
        kind = config.kind if platform == 'cpu' else 'exact'
    return config.replace(kind=kind)


def check_config(config: IndexConfig) -> None:
    """Raises a ValueError if `shard` is too small."""
    if config.shard < 2 * _HASH_FROM:  # Shards may have half of this size.
        raise ValueError(f'index.shard={config.shard} is too small; set at least {2 * _HASH_FROM}.')


def is_exact(config: IndexConfig, num_passages: int) -> bool:
    """Whether a collection of this size is searched exactly; logs it if only for want of ScaNN."""
    if config.kind == 'exact' or num_passages < _HASH_FROM:
        return True
    if scann is None:
        _warn_of_missing_scann()
    return scann is None


@functools.cache  # Once.
def _warn_of_missing_scann() -> None:
    logging.warning(
        'ScaNN is not installed (it has wheels for Linux on x86-64 and Python below 3.14 only): '
        'collections are searched exactly, as with index.kind=exact, which takes longer.'
    )


def build(directory: pathlib.Path, passages: np.ndarray | Vectors, config: IndexConfig) -> None:
    """Writes a ScaNN index (Guo et al., 2020); `search` reads it.

    A builder of a resumable stage, shared among processes. The passages are cut into equal shards
    of at most `config.shard`, each with its own index: anisotropic hashing of two dimensions per
    code, after a partitioning tree if there are many passages. An index holds half a byte for two
    dimensions of a passage (twice that under a tree) and no vectors: candidates are rescored from
    `passages`. Memory is bounded by twice the float32 vectors of the shards that are indexed
    in parallel: one a core, at most 16.

    Raises:
        ValueError: if `config.shard` is too small.
    """
    check_config(config)

    def write_shard(path: pathlib.Path, rows: range) -> None:
        def write(out: pathlib.Path) -> None:
            searcher = _train(passages[rows.start : rows.stop], config.threshold)
            out.mkdir(parents=True)
            searcher.serialize(str(out), relative_path=True)

        write_part(path, write)

    all_shards = _shards(directory, len(passages), config.shard)
    shards = all_shards[distributed.process_index() :: distributed.process_count()]
    with concurrent.futures.ThreadPoolExecutor(min(BUILDERS, os.cpu_count() or 1)) as builders:
        list(builders.map(lambda shard: write_shard(*shard), shards))
    await_parts([path for path, _ in all_shards], f'{directory}: shards')


def _scann() -> Any:
    """Returns ScaNN's module; its types are too narrow."""
    assert scann is not None  # See `is_exact`.
    return scann.scann_ops_pybind


def _train(vectors: np.ndarray, threshold: float) -> Any:
    """Returns a searcher of `[num_passages, dim]` vectors."""
    # Each search sets its own number of neighbours.
    builder = _scann().builder(vectors, 1, 'dot_product')
    if len(vectors) >= TREE_FROM:
        # SOAR (Sun et al., 2023) assigns each passage to a second leaf whose error is orthogonal to
        # the first's: the same recall needs half as many leaves. Random initial centres would give
        # another tree in every process.
        builder = builder.tree(
            _leaves(len(vectors)),
            1,
            training_sample_size=_TREE_SAMPLE,
            random_init=False,
            soar_lambda=1.5,
            overretrieve_factor=2.0,
        )
    # With several threads rounding would vary between processes.
    builder = builder.set_n_training_threads(1)
    return builder.score_ah(2, anisotropic_quantization_threshold=threshold).build()


def _leaves(num_passages: int) -> int:
    return int(2 * np.sqrt(num_passages))


def search(
    queries: np.ndarray | Vectors,
    passages: np.ndarray | Vectors,
    depth: int,
    config: IndexConfig,
    directory: pathlib.Path,
) -> Ranking:
    """Returns the best passages of each query by inner product; ties keep the order of the rows.

    ScaNN proposes candidates from all shards by approximate scores, which are then scored exactly.
    All cores work. Besides the ranking, memory is bounded by the codes of one shard, 16 bytes per
    candidate of a query and some MiB a core.

    Args:
        queries: `[num_queries, dim]` float32.
        passages: `[num_passages, dim]` float32; may be memory-mapped.
        depth: Passages to return for each query, limited to num_passages.
        directory: Output of `build` for the same passages.
    """
    depth = min(depth, len(passages))
    count = min(max(config.reorder, depth), len(passages))
    block = np.ascontiguousarray(queries[:], np.float32)
    candidates = _candidates(block, len(passages), count, config, directory)
    return Ranking(*_rescore(block, passages, candidates, depth))


def _candidates(
    queries: np.ndarray, num_passages: int, count: int, config: IndexConfig, directory: pathlib.Path
) -> np.ndarray:
    """Returns the rows with the best approximate scores, `[num_queries, count]`; -1 for none."""
    best_rows = np.empty((len(queries), 0), np.int32)
    best_scores = np.empty((len(queries), 0), np.float32)
    for path, rows in _shards(directory, num_passages, config.shard):
        searcher = _scann().load_searcher(str(path))
        leaves = max(math.ceil(config.leaves * _leaves(len(rows))), 1)
        neighbours, scores = searcher.search_batched_parallel(
            queries, min(count, len(rows)), leaves_to_search=leaves
        )
        # If the leaves hold fewer passages, ScaNN fills up with row 0 and NaN.
        missing = np.isnan(scores)
        neighbours = np.where(missing, -1, neighbours.astype(np.int32) + np.int32(rows.start))
        scores = np.where(missing, -np.inf, scores).astype(np.float32)
        best_rows = np.concatenate([best_rows, neighbours], axis=1)
        best_scores = np.concatenate([best_scores, scores], axis=1)
        if best_rows.shape[1] > count:
            at = np.argpartition(-best_scores, count - 1, axis=1)[:, :count]
            best_rows = np.take_along_axis(best_rows, at, axis=1)
            best_scores = np.take_along_axis(best_scores, at, axis=1)
    return best_rows


def _rescore(
    queries: np.ndarray, passages: np.ndarray | Vectors, candidates: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and scores of the best `[num_queries, count]` candidates by exact scores."""
    # In the order of the rows, which the stable sort below keeps for ties.
    candidates = np.sort(candidates, axis=1)
    rows = np.empty((len(queries), depth), np.int32)
    scores = np.empty((len(queries), depth), np.float32)
    size = max(_RESCORED_BYTES // (candidates.shape[1] * queries.shape[1] * 4), 1)

    def score(start: int) -> None:
        part = slice(start, start + size)
        block = candidates[part]
        exact = np.einsum('qd,qnd->qn', queries[part], passages[np.maximum(block, 0)])
        exact = np.where(block < 0, -np.inf, exact).astype(np.float32)
        order = np.argsort(-exact, axis=1, kind='stable')[:, :depth]
        rows[part] = np.take_along_axis(block, order, axis=1)
        scores[part] = np.take_along_axis(exact, order, axis=1)

    # NumPy gathers, multiplies and sorts without Python's lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        list(threads.map(score, range(0, len(queries), size)))
    return rows, scores


def _shards(
    directory: pathlib.Path, num_passages: int, largest: int
) -> list[tuple[pathlib.Path, range]]:
    """Returns path and rows of the fewest shards, of equal size so that none is tiny."""
    count = -(-num_passages // largest)
    edges = itertools.pairwise(num_passages * i // count for i in range(count + 1))
    return [(directory / f'shard-{i:05d}', range(*edge)) for i, edge in enumerate(edges)]
