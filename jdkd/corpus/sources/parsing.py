"""What every source of a collection gives, and how files are read with file and line at hand."""

import functools
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import shown

SURROGATE = re.compile(r'[\ud800-\udfff]')
# Whitespace and control characters, which a TREC run file cannot hold in an id, and marks that
# make other characters of a line show in another order.
_NOT_IN_ID = re.compile(
    r'[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
_LONGEST_ID = 1024  # Characters; Wikipedia's URLs fit.
_LONGEST_LINE = 2**26  # Bytes: passages of books fit, and what a gzip bomb swells to does not.


def read_lines(file: pathlib.Path, fault: OnError) -> Iterator[tuple[str, str]]:
    """The place and text of each line that is not blank, of a file that may be gzipped.

    Raises:
        ValueError: if gzip data is cut short or damaged, or a line is longer than 64 MiB, whatever
            `fault` does.
    """
    number = 0
    try:
        with (gzip.open if file.suffix == '.gz' else open)(file, 'rb') as f:
            for number, raw in enumerate(
                iter(functools.partial(f.readline, _LONGEST_LINE), b''), 1
            ):
                if len(raw) == _LONGEST_LINE:
                    raise ValueError(
                        f'{file}:{number}: the line is longer than {_LONGEST_LINE} bytes; split '
                        'its text into passages, a line each.'
                    )
                try:
                    line = raw.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
                except UnicodeDecodeError:
                    fault('not UTF-8', f'{file}:{number}: not UTF-8; save the file as UTF-8.')
                    continue
                if line and not line.isspace():
                    yield f'{file}:{number}', line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f'{file}:{number + 1}: the gzip data is cut short or damaged ({error}); '
            'fetch the file again.'
        ) from None


def read_fields(
    file: pathlib.Path, columns: Sequence[str], fault: OnError, sep: str | None = '\t'
) -> Iterator[tuple[str, list[str]]]:
    """The place and fields of each line.

    Args:
        file: What to read.
        columns: What they are, for messages.
        fault: Told of lines with more or fewer.
        sep: Between the fields; None for any whitespace.
    """
    for where, line in read_lines(file, fault):
        found = line.split(sep)
        if len(found) == len(columns):
            yield where, found
        else:
            between = 'tabs' if sep else 'spaces or tabs'
            fault(
                'broken line',
                f'{where}: expected {", ".join(columns[:-1])} and {columns[-1]} with {between} '
                f'between them, found {len(found)} field(s).',
            )


def read_json_lines(file: pathlib.Path, fault: OnError) -> Iterator[tuple[str, dict]]:
    """The place and object of each line."""
    for where, line in read_lines(file, fault):
        try:
            entry = parse_json_object(line)
        except ValueError as error:
            fault('broken line', f'{where}: {error}')
        else:
            yield where, entry


def parse_json_object(line: str) -> dict:
    """The JSON object in a line.

    Raises:
        ValueError: if it is none, or names a field twice.
    """
    try:
        entry = _decode(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'not JSON ({error}); write one object a line.') from None
    if not isinstance(entry, dict):
        raise ValueError(
            f'expected a JSON object, found {type(entry).__name__}; write {{"field": ..., ...}}.'
        )
    return entry


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f'field {shown(twice)} is there twice')
    return found


_decode = json.JSONDecoder(object_pairs_hook=_object).decode


def get_id(where: str, entry: dict, field: str) -> str:
    """An id, which may be an integer.

    Raises:
        ValueError: if it is something else or missing.
    """
    value = entry.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return get_text(where, entry, field)


def id_error(what: str, item_id: str) -> str | None:
    """What is wrong with an id of a query or passage, if anything.

    Args:
        what: Whose it is.
        item_id: The id.
    """
    if not item_id or _NOT_IN_ID.search(item_id):
        return (
            f'{what} id {shown(item_id)} is empty or holds whitespace or a control character, '
            'which TREC run files cannot hold; rename it.'
        )
    if len(item_id) > _LONGEST_ID:
        return (
            f'{what} id {shown(item_id)} has {len(item_id)} characters, more than {_LONGEST_ID}; '
            'rename it.'
        )
    return None


def get_text(where: str, entry: dict, field: str, *, optional: bool = False) -> str:
    """A string.

    Args:
        where: The place that the message names.
        entry: The object.
        field: Its name in the object.
        optional: Whether null or no field means an empty string.

    Raises:
        ValueError: if it is something else or missing.
    """
    value = entry.get(field)
    if value is None and optional:
        return ''
    if not isinstance(value, str):
        found = shown(value) if field in entry else 'nothing'
        raise ValueError(f'{where}: field {field!r} must be a string, found {found}.')
    return value


def parse_grade(where: str, value: str) -> int:
    """A grade of relevance.

    Raises:
        ValueError: if it is no integer of 32 bits.
    """
    digits = value[value[:1] in ('+', '-') :]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f'{where}: grade {shown(value)} must be an integer.')
    if len(digits.lstrip('0')) > 9:  # More than any scale of judgements has.
        raise ValueError(f'{where}: grade {shown(value)} has more than 9 digits; mend it.')
    return int(value)


def find_file(root: pathlib.Path, name: str, layout: str) -> pathlib.Path:
    """A file of a directory, plain or with `.gz` after its name; the plain one before the other.

    Raises:
        FileNotFoundError: if it is not there; `layout` says what should be.
    """
    for file in (root / name, root / f'{name}.gz'):
        if file.is_file():
            return file
    raise FileNotFoundError(f'{root / name} is missing: {layout} (or the same with .gz).')
