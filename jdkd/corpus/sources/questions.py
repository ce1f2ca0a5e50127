"""Questions with answers but no judgements, added to a collection as splits of their own.

    question<TAB>['answer', ...]                    DPR's *.qa.csv: CSV, with tabs or commas
    {"question": ..., "answer": ["answer", ...]}    NQ-open's JSON lines

Each file may be gzipped (`.gz` after its name). A question's id is its split and the number of its
first line.
"""

import ast
import dataclasses
import io
import itertools
import json
import pathlib
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from jdkd.corpus.sources import base, parsing, rows
from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import shown

_HEAD = 100  # Lines that tell what separates the columns.
_HEADERS = [[q, a] for q in ('question', 'query') for a in ('answer', 'answers')]


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


def _read_qa(path: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, Any, Any]]:
    head = itertools.islice(parsing.read_lines(path, base.count_errors({})), _HEAD)
    lines = [line for _, line in head]
    delimiter = '\t' if any('\t' in line for line in lines) or not lines else ','
    between = 'tabs' if delimiter == '\t' else 'commas'
    for row, (where, fields) in enumerate(rows.read_csv(path, on_error, delimiter)):
        if row == 0 and [field.strip().lower() for field in fields] in _HEADERS:
            rows.log_header(where, fields)
        elif len(fields) != 2:
            on_error(
                'broken line',
                f'{where}: expected question and answers with {between} between them, found '
                f'{len(fields)} field(s).',
            )
        else:
            yield where, fields[0], _parse_answers(fields[1])


def _parse_answers(text: str) -> list | str:
    """Reads the items of a list as JSON, Python or numpy writes it; other text stays as it is.

    numpy separates strings by a space, which Python would join.
    """
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else text
    except (ValueError, RecursionError):
        pass
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
        inner = [t for t in tokens if t.type not in (tokenize.NL, tokenize.NEWLINE)]
        first, *items, last, _ = inner  # A marker ends the tokens.
        if (first.string, last.string) not in (('[', ']'), ('(', ')')):
            return text
        if any(t.type not in (tokenize.STRING, tokenize.NUMBER) for t in items if t.string != ','):
            return text
        return [ast.literal_eval(item.string) for item in items if item.string != ',']
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return text


def _read_json(path: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, Any, Any]]:
    for where, entry in parsing.read_json_lines(path, on_error):
        yield where, entry.get('question'), entry.get('answer')
