"""The outcome of a run: its final test, its report, and the exported student."""

from collections.abc import Mapping
from typing import Any

from jdkd.algorithm import costs
from jdkd.algorithm.teacher import Teacher, rerank
from jdkd.report import model_card, run_report
from jdkd.retrieval import significance
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed, lock
from jdkd.systems import measuring
from jdkd.systems.dual import DualEncoderSystem
from jdkd.systems.ranking import measure_inputs
from jdkd.systems.system import System

_STAGE = 'test'
_RUN_FILE = 'run.trec'


def finish(
    run: Run,
    teacher: Teacher | None,
    systems: Mapping[str, System],
    students: Mapping[str, DualEncoderSystem],
    **details: Any,
) -> dict:
    """Measures on the test split, writes the report, exports the student; returns the report.

    `details` are as for `run_report.write`, all others as for `final_test`.
    """
    config, best = run.config, students[STUDENT]
    test = final_test(run, teacher, systems, students)
    names = dict.fromkeys((config.first_stage, *config.assistants))
    priced = {name: systems[name] for name in names}
    details['costs'] = costs.measure(run, best, priced, teacher)
    report = run_report.write(run, **test, final=best.name, **details)
    model_card.write(run, STUDENT, best.encoder, report)
    return report


def final_test(
    run: Run,
    teacher: Teacher | None,
    systems: Mapping[str, System],
    students: Mapping[str, DualEncoderSystem],
) -> dict[str, dict]:
    """Measures every system on the test split; writes the final student's run.trec.

    The teacher re-ranks the first stage; there is none without rounds. `students` are shown beside
    the config's systems: the student before any training, as it entered round 0, its twin, its
    queries over the index of the assistant that it is aligned with, and what the run ends with,
    under the name `student`.

    Returns:
        `test` {system: {measure: value}}, and `significance` of the student's differences from
        all others, {system: {measure: ...}}; see `significance.paired_tests`. The stage also holds
        the measures of each query. Both are empty, and there is no stage, without test queries.
    """
    if not len(run.test):
        distributed.from_primary(lambda: _set_aside(run), 'the test of an earlier config')
        return {'test': {}, 'significance': {}}
    config, first = run.config, run.config.first_stage
    shown = {name: systems[name] for name in (first, *config.assistants)}
    shown |= students

    def build_stage(out):
        rankings = {name: s.rank(run.test)[0] for name, s in shown.items()}
        if teacher:
            reranked = rerank(run, 'teacher', teacher, shown[first], run.test)
            if reranked is not None:
                rankings[run_report.TEACHER] = reranked
        measured = measuring.measure_all(run, rankings, run.test, out)
        return {
            'test': {name: m.means for name, m in measured.items()},
            'significance': {
                name: significance.paired_tests(
                    measured[STUDENT].per_query, measured[name].per_query
                )
                for name in measured
                if name != STUDENT
            },
        }

    inputs = {
        **measure_inputs(run, shown.values(), run.test),
        'teacher': teacher and teacher.inputs,
        'first': first,
    }
    tested = run.stage(_STAGE, inputs, build_stage)['result']
    ranking, _ = students[STUDENT].rank(run.test)
    measuring.write_run_file(run.workdir / _RUN_FILE, run, ranking, run.test, STUDENT)
    return tested


def _set_aside(run: Run) -> None:
    for path in (run.workdir / _STAGE, run.workdir / _RUN_FILE):
        if path.exists():
            lock.set_aside(path, f'{path} is of test queries, and there are none now')
