"""`jdkd eval`: measures the student of a finished run again."""

import dataclasses
import pathlib
from collections.abc import Mapping

from jdkd import config as configs
from jdkd.algorithm import final, student
from jdkd.commands import zero_shot
from jdkd.commands.setup import hold_workdir, open_trained_run
from jdkd.config import EvalConfig
from jdkd.report import tables
from jdkd.retrieval import significance
from jdkd.retrieval.measures import Measurements
from jdkd.retrieval.ranking import Ranking
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed, stages
from jdkd.systems import measuring

_SYSTEM = f'{STUDENT}_eval-'  # Begins the name of its files under systems/, until it is measured.


def evaluate(
    workdir: pathlib.Path, against: str | None = None, index_of: str | None = None
) -> None:
    """Measures what the config of a workdir says: the student, or a checkpoint on collections.

    `against` is another workdir of the same kind and collection, or a TREC run file, to compare
    with. `index_of` is a system of the run whose index the student's queries search; see
    `final.load`.
    """
    configs.load(workdir)  # Nothing is made where there is no run.
    with hold_workdir(workdir):
        config = configs.load(workdir)
        if isinstance(config, EvalConfig):
            if index_of:
                raise ValueError(f'{workdir} holds no student; leave --index_of out.')
            zero_shot.evaluate(config, workdir, against)
        else:
            measure_student(open_trained_run(workdir), against, index_of)


def measure_student(
    run: Run, against: str | None = None, index_of: str | None = None
) -> dict[str, float]:
    """Restores the final student from its checkpoint, retrieves for the test queries, measures.

    Encodes everything anew and reads nothing else that training kept. Writes eval.json,
    eval.per_query.json and eval.trec into the workdir. Processes share the work, and a stopped call
    goes on where it was. Returns {measure: value} on the test split; `against` and
    `index_of` are as for `evaluate`.
    """
    queries = run.require_test()
    others: dict[str, Measurements] = {}  # On the first process, which writes.
    if against:  # A run file that cannot be read is an error before anything is encoded.
        distributed.from_primary(
            lambda: others.update({against: _measure_other(run, against)}), against
        )
    system = final.load(student.load(run), index_of)
    label = system.name if index_of else STUDENT
    # Its digest in the name: what a stopped call with another student left is none of its files.
    system = dataclasses.replace(system, name=f'{_SYSTEM}{system.digest[:8]}')
    ranking, _ = system.rank(queries)
    means = distributed.from_primary(lambda: _write(run, label, ranking, others), 'the measures')
    if distributed.is_primary():
        for path in (run.workdir / 'systems').glob(f'{_SYSTEM}*'):
            stages.remove_all(path)
    return means


def _measure_other(run: Run, against: str) -> Measurements:
    """Measures a TREC run file, or that of another workdir."""
    path = pathlib.Path(against)
    path = path / 'run.trec' if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f'--against={against}: there is no file {path}; give a run file, or the workdir of a '
            'finished run.'
        )
    return measuring.measure_file(run, path, run.test)


def _write(
    run: Run, label: str, ranking: Ranking, others: Mapping[str, Measurements]
) -> dict[str, float]:
    """Measures the student's ranking, writes and prints the result; returns {measure: value}."""
    measured = measuring.measure(run, ranking, run.test)
    measured.save(run.workdir, 'eval')
    measuring.write_run_file(run.workdir / 'eval.trec', run, ranking, run.test, label)
    test, differences = {label: measured.means}, {}
    for against, other in others.items():
        test[against] = other.means
        differences[against] = significance.paired_tests(measured.per_query, other.per_query)
    stages.write_json(run.workdir / 'eval.json', {'test': test, 'significance': differences})
    print(tables.measures_table(test))
    if differences:
        print(f'\n{tables.table(tables.differences(differences), f"{label} less")}')
    return measured.means
