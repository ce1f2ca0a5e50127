"""Reads lines, fields and JSON objects from files, and names file and line in every error."""

import dataclasses
import decimal
import functools
import gzip
import json
import pathlib
import re
import typing
import zlib
from collections.abc import Iterator
from typing import IO, Any

from jdkd.corpus.sources.base import OnError
from jdkd.runtime import files
from jdkd.runtime.messages import escape, shown

SURROGATE = re.compile(r'[\ud800-\udfff]')
HOLDS_SURROGATE = 'the text holds a lone surrogate, which UTF-8 cannot hold; remove it.'
# Whitespace and control characters, which a TREC run file cannot hold in an id, and marks that
# are invisible or display the other characters of a line in another order.
_NOT_IN_ID = re.compile(
    r'[\s\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]'
)
# Names of files and directories that are no data: of macOS (.DS_Store, ._x, __MACOSX), Windows,
# NAS boxes, editors (.x.swp, x~, #x#, ~$x), notebooks (.ipynb_checkpoints) and stopped downloads.
_LEFTOVER = re.compile(
    r'\..*|__macosx|thumbs\.db|ehthumbs.*\.db|desktop\.ini|@eadir|~\$.*|#.*#|lost\+found'
    r'|\$recycle\.bin|.*(~|\.(sw[a-p]|bak|old|orig|rej|te?mp|part|partial|crdownload|download|lock))',
    re.IGNORECASE,
)
_BYTE_ORDER_MARK = '\ufeff'  # Begins files of Windows, and stays inside where files are joined.
_NUMBER = re.compile(r'[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?', re.ASCII)
# How files begin that are not the text that they should hold, and what they are.
_MAGIC = {
    rb'BZh\d1AY&SY': 'compressed by bzip2',
    rb'\xfd7zXZ\0': 'compressed by xz',
    rb'\x28\xb5\x2f\xfd': 'compressed by zstd',
    rb'\x04\x22\x4d\x18': 'compressed by lz4',
    rb'PK\x03\x04': 'a zip archive',
    rb'PAR1[^\s\x20-\x7e]': 'a parquet file',
    rb'ARROW1\0': 'an arrow file',
    files.GIT_LFS: 'a pointer of Git LFS, which stands for the data',
}
_GZIP = b'\x1f\x8b'
# Names of the columns of ids in header rows, as `column_name` gives them.
QUERY_COLUMN = r'(query|topic|question)(id|no|num|number)?|qid'
PASSAGE_COLUMN = r'(passage|doc|document|corpus|item)(id|no|num|number)?|[pd]id'
_MAX_ID = 1024  # Characters; URLs of Wikipedia fit.
_MAX_LINE = 2**26  # Bytes; passages of whole books fit, what a gzip bomb inflates to does not.


def read_lines(
    file: pathlib.Path, on_error: OnError, *, blank: bool = False
) -> Iterator[tuple[str, str]]:
    """Yields (where, line) of the lines of a file, gzipped or not; blank ones only if asked to.

    Raises:
        ValueError: Even if `on_error` skips: gzip data is damaged, a line exceeds 64 MiB, or the
            file is compressed in another way, no text, or has no ends of lines but carriage
            returns.
    """
    name, number = escape(str(file)), 0
    try:
        with _open_binary(file, name) as f:
            for number, raw in enumerate(iter(functools.partial(f.readline, _MAX_LINE), b''), 1):
                if number == 1 and b'\r' in raw.rstrip(b'\r\n') and not raw.endswith(b'\n'):
                    raise ValueError(
                        f'{name}: carriage returns alone end its lines; save the file with the '
                        'line ends of Unix or Windows.'
                    )
                if len(raw) == _MAX_LINE:
                    raise ValueError(
                        f'{name}:{number}: the line is longer than {_MAX_LINE} bytes; split its '
                        'text into passages, a line each.'
                    )
                try:
                    line = raw.decode().removeprefix(_BYTE_ORDER_MARK).rstrip('\r\n')
                except UnicodeDecodeError:
                    on_error('not UTF-8', f'{name}:{number}: not UTF-8; save the file as UTF-8.')
                    continue
                if blank or (line and not line.isspace()):
                    yield f'{name}:{number}', line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f'{name}:{number + 1}: the gzip data is cut short or damaged ({error}); '
            'fetch the file again.'
        ) from None


