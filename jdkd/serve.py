"""Using a finished run: measure its student again, export it, search with it."""

import sys
import textwrap

from jdkd import report, student
from jdkd.retrieval import evaluate as evaluation
from jdkd.retrieval import index
from jdkd.run import Run
from jdkd.runtime import stages
from jdkd.systems import base
from jdkd.systems.encoders import DualEncoderSystem

_SHOWN = 5  # Passages a question.


def evaluate(run: Run) -> dict[str, float]:
    """Restores the final student from its checkpoint, retrieves for the test queries, measures.

    Everything is encoded anew: nothing that training kept is read but the checkpoint. Writes
    eval.json and eval.trec into the workdir.

    Returns:
        {measure: value}.
    """
    system = _final(run)
    passages = system.embed(system.encoder.passage_tokens(run), 'student: passages')
    queries = system.embed(system.encoder.query_tokens(run, run.test), 'student: test')
    ranking = index.search(queries, passages, run.config.depth, run.config.index)
    found = base.measure(run, ranking, run.test)
    ranked = evaluation.to_run(ranking, run.test.ids, run.collection.passage_ids)
    evaluation.write_trec_run(run.workdir / 'eval.trec', ranked, 'student')
    stages.write_json(run.workdir / 'eval.json', {'test': {'student': found}})
    print(report.table({'student': found}))
    return found


def export(run: Run) -> None:
    """Writes the final student to `<workdir>/student` again."""
    student.load(run).export(_report(run))
    print(f'exported to {run.workdir / "student"}')


def search(run: Run) -> None:
    """Reads questions from standard input, line by line, and prints the best passages."""
    system = _final(run)
    passages, encoder = system.passages, system.encoder
    prompt = 'question (empty line ends): ' if sys.stdin.isatty() else ''
    while True:
        try:
            question = input(prompt).strip()
        except EOFError:
            return
        if not question:
            return
        text = encoder.spec.query_prefix + question
        vector = system.embed(
            encoder.tokenizer.encode([text], encoder.spec.query_length), 'question'
        )
        ranking = index.exact_search(vector, passages, _SHOWN)
        for row, score in zip(ranking.passages[0], ranking.scores[0], strict=True):
            title = run.collection.titles[row] or run.collection.passage_ids[row]
            snippet = textwrap.shorten(run.collection.texts[row], 160, placeholder=' ...')
            print(f'{score:6.3f}  {title}\n        {snippet}')
        print(flush=True)


def _report(run: Run) -> dict:
    path = run.workdir / 'report.json'
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is not there; run --mode train with this --workdir to its end first.'
        )
    return stages.read_json(path)


def _final(run: Run) -> DualEncoderSystem:
    return student.load(run).after_round(run.config.rounds - 1)
