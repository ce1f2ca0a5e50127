"""What every source of a collection gives, and how files are read with file and line at hand."""

import dataclasses
import functools
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from jdkd.runtime.messages import shown

# (kind, message): told of an item that cannot be used. It raises, or returns for the item to be
# left out.
Fault = Callable[[str, str], None]

SURROGATE = re.compile(r'[\ud800-\udfff]')
# Whitespace and control characters, which a TREC run file cannot hold in an id, and marks that
# make other characters of a line show in another order.
_NOT_IN_ID = re.compile(
    r'[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
_LONGEST_ID = 1024  # Characters; Wikipedia's URLs fit.
_LONGEST_LINE = 2**26  # Bytes: passages of books fit, and what a gzip bomb swells to does not.


def stop(kind: str, message: str) -> None:
    """The Fault that raises.

    Raises:
        ValueError: always.
    """
    del kind
    raise ValueError(message)


def counting(counts: dict[str, dict[str, Any]]) -> Fault:
    """A Fault that counts into `counts`: {kind: {'count': how many, 'first': message}}."""

    def count(kind: str, message: str) -> None:
        counts.setdefault(kind, {'count': 0, 'first': message})['count'] += 1

    return count


def fault_of(on_error: str, counts: dict[str, dict[str, Any]]) -> Fault:
    """The Fault of a config's `on_error`: `stop`, or `skip`, which counts.

    Raises:
        ValueError: if it is neither.
    """
    if on_error not in ('stop', 'skip'):
        raise ValueError(f"on_error is '{on_error}'; use stop or skip.")
    return stop if on_error == 'stop' else counting(counts)


def log_skipped(name: str, counts: Mapping[str, Mapping[str, Any]]) -> None:
    """Logs what a Fault has counted.

    Args:
        name: Of what was read.
        counts: As `counting` leaves them.
    """
    for kind, found in counts.items():
        logging.warning(
            '%s: left out %d (%s), the first: %s', name, found['count'], kind, found['first']
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection to be read: nothing is before it is asked for, and nothing is kept.

    Each function takes a Fault and streams tuples that begin with the place which messages name.

    Attributes:
        name: What reports call the collection.
        files: What is read; a collection is read again when one of them has changed.
        passages: Streams (where, id, title, text).
        queries: Streams (where, split, id, text).
        qrels: Streams (where, split, query id, passage id, grade).
        answers: Streams (where, split, query id, answer).
        license: The terms of the texts, or None if unknown.
    """

    name: str
    files: Sequence[pathlib.Path]
    passages: Callable[[Fault], Iterable[tuple[str, str, str, str]]]
    queries: Callable[[Fault], Iterable[tuple[str, str, str, str]]]
    qrels: Callable[[Fault], Iterable[tuple[str, str, str, str, int]]]
    answers: Callable[[Fault], Iterable[tuple[str, str, str, str]]] = lambda fault: ()
    license: str | None = None


def lines(file: pathlib.Path, fault: Fault) -> Iterator[tuple[str, str]]:
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


def fields(
    file: pathlib.Path, columns: Sequence[str], fault: Fault, sep: str | None = '\t'
) -> Iterator[tuple[str, list[str]]]:
    """The place and fields of each line.

    Args:
        file: What to read.
        columns: What they are, for messages.
        fault: Told of lines with more or fewer.
        sep: Between the fields; None for any whitespace.
    """
    for where, line in lines(file, fault):
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


def json_lines(file: pathlib.Path, fault: Fault) -> Iterator[tuple[str, dict]]:
    """The place and object of each line."""
    for where, line in lines(file, fault):
        try:
            entry = json_object(line)
        except ValueError as error:
            fault('broken line', f'{where}: {error}')
        else:
            yield where, entry


def json_object(line: str) -> dict:
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


def id_field(where: str, entry: dict, field: str) -> str:
    """An id, which may be an integer.

    Raises:
        ValueError: if it is something else or missing.
    """
    value = entry.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(where, entry, field)


def id_fault(what: str, item_id: str) -> str | None:
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


def text_field(where: str, entry: dict, field: str, *, optional: bool = False) -> str:
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


def grade(where: str, value: str) -> int:
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


def find(root: pathlib.Path, name: str, layout: str) -> pathlib.Path:
    """A file of a directory, plain or with `.gz` after its name; the plain one before the other.

    Raises:
        FileNotFoundError: if it is not there; `layout` says what should be.
    """
    for file in (root / name, root / f'{name}.gz'):
        if file.is_file():
            return file
    raise FileNotFoundError(f'{root / name} is missing: {layout} (or the same with .gz).')
