"""Collections in parquet or JSON-lines tables, as Hugging Face's `datasets` writes them."""

import functools
import pathlib
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from jdkd.corpus.sources import base, parsing, records
from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import brief, escape

_PARQUET_BATCH = 1024  # Rows of a parquet file in memory at once.


def open_source(
    path: str,
    *,
    queries: Mapping[str, str],
    passages: str | None = None,
    qrels: Mapping[str, str] | None = None,
    fields: Mapping[str, str | None] | None = None,
) -> base.Source:
    """Opens a directory of tables; `jdkd.corpus.sources.records` says which of them are needed.

    A table is a file, or a glob for its shards (`data/train-*.parquet`): `.parquet`, `.jsonl`,
    `.json` (an object a line) or either of these with `.gz`.

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
            if file.suffix == '.parquet':
                yield from _read_parquet(file)
            else:
                yield from parsing.read_json_lines(file, on_error)

    return records.make_source(root.name, find_shards, read, passages, queries, qrels, fields)


def _find_shards(root: pathlib.Path, table: str) -> list[pathlib.Path]:
    files = parsing.data_files(root, table)
    if not files:
        raise FileNotFoundError(f'{root / table} is missing.')
    for file in files:
        if not file.name.removesuffix('.gz').endswith(('.parquet', '.jsonl', '.json')):
            raise ValueError(
                f'{escape(str(file))} is no table that can be read; use .parquet, .jsonl or .json.'
            )
    return files


def _read_parquet(file: pathlib.Path) -> Iterator[tuple[str, dict]]:
    name, row = escape(str(file)), 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(_PARQUET_BATCH):
                for record in batch.to_pylist():
                    row += 1
                    yield f'{name}: row {row}', record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{name}: the data after row {row} is damaged ({brief(error)}); fetch the file again.'
        ) from None
