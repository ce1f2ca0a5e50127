"""`jdkd search`: answers questions from the terminal by student, first stage and teacher."""

import itertools
import pathlib
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping

import numpy as np

from jdkd.algorithm import final, student
from jdkd.commands.setup import load_config, open_run
from jdkd.retrieval.ranking import Ranking
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed
from jdkd.systems.build import build

_SHOWN = 5  # Passages per question.
_WIDTH = 150  # Characters per line unless standard output is a terminal.
_LINES = 3  # At most, for the text of each passage.

# question -> the best passages, `[1, n]`.
Searcher = Callable[[str], Ranking]


def search(workdir: pathlib.Path, index_of: str | None = None) -> None:
    """Reads questions from standard input, line by line, and prints the best passages.

    Shows the results of three systems side by side, each with its latency: the final student by
    exact search; the first stage; and the teacher, which re-ranks the first stage's top passages.
    Names and leaves out systems whose scores are imported, since they have none for new questions.
    `index_of` is a system of the run whose index the student's queries search; see `final.load`.
    """
    if distributed.process_count() > 1:
        raise ValueError('--mode search answers one user; start one process.')
    run = open_run(load_config(workdir), workdir)
    shown, left_out = searchers(run, index_of)
    for reason in left_out:
        print(f'Not shown: {reason}')
    for warm_up in ('a', 'a ' * run.config.student.query_length):
        for find in shown.values():  # Compilation would count as latency.
            find(warm_up)
    prompt = 'question (empty line ends): ' if sys.stdin.isatty() else ''
    while True:
        try:
            question = input(prompt).strip()
        except EOFError:
            return
        if not question:
            return
        rankings = {}
        for name, find in shown.items():
            start = time.perf_counter()
            rankings[name] = find(question), time.perf_counter() - start
        print(page(run, rankings), end='\n\n', flush=True)


def searchers(run: Run, index_of: str | None = None) -> tuple[dict[str, Searcher], list[str]]:
    """{name as shown: function} for a run's systems, and for those left out the reason.

    `index_of` is as for `search`.

    Raises:
        FileNotFoundError: if the run has not been trained to its end.
    """
    config = run.config
    best = final.load(student.load(run), index_of)
    first = build(run, config.first_stage)
    scores = run.read_manifest('rounds/00/scores')
    if scores is None:
        raise FileNotFoundError(f'{run.workdir} has no scores of round 0; run --mode train again.')
    weights = scores['result']['teacher']
    members = [build(run, name) for name in weights]
    imported = {s.name for s in (first, *members) if config.systems[s.name].kind == 'scores'}
    shown = {best.name if index_of else STUDENT: lambda question: best.search(question, _SHOWN)}
    if first.name not in imported:
        shown[first.name] = lambda question: first.search(question, _SHOWN)
    if not imported:

        def rerank(question):
            rows = first.search(question, config.depth).passages[0]
            scores = np.sum([weights[m.name] * m.score(question, rows) for m in members], axis=0)
            order = np.argsort(-scores, kind='stable')[:_SHOWN]
            return Ranking(rows[None, order], scores[None, order])

        shown[f'teacher on {first.name}'] = rerank
    names = ', '.join(sorted(imported))
    return shown, [f'{names}: imported scores; none for a new question.'] if imported else []


def page(run: Run, rankings: Mapping[str, tuple[Ranking, float]]) -> str:
    """Formats rankings, each with its seconds, side by side."""
    width = max(shutil.get_terminal_size((_WIDTH, 0)).columns // len(rankings) - 2, 30)
    columns = []
    for name, (ranking, seconds) in rankings.items():
        pairs = zip(ranking.passages[0], ranking.scores[0], strict=True)
        cells = [_cell(run, row, score, width) for row, score in pairs]
        columns.append([[_cut(f'        {name}, {1000 * seconds:.0f} ms', width)], *cells])
    lines = []
    for cells in itertools.zip_longest(*columns, fillvalue=[]):
        for texts in itertools.zip_longest(*cells, fillvalue=''):
            lines.append('  '.join(f'{text:{width}}' for text in texts).rstrip())
    return '\n'.join(lines)


def _cell(run: Run, row: int, score: float, width: int) -> list[str]:
    """Lines with the score, the title and the beginning of the text of a passage."""
    title = _plain(run.collection.passages.titles[row] or run.collection.passage_ids[row], width)
    # A bounded prefix that still fills the lines once its whitespace is squeezed.
    text = _plain(run.collection.passages.texts[row], 10 * _LINES * width)
    text = textwrap.shorten(text, _LINES * (width - 8), placeholder=' ...')
    body = textwrap.wrap(text, width - 8, max_lines=_LINES, placeholder=' ...')
    return [_cut(f'{score:6.3f}  {title}', width), *(f'        {line}' for line in body)]


def _plain(text: str, length: int) -> str:
    """The beginning of a text, without characters that control a terminal."""
    return ''.join(c if c.isprintable() else ' ' for c in text[: length + 1])


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f'{line[: width - 3]}...'
