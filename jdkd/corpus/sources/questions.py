"""Questions with answers but no judgements, added to a collection as splits of their own.

    question<TAB>['answer', ...]                    DPR's *.qa.csv
    {"question": ..., "answer": ["answer", ...]}    NQ-open's JSON lines

Each file may be gzipped (`.gz` after its name). A question's id is its split and line number.
"""

import ast
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import shown


def add_questions(source: base.Source, files: Mapping[str, str]) -> base.Source:
    """Adds {split: file} of questions to a source; raises FileNotFoundError for a missing file."""
    paths = {split: pathlib.Path(file).expanduser().resolve() for split, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing; the option questions names it.')

    def queries(on_error: OnError) -> Iterator[base.Query]:
        for where, split, query, question, _ in _read(paths, on_error):
            yield where, split, query, question

    def answers(on_error: OnError) -> Iterator[base.Answer]:
        ignore = base.count_errors({})  # `queries` has reported the errors of these lines.
        for where, split, query, _, strings in _read(paths, ignore):
            for answer in strings:
                yield where, split, query, answer

    return dataclasses.replace(
        source,
        files=(*source.files, *paths.values()),
        queries=lambda on_error: itertools.chain(source.queries(on_error), queries(on_error)),
        answers=lambda on_error: itertools.chain(source.answers(on_error), answers(on_error)),
    )


def _read(
    paths: Mapping[str, pathlib.Path], on_error: OnError
) -> Iterator[tuple[str, str, str, str, list]]:
    for split, path in paths.items():
        is_table = path.name.removesuffix('.gz').endswith(('.csv', '.tsv'))
        for where, question, answers in (_read_qa if is_table else _read_json)(path, on_error):
            if isinstance(question, str) and isinstance(answers, list) and answers:
                number = where.rpartition(':')[2]
                yield where, split, f'{split}:{number}', question, answers
            else:
                on_error(
                    'broken line',
                    f'{where}: expected a question and a list of its answers, found '
                    f'{shown(question)} and {shown(answers)}.',
                )


def _read_qa(path: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, str, Any]]:
    columns = 'question', 'answers'
    for where, (question, answers) in parsing.read_fields(path, columns, on_error):
        try:
            yield where, question, ast.literal_eval(answers)  # Strings and lists, never code.
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            yield where, question, answers


def _read_json(path: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, Any, Any]]:
    for where, entry in parsing.read_json_lines(path, on_error):
        yield where, entry.get('question'), entry.get('answer')
