"""Using a finished run: measure its student again, compare it, export its encoders."""

import pathlib
import tempfile

from jdkd import publish, student
from jdkd.report import comparison, finished, tables
from jdkd.retrieval import evaluate as evaluation
from jdkd.retrieval import index, significance, vectors
from jdkd.run import Run
from jdkd.runtime import distributed, stages
from jdkd.systems import base, build
from jdkd.systems.encoders import DualEncoderSystem


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
    system = _final(run)
    passage_tokens = system.encoder.passage_tokens(run)
    tokens = system.encoder.query_tokens(run, run.test)
    return distributed.from_first(
        lambda: _measure(run, system, passage_tokens, tokens, against), 'measuring the student'
    )


def _measure(run: Run, system, passage_tokens, tokens, against: str | None) -> dict[str, float]:
    queries = system.embed(tokens, 'student: test', tower='query')
    # On disk, as the collection may be larger than memory.
    with tempfile.TemporaryDirectory(dir=run.workdir, prefix='eval-') as temporary:
        directory = pathlib.Path(temporary)
        system.write_embeddings(directory, passage_tokens, 'passages', run.collection.passage_ids)
        passages = vectors.load(directory)
        ranking, _ = base.ranked(
            run,
            student.NAME,
            run.test,
            lambda depth: (index.search(queries, passages, depth, run.config.index), {}),
        )
    measured = base.measure(run, ranking, run.test)
    measured.save(run.workdir, 'eval')
    ranked = evaluation.to_run(ranking, run.test.ids, run.collection.passage_ids)
    evaluation.write_trec_run(run.workdir / 'eval.trec', ranked, student.NAME)
    test, compared = {student.NAME: measured.means}, {}
    if against:
        path = pathlib.Path(against)
        other = base.measure_file(run, path / 'run.trec' if path.is_dir() else path, run.test)
        test[against] = other.means
        compared[against] = significance.compare(measured.per_query, other.per_query)
    stages.write_json(run.workdir / 'eval.json', {'test': test, 'significance': compared})
    print(tables.measures_table(test))
    if compared:
        print(f'\n{tables.table(tables.differences(compared), "student less")}')
    return measured.means


def compare(workdir: pathlib.Path, other: str, output: str | None = None) -> None:
    """Writes a page with two finished runs side by side, on process 0; see `comparison.compare`."""
    directory = pathlib.Path(output) if output else None
    distributed.from_first(
        lambda: str(comparison.compare(workdir, pathlib.Path(other), directory)), 'the comparison'
    )


def export(run: Run, name: str, output: str | None = None, push_to: str | None = None) -> None:
    """Writes an encoder of the run for sentence-transformers, and pushes it to the hub.

    Args:
        run: A finished run.
        name: 'student' for the final one, or a system of the config.
        output: The directory; see `publish.write` for the default.
        push_to: Repository on the Hugging Face hub; None to push nowhere.
    """
    if push_to:
        publish.check_repo(push_to)
    found = finished.read_report(run.workdir)
    encoder = _final(run).encoder if name == student.NAME else build.load_trained(run, name)
    directory = publish.write(run, name, encoder, found, output)
    if not distributed.is_first():
        return
    print(f'exported to {directory}')
    if push_to:
        print(f'pushed to {publish.push(directory, push_to)}')


def _final(run: Run) -> DualEncoderSystem:
    return student.load(run).final()
