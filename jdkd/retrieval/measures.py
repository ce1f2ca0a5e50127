"""Measures of a ranking, by ir_measures (trec_eval's numbers), and TREC run files."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import ir_measures
import numpy as np

from jdkd.retrieval.index import Ranking
from jdkd.runtime import distributed, files, stages


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run was measured at, as fractions.

    Attributes:
        means: {measure: mean over the queries}.
        per_query: {query id: {measure: value}}.
        first: {query id: id of the passage that is ranked first}.
    """

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
    first: dict[str, str]

    def save(self, directory: pathlib.Path, name: str) -> None:
        """Writes what is known of each query: `<name>.per_query.json` and `<name>.first.json`."""
        stages.write_json(directory / f'{name}.per_query.json', self.per_query)
        stages.write_json(directory / f'{name}.first.json', self.first)


def load_per_query(directory: pathlib.Path, name: str) -> dict[str, dict[str, float]]:
    """What `Measured.save` wrote."""
    return stages.read_json(directory / f'{name}.per_query.json')


def load_first(directory: pathlib.Path, name: str) -> dict[str, str]:
    """The passages ranked first; what `Measured.save` wrote."""
    return stages.read_json(directory / f'{name}.first.json')


def to_run(
    ranking: Ranking, query_ids: Sequence[str], passage_ids: Sequence[str]
) -> dict[str, dict[str, float]]:
    """A run {query id: {passage id: score}}, each query's passages best first.

    Equal scores are ordered by falling passage id, as trec_eval does, so that every measure and
    every reader of the run sees the same order.
    """
    return {
        query_id: in_order({passage_ids[p]: s for p, s in zip(rows, scores, strict=True) if p >= 0})
        for query_id, rows, scores in zip(query_ids, ranking.passages, ranking.scores, strict=True)
    }


def in_order(scores: Mapping[str, float]) -> dict[str, float]:
    """Passages of one query, best first as trec_eval sorts them: its scores are float32."""
    pairs = [(float(np.float32(score)), pid) for pid, score in scores.items()]
    return {pid: score for score, pid in sorted(pairs, reverse=True)}


def measure(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    has_answer: Mapping[str, Callable[[str], bool]] | None = None,
) -> Measured:
    """Measures of a run, each over the queries that have what it goes by; no result counts as 0.

    Args:
        run: From `to_run`.
        qrels: {query id: {passage id: grade}}.
        measures: Names that ir_measures parses, for example `MRR@10`, `nDCG@10`, `R@100`, `MAP`;
            or `AnswerR@20`: whether one of the first 20 passages holds an answer, judged or not,
            the top-20 accuracy of DPR (Karpukhin et al., 2020, section 5).
        has_answer: {query id: whether a passage, by its id, holds an answer}, for `AnswerR`.

    Raises:
        ValueError: if a name is not a measure, or no query has what one goes by.
    """
    # Measures of ir_measures come from several tools, which break ties in several ways: they are
    # given the order itself.
    ranks = {q: {pid: -rank for rank, pid in enumerate(ranked)} for q, ranked in run.items()}
    judged = {query_id: grades for query_id, grades in qrels.items() if grades}
    depths = {name: _answer_depth(name) for name in measures}
    by_answer = {name: ir_measures.Success @ depth for name, depth in depths.items() if depth}
    by_grade = {name: _parse(name) for name, depth in depths.items() if not depth}
    answered = _answer_qrels(run, has_answer or {}, max(depths.values())) if by_answer else {}
    means, per_query = {}, {query_id: {} for query_id in (*judged, *answered)}
    for parsed, grades, what in (
        (by_grade, judged, 'judgements'),
        (by_answer, answered, 'answers'),
    ):
        if not parsed:
            continue
        if not grades:
            raise ValueError(
                f'measures={",".join(parsed)} goes by {what}, of which the queries have none; '
                'take it out.'
            )
        found = ir_measures.calc(set(parsed.values()), grades, ranks)
        values = {(v.query_id, v.measure): float(v.value) for v in found.per_query}
        for name, m in parsed.items():
            means[name] = float(found.aggregated[m])
            for query_id in grades:
                per_query[query_id][name] = values[query_id, m]
    first = {query_id: next(iter(ranked)) for query_id, ranked in run.items() if ranked}
    return Measured({name: means[name] for name in measures}, per_query, first)


def check(measures: Sequence[str]) -> None:
    """Before hours are spent on what is to be measured.

    Raises:
        ValueError: if a name is not a measure.
    """
    for name in measures:
        if not _answer_depth(name):
            _parse(name)


def check_grounds(
    measures: Sequence[str], split: str, has_positives: bool, has_answers: bool
) -> None:
    """Checks that a split has what measures go by.

    Raises:
        ValueError: if it lacks judgements or answers.
    """
    for name in measures:
        by_answer = bool(_answer_depth(name))
        if not (has_answers if by_answer else has_positives):
            raise ValueError(
                f'measures={",".join(measures)}: {name} goes by '
                f'{"answers" if by_answer else "judgements"}, of which the queries of split '
                f'{split!r} have none; take it out.'
            )


def _parse(name: str) -> ir_measures.Measure:
    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError) as e:
        raise ValueError(
            f"measures names '{name}', which ir_measures does not know; "
            "use for example 'RR@10', 'nDCG@10' or 'R@100'."
        ) from e


def _answer_depth(name: str) -> int:
    """20 of `AnswerR@20`; 0 of another measure."""
    match = re.fullmatch(r'AnswerR@([1-9]\d*)', name)
    return int(match[1]) if match else 0


def _answer_qrels(run, has_answer, depth: int) -> dict[str, dict[str, int]]:
    """Judgements of each query's first passages by whether they hold an answer."""
    judged = {}
    for query_id, holds in has_answer.items():
        first = itertools.islice(run.get(query_id, ()), depth)
        # A query without results is judged too, so that it counts as 0.
        judged[query_id] = {passage_id: int(holds(passage_id)) for passage_id in first} or {'': 0}
    return judged


def wrong_queries(
    ranking: Ranking, positives: Sequence[np.ndarray], group: np.ndarray
) -> np.ndarray:
    """`[num_queries]` bool: neither a positive nor a passage of equal text at rank 1.

    Args:
        ranking: Of the queries; without any passage, a query is wrong.
        positives: Rows of each query's positive passages.
        group: `[P]` text group of each passage.
    """
    return np.array(
        [
            row < 0 or group[row] not in group[rows]
            for row, rows in zip(ranking.passages[:, 0], positives, strict=True)
        ]
    )


def write_trec_run(path: pathlib.Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes `query Q0 passage rank score tag` lines; of several processes the first does."""
    if not distributed.is_primary():
        return
    with files.atomic_write(path) as f:
        for query_id, ranked in run.items():
            for rank, (passage_id, score) in enumerate(ranked.items(), start=1):
                f.write(f'{query_id} Q0 {passage_id} {rank} {score:.9g} {tag}\n')
