"""`jdkd search`: answers questions from the terminal, with an index or with a run."""

import contextlib
import io
import itertools
import pathlib
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping

from jdkd.algorithm import final, student
from jdkd.commands.setup import open_trained_run
from jdkd.corpus.sources import parsing
from jdkd.indexing.index import open_index
from jdkd.retrieval.ranking import Ranking
from jdkd.run import STUDENT, Run
from jdkd.runtime import distributed
from jdkd.serving import service

_WIDTH = 150  # Characters per line unless standard output is a terminal.
_LINES = 3  # At most, for the text of each passage.


def search_index(directory: pathlib.Path, question: str | None, k: int) -> None:
    """Prints the k best passages of an index for a question, or for each line of standard input.

    Raises:
        FileNotFoundError: if there is no index.
        ValueError: if k is not positive.
    """
    found = open_index(directory)
    width = max(shutil.get_terminal_size((_WIDTH, 0)).columns, 30)
    for asked in questions(question):
        for hit in found.search(asked, k):
            heading = f'{hit.id}  {hit.title}' if hit.title else hit.id
            print('\n'.join(_cell(heading, hit.text, hit.score, width)))
        print(flush=True)


def search(
    workdir: pathlib.Path, question: str | None = None, index_of: str | None = None, k: int = 5
) -> None:
    """Prints the k best passages for a question, or for each line of standard input.

    Shows the results of three systems side by side, each with its latency: the final student by
    exact search; the first stage; and the teacher, which re-ranks the first stage's top passages.
    Leaves out, and says so, those that imported scores or a silent endpoint keep from answering.
    `index_of` is a system of the run whose index the student's queries search; see `final.load`.
    """
    if distributed.process_count() > 1:
        raise ValueError('--mode search answers one user; start one process.')
    run = open_trained_run(workdir)
    best = final.load(student.load(run), index_of)
    others, left_out = service.searchers(run)
    shown = {best.name if index_of else STUDENT: best.search, **others}
    for reason in left_out:
        print(f'Not shown: {reason}')
    for warm_up in ('a', 'a ' * run.config.student.query_length):
        for find in shown.values():  # Compilation would count as latency.
            find(warm_up, k)
    for asked in questions(question):
        rankings = {}
        for name, find in shown.items():
            start = time.perf_counter()
            rankings[name] = find(asked, k), time.perf_counter() - start
        print(page(run, rankings), end='\n\n', flush=True)


def questions(question: str | None) -> Iterator[str]:
    """The question, or without one the lines of standard input.

    An empty line ends what a user types, and is passed over in a file.

    Raises:
        ValueError: if the question is empty or not UTF-8.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):  # Whatever the locale says.
        sys.stdin.reconfigure(encoding='utf-8', errors='surrogateescape')
    if question is None and sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            while typed := input('question (empty line ends): ').strip():
                yield _checked(typed, 'the question')
    elif question is None:
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                yield _checked(line.strip(), f'line {number} of standard input')
    elif question.strip():
        yield _checked(question, 'the question')
    else:
        raise ValueError('the question is empty; give one, or none to read them from lines.')


def _checked(question: str, where: str) -> str:
    if parsing.SURROGATE.search(question):  # What Python makes of bytes that are not UTF-8.
        raise ValueError(f'{where} is not UTF-8; convert it.')
    return question


def page(run: Run, rankings: Mapping[str, tuple[Ranking, float]]) -> str:
    """Formats rankings, each with its seconds, side by side."""
    width = max(shutil.get_terminal_size((_WIDTH, 0)).columns // len(rankings) - 2, 30)
    columns = []
    for name, (ranking, seconds) in rankings.items():
        pairs = zip(ranking.passages[0], ranking.scores[0], strict=True)
        cells = [_cell(*_shown(run, row), score, width) for row, score in pairs]
        columns.append([[_cut(f'        {name}, {1000 * seconds:.0f} ms', width)], *cells])
    lines = []
    for cells in itertools.zip_longest(*columns, fillvalue=[]):
        for texts in itertools.zip_longest(*cells, fillvalue=''):
            lines.append('  '.join(f'{text:{width}}' for text in texts).rstrip())
    return '\n'.join(lines)


def _shown(run: Run, row: int) -> tuple[str, str]:
    """The title, or else the id, and the text of a passage."""
    passages = run.collection.passages
    return passages.titles[row] or passages.ids[row], passages.texts[row]


def _cell(title: str, text: str, score: float, width: int) -> list[str]:
    """Lines with the score, the title and the beginning of the text of a passage."""
    title = _plain(title, width)
    # A bounded prefix that still fills the lines once its whitespace is squeezed.
    text = ' '.join(_plain(text, 10 * _LINES * width).split())
    body = textwrap.wrap(text, width - 8, max_lines=_LINES, placeholder=' ...')
    return [_cut(f'{score:6.3f}  {title}', width), *(f'        {line}' for line in body)]


def _plain(text: str, length: int) -> str:
    """The beginning of a text, without characters that control a terminal."""
    return ''.join(c if c.isprintable() else ' ' for c in text[: length + 1])


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f'{line[: width - 3]}...'
