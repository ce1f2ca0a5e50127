"""Using a finished run: measure its student again, compare it, export its encoders."""

import pathlib
import tempfile

from jdkd.algorithm import student
from jdkd.report import tables
from jdkd.retrieval import index, measures, significance, vectors
from jdkd.run import Run
from jdkd.runtime import distributed, stages
from jdkd.systems import measuring
from jdkd.systems.ranking import ranked


def evaluate(run: Run, against: str | None = None) -> dict[str, float]:
    """Restores the final student from its checkpoint, retrieves for the test queries, measures.

    Everything is encoded anew: nothing that training kept is read but the checkpoint. Writes
    eval.json, eval.per_query.json and eval.trec into the workdir.

    Args:
        run: A finished run.
        against: Another workdir of the same collection, or a TREC run file, that the student is
            compared with.

    Returns:
        {measure: value}; of several processes the first does all this.
    """
    system = student.load(run).final()
    passage_tokens = system.encoder.passage_tokens(run)
    tokens = system.encoder.query_tokens(run, run.test)
    return distributed.from_primary(
        lambda: _measure(run, system, passage_tokens, tokens, against), 'measuring the student'
    )


def _measure(run: Run, system, passage_tokens, tokens, against: str | None) -> dict[str, float]:
    queries = system.embed(tokens, 'student: test', tower='query')
    # On disk, as the collection may be larger than memory.
    with tempfile.TemporaryDirectory(dir=run.workdir, prefix='eval-') as temporary:
        directory = pathlib.Path(temporary)
        system.write_embeddings(directory, passage_tokens, 'passages', run.collection.passage_ids)
        passages = vectors.load(directory)
        ranking, _ = ranked(
            run,
            student.NAME,
            run.test,
            lambda depth: (index.search(queries, passages, depth, run.config.index), {}),
        )
    measured = measuring.measure(run, ranking, run.test)
    measured.save(run.workdir, 'eval')
    run_file = measures.to_run(ranking, run.test.ids, run.collection.passage_ids)
    measures.write_trec_run(run.workdir / 'eval.trec', run_file, student.NAME)
    test, compared = {student.NAME: measured.means}, {}
    if against:
        path = pathlib.Path(against)
        other = measuring.measure_file(run, path / 'run.trec' if path.is_dir() else path, run.test)
        test[against] = other.means
        compared[against] = significance.compare(measured.per_query, other.per_query)
    stages.write_json(run.workdir / 'eval.json', {'test': test, 'significance': compared})
    print(tables.measures_table(test))
    if compared:
        print(f'\n{tables.table(tables.differences(compared), "student less")}')
    return measured.means
