"""Questions with answers and without judgements, added to a collection as splits of their own.

    question<TAB>['answer', ...]                    DPR's *.qa.csv
    {"question": ..., "answer": ["answer", ...]}    NQ-open's JSON lines

Each file may be gzipped (`.gz` after its name). A question's id is its split and line number.
"""

import ast
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import shown


def add_questions(source: base.Source, files: Mapping[str, str]) -> base.Source:
    """The source with more splits.

    Args:
        source: Any.
        files: {split: path}.

    Raises:
        FileNotFoundError: a file is missing.
    """
    paths = {split: pathlib.Path(file).expanduser().resolve() for split, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing; the option questions names it.')

    def queries(fault: OnError) -> Iterator[tuple[str, str, str, str]]:
        for where, split, query, question, _ in _read(paths, fault):
            yield where, split, query, question

    def answers(fault: OnError) -> Iterator[tuple[str, str, str, str]]:
        del fault  # It was told of the same lines with the queries.
        for where, split, query, _, strings in _read(paths, base.count_errors({})):
            for answer in strings:
                yield where, split, query, answer

    return dataclasses.replace(
        source,
        files=(*source.files, *paths.values()),
        queries=lambda fault: itertools.chain(source.queries(fault), queries(fault)),
        answers=lambda fault: itertools.chain(source.answers(fault), answers(fault)),
    )


def _read(
    paths: Mapping[str, pathlib.Path], fault: OnError
) -> Iterator[tuple[str, str, str, str, list[str]]]:
    for split, path in paths.items():
        parse = _qa if path.name.removesuffix('.gz').endswith(('.csv', '.tsv')) else _json
        for where, question, answers in parse(path, fault):
            if isinstance(question, str) and isinstance(answers, list) and answers:
                number = where.rpartition(':')[2]
                yield where, split, f'{split}:{number}', question, answers
            else:
                fault(
                    'broken line',
                    f'{where}: expected a question and a list of its answers, found '
                    f'{shown(question)} and {shown(answers)}.',
                )


def _qa(path: pathlib.Path, fault: OnError) -> Iterator[tuple[str, str, list]]:
    for where, (question, answers) in parsing.read_fields(path, ('question', 'answers'), fault):
        try:
            yield where, question, ast.literal_eval(answers)  # Strings and lists, never code.
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            yield where, question, answers


def _json(path: pathlib.Path, fault: OnError) -> Iterator[tuple[str, str, list]]:
    for where, entry in parsing.read_json_lines(path, fault):
        yield where, entry.get('question'), entry.get('answer')
