"""Reads lines, fields and JSON objects from files, and names file and line in every error."""

import functools
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import escape, shown

SURROGATE = re.compile(r'[\ud800-\udfff]')
# Whitespace and control characters, which a TREC run file cannot hold in an id, and marks that
# display the other characters of a line in another order.
_NOT_IN_ID = re.compile(
    r'[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
_MAX_ID = 1024  # Characters; URLs of Wikipedia fit.
_MAX_LINE = 2**26  # Bytes; passages of whole books fit, what a gzip bomb inflates to does not.


def read_lines(file: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, str]]:
    """Yields (where, line) of the lines of a file, gzipped or not, that are not blank.

    Raises:
        ValueError: Even if `on_error` skips: gzip data is damaged, or a line exceeds 64 MiB.
    """
    name, number = escape(str(file)), 0
    try:
        with (gzip.open if file.suffix == '.gz' else open)(file, 'rb') as f:
            for number, raw in enumerate(iter(functools.partial(f.readline, _MAX_LINE), b''), 1):
                if len(raw) == _MAX_LINE:
                    raise ValueError(
                        f'{name}:{number}: the line is longer than {_MAX_LINE} bytes; split its '
                        'text into passages, a line each.'
                    )
                try:
                    line = raw.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
                except UnicodeDecodeError:
                    on_error('not UTF-8', f'{name}:{number}: not UTF-8; save the file as UTF-8.')
                    continue
                if line and not line.isspace():
                    yield f'{name}:{number}', line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f'{name}:{number + 1}: the gzip data is cut short or damaged ({error}); '
            'fetch the file again.'
        ) from None


def read_fields(
    file: pathlib.Path, columns: Sequence[str], on_error: OnError, sep: str | None = '\t'
) -> Iterator[tuple[str, list[str]]]:
    """Yields (where, fields) of each line, split at `sep`, or at any whitespace if None."""
    for where, line in read_lines(file, on_error):
        fields = line.split(sep)
        if len(fields) == len(columns):
            yield where, fields
        else:
            between = 'tabs' if sep else 'spaces or tabs'
            on_error(
                'broken line',
                f'{where}: expected {", ".join(columns[:-1])} and {columns[-1]} with {between} '
                f'between them, found {len(fields)} field(s).',
            )


def read_json_lines(file: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, dict]]:
    """Yields (where, object) of each line."""
    for where, line in read_lines(file, on_error):
        try:
            entry = parse_json_object(line)
        except ValueError as error:
            on_error('broken line', f'{where}: {error}')
        else:
            yield where, entry


def parse_json_object(line: str) -> dict:
    """Parses a JSON object; raises ValueError if it is none, or names a field twice."""
    try:
        entry = _decode(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'not JSON ({error}); write one object a line.') from None
    if not isinstance(entry, dict):
        raise ValueError(
            f'expected a JSON object, found {type(entry).__name__}; write {{"field": ..., ...}}.'
        )
    return entry


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in entry if names.count(name) > 1)
        raise ValueError(f'field {shown(twice)} is there twice')
    return entry


_decode = json.JSONDecoder(object_pairs_hook=_unique_fields).decode


def check_id(where: str, field: str, value: Any) -> str:
    """Returns the id in a field as a string; raises ValueError if it is no string or integer."""
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(
            f'{where}: field {field!r} must be a string or integer, found {shown(value)}.'
        )
    return str(value)


def check_text(where: str, field: str, value: Any) -> str:
    """Returns the string in a field; raises ValueError if it holds something else."""
    if not isinstance(value, str):
        raise ValueError(f'{where}: field {field!r} must be a string, found {shown(value)}.')
    return value


def id_error(kind: str, item_id: str) -> str | None:
    """Says what is wrong with the id of a `query` or `passage`; None if nothing is."""
    if not item_id or _NOT_IN_ID.search(item_id):
        return (
            f'{kind} id {shown(item_id)} is empty or holds whitespace or a control character, '
            'which TREC run files cannot hold; rename it.'
        )
    if len(item_id) > _MAX_ID:
        size = len(item_id)
        return f'{kind} id {shown(item_id)} has {size} characters, more than {_MAX_ID}; rename it.'
    return None


def parse_grade(where: str, value: str) -> int:
    """Parses a grade; raises ValueError if it is no integer or has more than 9 digits."""
    digits = value[value[:1] in ('+', '-') :]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f'{where}: grade {shown(value)} must be an integer.')
    if len(digits.lstrip('0')) > 9:  # No scale of judgements needs them.
        raise ValueError(f'{where}: grade {shown(value)} has more than 9 digits; correct it.')
    return int(value)


def find_file(root: pathlib.Path, name: str, layout: str) -> pathlib.Path:
    """Finds a file, or else the same with `.gz`; raises FileNotFoundError if neither is there."""
    for file in (root / name, root / f'{name}.gz'):
        if file.is_file():
            return file
    raise FileNotFoundError(f'{root / name} is missing: {layout} (or the same with .gz).')