def _open_binary(file: pathlib.Path, name: str) -> IO[bytes]:
    """Opens a file, gzipped or not, whatever its name says of that."""
    with open(file, 'rb') as f:
        head = f.read(100)
    for magic, kind in _MAGIC.items():
        if re.match(magic, head):
            raise ValueError(f'{name} is {kind}; give the text itself, gzipped or not.')
    gzipped = file.suffix == '.gz' or head.startswith(_GZIP)
    return typing.cast(IO[bytes], (gzip.open if gzipped else open)(file, 'rb'))


def column_name(field: str) -> str:
    """A name in a header row without case and marks."""
    return re.sub(r'[\W_]', '', field.lower())


def read_json_lines(file: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, dict]]:
    """Yields (where, object) of each line."""
    for where, line in read_lines(file, on_error):
        try:
            entry = parse_json_object(line)
        except ValueError as error:
            on_error('broken line', f'{where}: {error}')
        else:
            yield where, entry


@dataclasses.dataclass(frozen=True)
class Repeated:
    """The value of a JSON field that its object holds several times: none of them is read."""

    field: str


def parse_json_object(line: str) -> dict:
    """Parses a JSON object; raises ValueError if it is none.

    A field that is there several times becomes `Repeated`, which only those who read it refuse.
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


def _mark_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        entry |= {name: Repeated(name) for name in entry if names.count(name) > 1}
    return entry


_decode = json.JSONDecoder(object_pairs_hook=_mark_repeated).decode


def check_once(where: str, value: Any) -> Any:
    """Returns the value of a JSON field; raises ValueError if the field is there several times."""
    if isinstance(value, Repeated):
        raise ValueError(f'{where}: field {shown(value.field)} is there twice; keep one.')
    return value


def check_id(where: str, field: str, value: Any) -> str:
    """Returns the id in a field as a string; raises ValueError if it is no string or integer."""
    check_once(where, value)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(
            f'{where}: field {field!r} must be a string or integer, found {shown(value)}.'
        )
    return str(value)


def check_text(where: str, field: str, value: Any) -> str:
    """Returns the string in a field; raises ValueError if it holds something else."""
    check_once(where, value)
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


def parse_grade(where: str, value: Any) -> int:
    """Returns the grade that a field holds, a number or its text; `1.0` and `1e0` are 1.

    Raises:
        ValueError: It is no whole number, or has more than 7 digits.
    """
    text = str(check_once(where, value))
    number = decimal.Decimal(text) if _NUMBER.fullmatch(text) else None
    if number is None or number != number.to_integral_value():
        raise ValueError(f'{where}: grade {shown(value)} must be an integer.')
    if abs(number) >= 10**7:  # trec_eval makes arrays of as many numbers as the highest grade.
        raise ValueError(f'{where}: grade {shown(value)} has more than 7 digits; correct it.')
    return int(number)


def data_files(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Finds the files of a glob pattern in order, without what systems and editors leave beside.

    Raises:
        ValueError: The pattern names no files in the directory.
    """
    try:
        files = sorted(file for file in root.glob(pattern) if not file.is_dir())
    except (NotImplementedError, IndexError, ValueError):
        raise ValueError(
            f'{shown(pattern)} must be the name or the pattern of files relative to {root}.'
        ) from None
    if (root / pattern).is_file():  # Whatever is named in full is meant, such as a[1].csv.
        return [root / pattern]
    return [f for f in files if not any(map(_LEFTOVER.fullmatch, f.relative_to(root).parts))]


def find_file(root: pathlib.Path, name: str, layout: str) -> pathlib.Path:
    """Finds a file, or else the same with `.gz`; raises FileNotFoundError if neither is there."""
    for file in (root / name, root / f'{name}.gz'):
        if file.is_file():
            return file
    raise FileNotFoundError(f'{root / name} is missing: {layout} (or the same with .gz).')
