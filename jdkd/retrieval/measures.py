"""Measures rankings with ir_measures, whose numbers are those of trec_eval."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np

from jdkd.retrieval.ranking import Ranking
from jdkd.runtime import stages


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Measured values of a system, as fractions."""

    means: dict[str, float]  # {measure: mean over the queries}
    per_query: dict[str, dict[str, float]]  # {query id: {measure: value}}
    first: dict[str, str]  # {query id: id of the passage at rank 1}

    def save(self, directory: pathlib.Path, name: str) -> None:
        """Writes `<name>.per_query.json` and `<name>.first.json`."""
        for field in ('per_query', 'first'):
            stages.write_json(directory / f'{name}.{field}.json', getattr(self, field))


def load(directory: pathlib.Path, name: str, field: str = 'per_query') -> dict[str, Any]:
    """Loads a field of `Measurements`, `per_query` or `first`, that `Measurements.save` wrote."""
    return stages.read_json(directory / f'{name}.{field}.json')


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
    aggregated: Any  # ir_measures' type also allows the number of a single measure.
    kinds = (by_grade, judged, 'judgements'), (by_answer, answered, 'answers')
    for parsed, grades, needed in kinds:
        if not parsed:
            continue
        if not grades:
            raise ValueError(
                f'measures={",".join(parsed)} needs {needed}, but the queries have none; remove it.'
            )
        aggregated, results = ir_measures.calc(set(parsed.values()), grades, ranks)
        values = {(v.query_id, v.measure): float(v.value) for v in results}
        for name, m in parsed.items():
            means[name] = float(aggregated[m])
            for query_id in grades:
                per_query[query_id][name] = values[query_id, m]
    first = {query_id: next(iter(ranked)) for query_id, ranked in run.items() if ranked}
    return Measurements({name: means[name] for name in measures}, per_query, first)


def check_names(measures: Sequence[str]) -> None:
    """Raises a ValueError if a name is not a measure; for checks before any work."""
    for name in measures:
        if not _answer_depth(name):
            _parse(name)


def check_available(
    measures: Sequence[str], split: str, has_positives: bool, has_answers: bool
) -> None:
    """Raises a ValueError if a split lacks the judgements or answers that measures need."""
    positives, answers = ('judgements', has_positives), ('answers', has_answers)
    for name in measures:
        needed, available = answers if _answer_depth(name) else positives
        if not available:
            raise ValueError(
                f'measures={",".join(measures)}: {name} needs {needed}, but the queries of split '
                f'{split!r} have none; remove it.'
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
    # Queries without results are judged too, to count as 0.
    return {
        query_id: {pid: int(holds(pid)) for pid in [*run.get(query_id, ())][:depth]} or {'': 0}
        for query_id, holds in has_answer.items()
    }


def wrong_queries(
    ranking: Ranking, positives: Sequence[np.ndarray], group: np.ndarray
) -> np.ndarray:
    """Marks queries whose first passage is neither a positive nor equal to one in text.

    A query without passages is wrong. `positives` are rows for each query, and `group` `[P]` is the
    text group of each passage. Returns `[num_queries]` bool.
    """
    first = ranking.passages[:, 0]
    wrong = [r < 0 or group[r] not in group[rows] for r, rows in zip(first, positives, strict=True)]
    return np.array(wrong)
