"""`jdkd eval`: measures the student of a finished run again."""

import pathlib
import tempfile

from jdkd import config as configs
from jdkd.algorithm import student
from jdkd.commands import zero_shot
from jdkd.commands.setup import hold_workdir, open_run
from jdkd.config import EvalConfig
from jdkd.report import tables
from jdkd.retrieval import index, significance, vectors
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed, stages
from jdkd.systems import measuring
from jdkd.systems.ranking import checked_ranking


def evaluate(workdir: pathlib.Path, against: str | None = None) -> None:
    """Measures what the config of a workdir says: the student, or a checkpoint on collections.

    `against` is another workdir of the same kind and collection, or a TREC run file, to compare
    with.
    """
    configs.load(workdir)  # Nothing is made where there is no run.
    with hold_workdir(workdir):
        config = configs.load(workdir)
        if isinstance(config, EvalConfig):
            zero_shot.evaluate(config, workdir, against)
        else:
            measure_student(open_run(config, workdir), against)


def measure_student(run: Run, against: str | None = None) -> dict[str, float]:
    """Restores the final student from its checkpoint, retrieves for the test queries, measures.

    Encodes everything anew and reads nothing else that training kept. Writes eval.json,
    eval.per_query.json and eval.trec into the workdir; of several processes, the first measures.
    Returns {measure: value} on the test split; `against` is as for `evaluate`.
    """
    system = student.load(run).final()
    passage_tokens = system.encoder.passage_tokens(run)
    tokens = system.encoder.query_tokens(run, run.test)
    return distributed.from_primary(
        lambda: _measure(run, system, passage_tokens, tokens, against), 'measuring the student'
    )


def _measure(run: Run, system, passage_tokens, tokens, against: str | None) -> dict[str, float]:
    other = None
    if against:  # A run file that cannot be read is an error before anything is encoded.
        path = pathlib.Path(against)
        other = measuring.measure_file(run, path / 'run.trec' if path.is_dir() else path, run.test)
    queries = system.embed(tokens, 'student: test', tower='query')
    # On disk, since the collection may be larger than memory.
    with tempfile.TemporaryDirectory(dir=run.workdir, prefix='eval-') as temporary:
        directory = pathlib.Path(temporary)
        system.write_embeddings(directory, passage_tokens, 'passages', run.collection.passage_ids)
        passages = vectors.load(directory)

        def search(part, depth):
            return index.search(queries[part], passages, depth, run.config.index)

        ranking = checked_ranking(run, STUDENT, run.test, search)
    measured = measuring.measure(run, ranking, run.test)
    measured.save(run.workdir, 'eval')
    measuring.write_run_file(run.workdir / 'eval.trec', run, ranking, run.test, STUDENT)
    test, differences = {STUDENT: measured.means}, {}
    if against and other:
        test[against] = other.means
        differences[against] = significance.paired_tests(measured.per_query, other.per_query)
    stages.write_json(run.workdir / 'eval.json', {'test': test, 'significance': differences})
    print(tables.measures_table(test))
    if differences:
        print(f'\n{tables.table(tables.differences(differences), "student less")}')
    return measured.means
