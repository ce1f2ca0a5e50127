"""Measures of a ranking, by ir_measures (trec_eval's numbers), and TREC run files."""

import pathlib
from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np

from jdkd.retrieval.index import Ranking


def to_run(
    ranking: Ranking, query_ids: Sequence[str], passage_ids: Sequence[str]
) -> dict[str, dict[str, float]]:
    """A run {query id: {passage id: score}}, each query's passages best first.

    Equal scores are ordered by falling passage id, as trec_eval does, so that every measure and
    every reader of the run sees the same order.
    """
    run = {}
    for query_id, rows, scores in zip(query_ids, ranking.passages, ranking.scores, strict=True):
        pairs = [(float(s), passage_ids[p]) for p, s in zip(rows, scores, strict=True) if p >= 0]
        run[query_id] = {pid: score for score, pid in sorted(pairs, reverse=True)}
    return run


def measure(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
) -> dict[str, float]:
    """Means over the judged queries, by name, for example `RR@10`, `nDCG@10`, `R@100`.

    Args:
        run: From `to_run`.
        qrels: {query id: {passage id: grade}}; a query without results counts as 0.
        measures: Names that ir_measures parses.

    Raises:
        ValueError: if a name is not a measure.
    """
    parsed = []
    for name in measures:
        try:
            parsed.append(ir_measures.parse_measure(name))
        except (NameError, ValueError) as e:
            raise ValueError(
                f"measures names '{name}', which ir_measures does not know; "
                "use for example 'RR@10', 'nDCG@10' or 'R@100'."
            ) from e
    # Measures of ir_measures come from several tools, which break ties in several ways: they are
    # given the order itself.
    ranks = {q: {pid: -rank for rank, pid in enumerate(ranked)} for q, ranked in run.items()}
    found = ir_measures.calc_aggregate(parsed, qrels, ranks)
    return {name: float(found[m]) for name, m in zip(measures, parsed, strict=True)}


def wrong_queries(ranking: Ranking, positives: Sequence[np.ndarray]) -> np.ndarray:
    """`[num_queries]` bool: no positive at rank 1.

    Args:
        ranking: Of the queries.
        positives: Rows of each query's positive passages.
    """
    first = ranking.passages[:, 0]
    return np.array([row not in rows for row, rows in zip(first, positives, strict=True)])


def write_trec_run(path: pathlib.Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes `query Q0 passage rank score tag` lines."""
    with path.open('w', encoding='utf-8') as f:
        for query_id, ranked in run.items():
            for rank, (passage_id, score) in enumerate(ranked.items(), start=1):
                f.write(f'{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n')
