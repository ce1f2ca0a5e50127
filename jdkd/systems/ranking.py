"""Ranks the collection for a split's queries, and keeps the rankings as stages."""

import math
from collections.abc import Callable, Iterable

import numpy as np
from absl import logging

from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.runtime.parts import write_parts
from jdkd.systems.scoring import check_finite
from jdkd.systems.system import Search, System

PART_QUERIES = 16_384  # Queries a file: the most that a restart ranks again.
_RECALL_SAMPLE = slice(0, 256)  # Queries whose approximate ranking is compared with the exact one.


def own_passages(run: Run, queries: Queries) -> np.ndarray:
    """`[Q]` int32: the passage that each query excludes from its results; -1 for none.

    With `ignore_identical_ids` that is the passage with the query's id, as in BEIR: in some
    collections (ArguAna, Quora) the query itself is a passage and would come first. Where a query
    has the id of its positive, none is excluded.
    """
    if not run.config.ignore_identical_ids or run.collection.ids_pair:
        return np.full(len(queries), -1, np.int32)
    return run.collection.id_index.find(queries.ids)


def checked_ranking(run: Run, name: str, queries: Queries, search: Search) -> Ranking:
    """Searches for queries to the config's full depth, without their own passages.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    return _rank_part(run, name, queries, search, _excluded(run, queries), slice(None))


def _excluded(run: Run, queries: Queries) -> np.ndarray:
    """`own_passages`, with a warning where queries lose a positive by it."""
    own = own_passages(run, queries)
    # A query may share a judged passage's id by chance: BEIR's figures lose that passage too.
    lost = sum(row in rows for row, rows in zip(own, queries.positives, strict=True))
    if lost:
        logging.warning(
            f'{run.collection.name}: {lost} queries of split {queries.split!r} have the id of a '
            'passage that is judged relevant to them, and lose it, as in BEIR; where ids coincide '
            'by chance, set ignore_identical_ids=False.'
        )
    return own


def _rank_part(
    run: Run, name: str, queries: Queries, search: Search, own: np.ndarray, part: slice
) -> Ranking:
    depth = min(run.config.depth, len(run.collection))
    excludes = bool((own >= 0).any())
    ranking = search(part, depth + excludes)
    lists = Lists.from_originals(np.arange(len(queries))[part], ranking.passages)
    check_finite(name, np.where(ranking.passages < 0, 0, ranking.scores), run, queries, lists)
    return ranking.without(own[part], depth) if excludes else ranking


def ranking_inputs(
    run: Run, systems: Iterable[System], *queries: Queries, depth: int | None = None
) -> dict:
    """Everything that decides systems' rankings to a depth, as inputs of stages that read them.

    `queries` are those of the rankings, unless the path of the stage names their split.
    """
    config, systems = run.config, list(systems)
    return {
        'systems': [[s.name, s.digest] for s in systems],  # Miners' passages mix in their order.
        'splits': [q.split for q in queries],
        'collection': run.collection.fingerprint,
        'depth': config.depth if depth is None else depth,
        'ignore_identical_ids': config.ignore_identical_ids and not run.collection.ids_pair,
        'index': config.index.to_dict() if any(s.reads_index for s in systems) else None,
    }


def measure_inputs(run: Run, systems: Iterable[System], queries: Queries) -> dict:
    """`ranking_inputs` of stages that measure the systems on a split."""
    return {**ranking_inputs(run, systems, queries), 'measures': run.config.measures}


def keep_ranking(
    system: System,
    queries: Queries,
    open_search: Callable[[], tuple[Search, Search | None]],
) -> tuple[Ranking, dict[str, float]]:
    """A system's `checked_ranking` of a split, kept as a stage, with facts about it.

    Processes share its parts of 16,384 queries, and a restart keeps them. All of them call
    `open_search`, which builds the stages that the search reads. It returns the search and, for
    encoders, the exact one, which may be the same: the fact `index_recall` is the share of the
    exact ranking that the first 256 queries found.
    """
    run = system.run
    path = f'systems/{system.name}/ranking-{queries.split}'
    count = math.ceil(len(queries) / PART_QUERIES)

    def build(out):
        search, exact = open_search()
        own = _excluded(run, queries)

        def rank(search, part):
            return _rank_part(run, system.name, queries, search, own, part)

        def write(i, file):
            rank(search, slice(i * PART_QUERIES, (i + 1) * PART_QUERIES)).write(file)

        desc = f'{system.name}: ranks {queries.split}'
        paths = write_parts(out, 'part-{}.npz', count, write, desc=desc)
        if not distributed.is_primary():
            return None
        Ranking.join_files(out, 'ranking', paths, len(queries))
        for part in paths:
            part.unlink()
        if exact is None:
            return {}
        if exact is search:
            return {'index_recall': 1.0}
        found = Ranking.load(out, 'ranking').of(_RECALL_SAMPLE)
        return {'index_recall': found.recall(rank(exact, _RECALL_SAMPLE))}

    manifest = run.stage(path, ranking_inputs(run, [system]), build, resumable=True)
    return Ranking.load(run.workdir / path, 'ranking'), manifest['result']
