"""Rows of text files: passages and queries as MS MARCO publishes them, CSV, and judgements."""

import csv
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence

from absl import logging

from jdkd.corpus.sources import parsing
from jdkd.corpus.sources.base import OnError, attempt
from jdkd.runtime.messages import brief, escape, shown

_BROKEN = 'broken line'  # Kind of all errors in them.
_MAX_HEADER = 40  # Characters of the name of a column.

# Names of columns of ids, without spaces and marks: qid, doc_id, passage-no, _id, docno.
_ID_NAME = re.compile(
    r'(q|p|d|query|question|topic|passage|para|paragraph|doc|document|corpus|collection|item|text)?'
    r'(id|ids|no|num|nr|number|identifier)'
)

_JUDGEMENT_NAMES = (  # Of the columns of query, passage and grade.
    parsing.QUERY_COLUMN,
    parsing.PASSAGE_COLUMN,
    r'scores?|grade|rel|relevance|label|judge?ment',
)

csv.field_size_limit(2**26)  # Of characters; Python's own limit is 131,072.


def read_csv(
    file: pathlib.Path, on_error: OnError, delimiter: str = '\t'
) -> Iterator[tuple[str, list[str]]]:
    """Yields (where, fields) of each row of a CSV file as Python's csv module reads it.

    A field in quotation marks may hold the delimiter, ends of lines, and quotation marks that are
    doubled. `where` is the first line of a row.
    """
    return _csv_rows(parsing.read_lines(file, on_error, blank=True), on_error, delimiter)


def read_fields(
    file: pathlib.Path, columns: Sequence[str], on_error: OnError
) -> Iterator[tuple[str, list[str]]]:
    """Yields (where, fields) of each row, split at tabs; the first column holds ids.

    Quotation marks are text, as in MS MARCO's files, unless the first id stands in quotation marks:
    then the file is CSV. A header row is left out with a warning.
    """
    lines = parsing.read_lines(file, on_error, blank=True)
    head = list(itertools.islice(lines, 1))
    lines = itertools.chain(head, lines)
    if head and re.match(r'"[^"]*"\t', head[0][1]):
        rows = _csv_rows(lines, on_error, '\t')
    else:
        rows = ((where, line.split('\t')) for where, line in lines if line and not line.isspace())
    for row, (where, fields) in enumerate(rows):
        if len(fields) != len(columns):
            on_error(
                _BROKEN,
                f'{where}: expected {", ".join(columns[:-1])} and {columns[-1]} with tabs between '
                f'them, found {len(fields)} field(s).',
            )
        elif row == 0 and is_header(fields):
            log_header(where, fields)
        else:
            yield where, fields


def is_header(fields: Sequence[str]) -> bool:
    """Whether a row whose first field is an id looks like names of columns instead."""
    names = list(map(parsing.column_name, fields))
    return bool(_ID_NAME.fullmatch(names[0])) and all(
        name.isalpha() and len(field) <= _MAX_HEADER and len(field.split()) <= 3
        for name, field in zip(names, fields, strict=True)
    )


def log_header(where: str, fields: Sequence[str]) -> None:
    """Warns that a row was taken for the names of columns."""
    logging.warning('%s: left out the header row (%s).', where, brief(', '.join(fields)))


def read_judgements(file: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, str, str, int]]:
    """Yields (where, query id, passage id, grade) of a file of judgements.

    A row holds query, passage and grade, or TREC's four columns: query, a number that is not read,
    passage and grade. Tabs or other whitespace separate them; between tabs, fields may be in
    quotation marks. The first row may be a header; where it names these columns, they may be in
    another order and have others beside them, such as the index that pandas writes.
    """
    width, row = 0, -1
    header: list[str] = []
    places: list[int] = []  # Of query, passage and grade, where the header names them.
    for row, (where, line) in enumerate(parsing.read_lines(file, on_error)):
        fields = _split_judgement(line)
        if row == 0:
            places = _find_columns(fields)
            if places or _names_columns(fields):
                header = fields
                continue
        if len(fields) not in ((width,) if width else (3, 4, len(places) and len(header))):
            expected = f'{width} fields as above' if width else 'query id, passage id and grade, '
            expected += '' if width else 'or query id, 0, passage id and grade (TREC)'
            on_error(
                _BROKEN,
                f'{where}: expected {expected}, with tabs or spaces between them, found '
                f'{len(fields)} field(s).',
            )
            continue
        width = len(fields)
        is_named = places and width == len(header)
        query, passage, value = (fields[i] for i in (places if is_named else (0, -2, -1)))
        grade = attempt(on_error, _BROKEN, parsing.parse_grade, where, value)
        if grade is not None:
            yield where, query, passage, grade
    if row < bool(header):
        on_error(
            _BROKEN,
            f'{escape(str(file))}: there is no judgement in it; write query id, passage id and '
            'grade a line, or remove the file.',
        )


def _split_judgement(line: str) -> list[str]:
    fields = line.split('\t')
    if '"' in line:
        try:
            (fields,) = csv.reader([line], delimiter='\t')
        except (csv.Error, ValueError):
            pass  # The fields as they are; their ids will not be known.
    if len(fields) < 3 or any(len(field.split()) > 1 for field in fields):
        fields = line.split()
    fields = [field.strip() for field in fields]
    while len(fields) > 3 and not fields[-1]:  # Tabs at the end.
        fields.pop()
    return fields


def _find_columns(fields: Sequence[str]) -> list[int]:
    """The places of query, passage and grade in a header row; [] if it does not name each once."""
    names = list(map(parsing.column_name, fields))
    places = [
        [i for i, name in enumerate(names) if re.fullmatch(pattern, name)]
        for pattern in _JUDGEMENT_NAMES
    ]
    return [i for (i,) in places] if all(len(found) == 1 for found in places) else []


def _names_columns(fields: Sequence[str]) -> bool:
    """Whether a first row names columns: its last is a word (score, relevance), no digit in any."""
    word = re.sub(r'[\W_]', '', fields[-1])
    is_word = word.isalpha() and word.lower() not in ('nan', 'inf', 'infinity')
    return len(fields) >= 3 and is_word and not re.search(r'\d', ''.join(fields))


def _csv_rows(
    lines: Iterator[tuple[str, str]], on_error: OnError, delimiter: str
) -> Iterator[tuple[str, list[str]]]:
    used: list[tuple[str, str]] = []  # Lines of the current row.

    def feed() -> Iterator[str]:
        for where, line in lines:
            used.append((where, line))
            yield f'{line}\n'

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        used.clear()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if 'end of data' in str(error):
                on_error(
                    _BROKEN,
                    f'{used[0][0]}: a quotation mark opens a field here that none closes: the rest '
                    f'of the file cannot be read ({shown(used[0][1])}); close it, or double it.',
                )
                return
            # Text after a closing quotation mark, which is no error to csv.reader by default.
            try:
                (fields,) = csv.reader([f'{line}\n' for _, line in used], delimiter=delimiter)
            except (csv.Error, ValueError):
                on_error(_BROKEN, f'{used[0][0]}: not a row of CSV ({brief(error)}).')
                continue
        if fields is None:
            return
        if any(field.strip() for field in fields):
            yield used[0][0], fields
