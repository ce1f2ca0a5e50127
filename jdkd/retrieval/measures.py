"""Measures rankings with ir_measures, whose numbers are those of trec_eval."""

import dataclasses
import math
import pathlib
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np

from jdkd.retrieval.ranking import Ranking
from jdkd.runtime import stages
from jdkd.runtime.messages import brief

_TRIED = 1000  # Queries that measures are tried on.


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
    judged = _readable(qrels)
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
                if (query_id, m) in values:  # Some, such as Accuracy, leave queries out.
                    per_query[query_id][name] = values[query_id, m]
    first = {query_id: next(iter(ranked)) for query_id, ranked in run.items() if ranked}
    return Measurements({name: means[name] for name in measures}, per_query, first)


def check_names(measures: Sequence[str]) -> None:
    """Raises a ValueError if a name is not a measure that is installed; reads no collection."""
    qrels = {query_id: {'1': 1, '2': 0} for query_id in ('1', '2')}
    _try(measures, qrels, ['3'], 'at all')


def check_depth(measure: str, depth: int) -> None:
    """Raises a ValueError if a measure looks at more passages than the `depth` of a ranking."""
    cutoff = _answer_depth(measure) or _parse(measure).params.get('cutoff', 0)
    if cutoff > depth:
        raise ValueError(
            f'measures names {measure!r}, but a ranking keeps depth={depth} passages; raise depth '
            f'to {cutoff}.'
        )


def check_computable(
    measures: Sequence[str],
    split: str,
    qrels: Mapping[str, Mapping[str, int]],
    passage_ids: Sequence[str],
) -> None:
    """Tries measures on a split's judgements, before any work that they are to judge.

    The tools behind some take only numbers as ids, or crash where nothing is found.

    Args:
        passage_ids: A few ids of the collection, to be retrieved beside the judged passages.

    Raises:
        ValueError: if a measure cannot be computed.
    """
    judged = [query_id for query_id, grades in qrels.items() if grades]
    # Those with the most unusual ids and the highest grades.
    tried = sorted(judged, key=lambda i: (i.isdigit(), -max(qrels[i].values())))[:_TRIED]
    tried_qrels = _readable({query_id: qrels[query_id] for query_id in tried})
    _try(measures, tried_qrels, passage_ids, f'over the judgements of split {split!r}')


def _readable(qrels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The judged queries, with grades that trec_eval can take.

    It writes outside its arrays for grades below -1 (those of spam in TREC's web tracks), which are
    as little relevant as -1 is.
    """
    return {
        query_id: {passage_id: max(grade, -1) for passage_id, grade in grades.items()}
        for query_id, grades in qrels.items()
        if grades
    }


def _try(
    names: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    others: Sequence[str],
    where: str,
) -> None:
    """Raises a ValueError for the first measure that gives no finite mean.

    Tries a run that finds all that is judged, after `others`, and one that finds nothing of it.
    """
    worst = {passage_id: -rank for rank, passage_id in enumerate(others, 1)}
    best = {query_id: {**worst, **dict.fromkeys(grades, 0)} for query_id, grades in qrels.items()}
    missed = {
        query_id: {i: score for i, score in worst.items() if i not in grades}
        for query_id, grades in [*qrels.items()][:1]
    }
    for name in names:
        if _answer_depth(name):
            continue
        parsed, reason = _parse(name), ''
        try:
            for run in (best, missed):
                value = float(ir_measures.calc_aggregate([parsed], qrels, run)[parsed])
                reason = reason or ('' if math.isfinite(value) else f'it gives {value}')
        except subprocess.CalledProcessError as error:
            tool = pathlib.Path(error.cmd[0]).name
            reason = f'its {tool} program fails; it may take only numbers as ids'
        except Exception as error:  # Each tool behind ir_measures raises its own.
            text = re.sub(r'<object object at \w+>', 'unset', str(error))
            reason = f'{type(error).__name__}: {brief(text)}'
        if reason:
            raise ValueError(
                f'measures names {name!r}, which cannot be computed {where} ({reason}); remove it, '
                'or name another, for example nDCG@10.'
            )


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
        measure = ir_measures.parse_measure(name)
    except Exception as e:  # Of its grammar, or of a parameter.
        raise ValueError(
            f"measures names '{name}', which ir_measures does not know; "
            "use 'RR@10', 'nDCG@10' or 'R@100', for example."
        ) from e
    for parameter in ('cutoff', 'rel'):
        value = measure.params.get(parameter, 1)
        if not isinstance(value, int) or not 1 <= value < 2**31:  # trec_eval would crash.
            raise ValueError(
                f'measures names {name!r}, whose {parameter} is {value}, but must be a whole '
                'number from 1 to 2147483647.'
            )
    return measure


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
