"""Collections in parquet, JSON-lines or CSV tables, as Hugging Face's `datasets` writes them."""

import functools
import pathlib
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from jdkd.corpus.sources import base, parsing, records, rows
from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import brief, escape, shown

_PARQUET_BATCH = 1024  # Rows of a parquet file in memory at once.
_DELIMITERS = {'.csv': ',', '.tsv': '\t'}
_KINDS = ('.parquet', '.jsonl', '.json', *_DELIMITERS)


def open_source(
    path: str,
    *,
    queries: Mapping[str, str],
    passages: str | None = None,
    qrels: Mapping[str, str] | None = None,
    fields: Mapping[str, str | None] | None = None,
) -> base.Source:
    """Opens a directory of tables; `jdkd.corpus.sources.records` says which of them are needed.

    A table is a file, or a glob for its shards (`data/train-*.parquet`): `.parquet`, or with or
    without `.gz` `.jsonl`, `.json` (an object a line), `.csv` or `.tsv` (with a header row).

    Args:
        path: The directory.
        queries, qrels: {split: table}.
        passages: Table.
        fields: Fields that differ from `records.FIELDS`, by role.

    Raises:
        FileNotFoundError: A table is missing.
        ValueError: A table has another format, or the options do not say what is relevant.
    """
    root = pathlib.Path(path).expanduser().resolve()
    find_shards = functools.cache(functools.partial(_find_shards, root))

    def read(table: str, on_error: OnError) -> Iterator[tuple[str, dict]]:
        for file in find_shards(table):
            yield from read_file(file, on_error)

    return records.make_source(root.name, find_shards, read, passages, queries, qrels, fields)


def open_passages(path: str, *, fields: Mapping[str, str | None] | None = None) -> base.Source:
    """Opens passages alone: one table, by its path or a glob; see `open_source`.

    Args:
        path: File of records with `_id`, `text` and optionally `title`.
        fields: Other names of these fields: {'passage_id': ..., 'title': ..., 'text': ...}.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It has another format, or `fields` names something else.
    """
    location = pathlib.Path(path).expanduser()
    files = _find_shards(location.parent.resolve(), location.name)

    def read(table: str, on_error: OnError) -> Iterator[tuple[str, dict]]:
        for file in files:
            yield from read_file(file, on_error)

    return records.passages_source(location.name, files, read, fields)


def read_file(file: pathlib.Path, on_error: OnError) -> Iterator[tuple[str, dict]]:
    """Yields (where, record) of each row or line of a table's file."""
    kind = pathlib.Path(file.name.removesuffix('.gz')).suffix
    if kind == '.parquet':
        yield from _read_parquet(file)
    elif kind in _DELIMITERS:
        yield from _read_delimited(file, on_error, _DELIMITERS[kind])
    else:
        yield from parsing.read_json_lines(file, on_error)


def _find_shards(root: pathlib.Path, table: str) -> list[pathlib.Path]:
    files = parsing.data_files(root, table)
    if not files:
        raise FileNotFoundError(f'{root / table} is missing.')
    for file in files:
        if not file.name.removesuffix('.gz').endswith(_KINDS):
            raise ValueError(
                f'{escape(str(file))} is no table that can be read; use one of {", ".join(_KINDS)}.'
            )
    return files


def _read_parquet(file: pathlib.Path) -> Iterator[tuple[str, dict]]:
    name, row = escape(str(file)), 0
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if repeated := [column for column in names if names.count(column) > 1]:
                raise ValueError(
                    f'{name}: the column {shown(repeated[0])} is there twice; rename one.'
                )
            for batch in table.iter_batches(_PARQUET_BATCH):
                for record in batch.to_pylist():
                    row += 1
                    yield f'{name}: row {row}', record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{name}: the data after row {row} is damaged ({brief(error)}); fetch the file again.'
        ) from None


def _read_delimited(
    file: pathlib.Path, on_error: OnError, delimiter: str
) -> Iterator[tuple[str, dict]]:
    """Yields (where, record) of each row below the header row of a CSV file."""
    names: list[str] | None = None
    for where, fields in rows.read_csv(file, on_error, delimiter):
        if names is None:
            names = fields
            if len(set(names)) < len(names):
                raise ValueError(f'{where}: the header row names a column twice; rename one.')
        elif len(fields) != len(names):
            on_error(
                'broken line',
                f'{where}: expected {len(names)} fields, as in the header row, found '
                f'{len(fields)}; put fields that hold {delimiter!r} in quotation marks.',
            )
        else:
            yield where, dict(zip(names, fields, strict=True))
