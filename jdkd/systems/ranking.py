"""Rankings of a split's queries, kept as stages."""

from collections.abc import Iterable

import numpy as np
from absl import logging

from jdkd.lists.candidates import Lists
from jdkd.retrieval import index
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.systems.scoring import check_finite
from jdkd.systems.system import Search, System


def own_passages(run: Run, queries: Queries) -> np.ndarray:
    """`[Q]` int32: for each query the passage that is no result of it; -1 for none.

    With `ignore_identical_ids` that is the passage with the query's id, as in BEIR: in some
    collections (ArguAna, Quora) the query itself is a passage and would come first.
    """
    if not run.config.ignore_identical_ids:
        return np.full(len(queries), -1, np.int32)
    return run.collection.id_index.find(queries.ids)


def ranked(
    run: Run, name: str, queries: Queries, search: Search
) -> tuple[Ranking, dict[str, float]]:
    """What a search finds for queries less their own passages, to the config's full depth.

    Args:
        run: The run.
        name: Of the system that searches.
        queries: What is searched for.
        search: The search.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    depth = min(run.config.depth, len(run.collection))
    own = own_passages(run, queries)
    if (own < 0).all():
        return _checked(run, name, queries, *search(depth))
    # Where the id is the passage's by chance, a judged passage may go: BEIR's figures miss it too.
    lost = sum(row in rows for row, rows in zip(own, queries.positives, strict=True))
    if lost:
        logging.warning(
            '%s: %d queries of split %r have the id of a passage that is judged relevant to them, '
            'and lose it, as in BEIR; where ids coincide by chance, set '
            'ignore_identical_ids=False.',
            run.collection.name,
            lost,
            queries.split,
        )
    ranking, facts = _checked(run, name, queries, *search(depth + 1))
    return index.without(ranking, own, depth), facts


def _checked(run: Run, name: str, queries: Queries, ranking: Ranking, facts: dict):
    found = Lists.from_originals(np.arange(len(queries)), ranking.passages)
    known = np.where(ranking.passages < 0, 0, ranking.scores)
    check_finite(name, known, run, queries, found)
    return ranking, facts


def ranking_inputs(run: Run, systems: Iterable[System], *, depth: int | None = None) -> dict:
    """All that decides what systems find, as inputs of the stages that are made from it.

    Args:
        run: The run.
        systems: Which; their digests are named.
        depth: How much of the rankings is used; None for all.
    """
    config, systems = run.config, list(systems)
    return {
        'systems': {s.name: s.digest for s in systems},
        'collection': run.collection.fingerprint,
        'depth': config.depth if depth is None else depth,
        'ignore_identical_ids': config.ignore_identical_ids,
        # BM25 and imported scores have none.
        'index': config.index.to_dict() if any(hasattr(s, 'encoder') for s in systems) else None,
    }


def measure_inputs(run: Run, systems: Iterable[System]) -> dict:
    """The same for stages that measure systems."""
    return {**ranking_inputs(run, systems), 'measures': run.config.measures}


def keep_ranking(
    system: 'System', queries: Queries, search: Search
) -> tuple[Ranking, dict[str, float]]:
    """A system's ranking of a split, see `ranked`, kept as a stage."""
    run = system.run
    path = f'systems/{system.name}/ranking-{queries.split}'

    def build(out):
        ranking, facts = ranked(run, system.name, queries, search)
        ranking.save(out, 'ranking')
        return facts

    manifest = run.stage(path, ranking_inputs(run, [system]), build)
    return index.load_ranking(run.workdir / path, 'ranking'), manifest['result']
