"""Collections in parquet or JSON-lines tables, as Hugging Face's `datasets` writes them."""

import functools
import pathlib
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from jdkd.corpus.sources import base, parsing, records
from jdkd.corpus.sources.base import OnError

_BATCH = 1024  # Rows of a parquet file in memory at a time.


def open_source(
    path: str,
    *,
    queries: Mapping[str, str],
    passages: str | None = None,
    qrels: Mapping[str, str] | None = None,
    fields: Mapping[str, str | None] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> base.Source:
    """A directory of tables; `jdkd.corpus.sources.records` says which of them are needed.

    A table is a file, or a glob for the shards of one (`data/train-*.parquet`): `.parquet`,
    `.jsonl`, `.json` (an object a line) or either of these with `.gz`.

    Args:
        path: The directory.
        queries: {split: table}.
        passages: Table.
        qrels: {split: table}.
        fields: What `records.FIELDS` names otherwise.
        name: What reports call the collection; the directory's name by default.
        license: The terms of the texts.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table is of another format, or the options do not say what is relevant.
    """
    root = pathlib.Path(path).expanduser().resolve()
    queries = {split: _files(root, table) for split, table in queries.items()}
    qrels = {split: _files(root, table) for split, table in (qrels or {}).items()}
    corpus = _files(root, passages) if passages else []
    files = [f for table in (corpus, *queries.values(), *qrels.values()) for f in table]
    return records.make_source(
        name or root.name,
        dict.fromkeys(files),
        functools.partial(_read, corpus) if passages else None,
        {split: functools.partial(_read, table) for split, table in queries.items()},
        {split: functools.partial(_read, table) for split, table in qrels.items()},
        fields,
        license,
    )


def _files(root: pathlib.Path, table: str) -> list[pathlib.Path]:
    try:
        found = sorted(root.glob(table))
    except NotImplementedError:
        raise ValueError(f'table {table!r} must be named relative to {root}.') from None
    if not found:
        raise FileNotFoundError(f'{root / table} is missing.')
    for file in found:
        if not file.name.removesuffix('.gz').endswith(('.parquet', '.jsonl', '.json')):
            raise ValueError(f'{file} is no table that can be read; use .parquet, .jsonl or .json.')
    return found


def _read(files: list[pathlib.Path], fault: OnError) -> Iterator[tuple[str, dict]]:
    for file in files:
        if file.suffix == '.parquet':
            yield from _parquet(file)
        else:
            yield from parsing.read_json_lines(file, fault)


def _parquet(file: pathlib.Path) -> Iterator[tuple[str, dict]]:
    row = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(_BATCH):
                for record in batch.to_pylist():
                    row += 1
                    yield f'{file}: row {row}', record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{file}: the data after row {row} is damaged ({error}); fetch the file again.'
        ) from None
