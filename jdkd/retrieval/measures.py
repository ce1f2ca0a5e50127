"""Measures rankings with ir_measures, whose numbers are those of trec_eval."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import ir_measures
import numpy as np

from jdkd.retrieval.ranking import Ranking
from jdkd.runtime import stages


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Measured values of a system, as fractions.

    Attributes:
        means: {measure: mean over the queries}.
        per_query: {query id: {measure: value}}.
        first: {query id: id of the passage at rank 1}.
    """

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
    first: dict[str, str]

    def save(self, directory: pathlib.Path, name: str) -> None:
        """Writes `<name>.per_query.json` and `<name>.first.json`."""
        stages.write_json(directory / f'{name}.per_query.json', self.per_query)
        stages.write_json(directory / f'{name}.first.json', self.first)


def load_per_query(directory: pathlib.Path, name: str) -> dict[str, dict[str, float]]:
    """Loads `Measurements.per_query`, which `Measurements.save` wrote."""
    return stages.read_json(directory / f'{name}.per_query.json')


def load_first(directory: pathlib.Path, name: str) -> dict[str, str]:
    """Loads `Measurements.first`, which `Measurements.save` wrote."""
    return stages.read_json(directory / f'{name}.first.json')


def measure(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    has_answer: Mapping[str, Callable[[str], bool]] | None = None,
) -> Measurements:
    """Measures a run over the queries that have judgements or answers; no result counts as 0.

    Args:
        run: {query id: {passage id: score}}, best first, from `trec.from_ranking`.
        qrels: {query id: {passage id: grade}}.
        measures: Names that ir_measures parses, such as `MRR@10`, `nDCG@10`, `R@100` or `MAP`; or
            `AnswerR@20`, whether one of the first 20 passages holds an answer, judged or not: the
            top-20 accuracy of DPR (Karpukhin et al., 2020, section 5).
        has_answer: {query id: whether the passage of an id holds an answer}, for `AnswerR`.

    Raises:
        ValueError: if a name is not a measure, or no query has the judgements or answers it needs.
    """
    # The tools behind ir_measures break ties differently, so they get ranks as scores.
    ranks = {q: {pid: -rank for rank, pid in enumerate(ranked)} for q, ranked in run.items()}
    judged = {query_id: grades for query_id, grades in qrels.items() if grades}
    depths = {name: _answer_depth(name) for name in measures}
    by_answer = {name: ir_measures.Success @ depth for name, depth in depths.items() if depth}
    by_grade = {name: _parse(name) for name, depth in depths.items() if not depth}
    answered = _answer_qrels(run, has_answer or {}, max(depths.values())) if by_answer else {}
    means, per_query = {}, {query_id: {} for query_id in (*judged, *answered)}
    for parsed, grades, needed in (
        (by_grade, judged, 'judgements'),
        (by_answer, answered, 'answers'),
    ):
        if not parsed:
            continue
        if not grades:
            raise ValueError(
                f'measures={",".join(parsed)} needs {needed}, but the queries have none; remove it.'
            )
        results = ir_measures.calc(set(parsed.values()), grades, ranks)
        values = {(v.query_id, v.measure): float(v.value) for v in results.per_query}
        for name, m in parsed.items():
            means[name] = float(results.aggregated[m])
            for query_id in grades:
                per_query[query_id][name] = values[query_id, m]
    first = {query_id: next(iter(ranked)) for query_id, ranked in run.items() if ranked}
    return Measurements({name: means[name] for name in measures}, per_query, first)


def check_names(measures: Sequence[str]) -> None:
    """Checks the names of measures, before any work.

    Raises:
        ValueError: if a name is not a measure.
    """
    for name in measures:
        if not _answer_depth(name):
            _parse(name)


def check_available(
    measures: Sequence[str], split: str, has_positives: bool, has_answers: bool
) -> None:
    """Checks that a split has the judgements or answers that measures need.

    Raises:
        ValueError: if it lacks them.
    """
    for name in measures:
        by_answer = bool(_answer_depth(name))
        if not (has_answers if by_answer else has_positives):
            raise ValueError(
                f'measures={",".join(measures)}: {name} needs '
                f'{"answers" if by_answer else "judgements"}, but the queries of split {split!r} '
                'have none; remove it.'
            )


def _parse(name: str) -> ir_measures.Measure:
    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError) as e:
        raise ValueError(
            f"measures names '{name}', which ir_measures does not know; "
            "use 'RR@10', 'nDCG@10' or 'R@100', for example."
        ) from e


def _answer_depth(name: str) -> int:
    """Returns 20 for `AnswerR@20`, and 0 for other measures."""
    match = re.fullmatch(r'AnswerR@([1-9]\d*)', name)
    return int(match[1]) if match else 0


def _answer_qrels(
    run: Mapping[str, Mapping[str, float]],
    has_answer: Mapping[str, Callable[[str], bool]],
    depth: int,
) -> dict[str, dict[str, int]]:
    """Judges each query's first passages by whether they hold an answer."""
    judged = {}
    for query_id, holds in has_answer.items():
        first = itertools.islice(run.get(query_id, ()), depth)
        # Queries without results are judged too, to count as 0.
        judged[query_id] = {passage_id: int(holds(passage_id)) for passage_id in first} or {'': 0}
    return judged


def wrong_queries(
    ranking: Ranking, positives: Sequence[np.ndarray], group: np.ndarray
) -> np.ndarray:
    """Marks queries whose first passage is neither a positive nor equal to one in text.

    Args:
        ranking: Ranking of the queries; an empty one is wrong.
        positives: Rows of each query's positive passages.
        group: `[P]` text group of each passage.

    Returns:
        `[num_queries]` bool.
    """
    return np.array(
        [
            row < 0 or group[row] not in group[rows]
            for row, rows in zip(ranking.passages[:, 0], positives, strict=True)
        ]
    )
