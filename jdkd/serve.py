"""Using a finished run: measure its student again, export its encoders, search with it."""

import sys
import textwrap

from jdkd import publish, report, student
from jdkd.retrieval import evaluate as evaluation
from jdkd.retrieval import index
from jdkd.run import Run
from jdkd.runtime import stages
from jdkd.systems import base, build
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
    tokens = system.encoder.query_tokens(run, run.test)
    queries = system.embed(tokens, 'student: test', tower='query')
    ranking = index.search(queries, passages, run.config.depth, run.config.index)
    found = base.measure(run, ranking, run.test)
    ranked = evaluation.to_run(ranking, run.test.ids, run.collection.passage_ids)
    evaluation.write_trec_run(run.workdir / 'eval.trec', ranked, 'student')
    stages.write_json(run.workdir / 'eval.json', {'test': {'student': found}})
    print(report.table({'student': found}))
    return found


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
    found = _report(run)
    encoder = _final(run).encoder if name == student.NAME else build.load_trained(run, name)
    directory = publish.write(run, name, encoder, found, output)
    print(f'exported to {directory}')
    if push_to:
        print(f'pushed to {publish.push(directory, push_to)}')


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
        tokens = encoder.tokenizer.encode([text], encoder.spec.query_length)
        vector = system.embed(tokens, 'question', tower='query')
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
    return student.load(run).final()
