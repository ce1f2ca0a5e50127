"""The imported collection on disk, as memory-mapped columns."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.runtime import stages

_ROWS_PER_BATCH = 2**16
_TABLES = {
    name: pa.schema([(field, pa.large_string()) for field in fields])
    for name, fields in {
        'queries': ('split', 'query', 'text'),
        'qrels': ('split', 'query', 'passage'),
        'answers': ('split', 'query', 'answer'),
    }.items()
}
_TABLES['qrels'] = _TABLES['qrels'].append(pa.field('grade', pa.int32()))


def open_collection(directory: pathlib.Path) -> Collection:
    """The collection that `build_collection` wrote."""
    about = stages.read_json(directory / 'collection.json')
    splits: dict[str, dict] = {name: {} for name in _TABLES}
    for split, query, text in _rows(directory, 'queries'):
        splits['queries'].setdefault(split, {})[query] = text
    for split, query, passage, grade in _rows(directory, 'qrels'):
        splits['qrels'].setdefault(split, {}).setdefault(query, {})[passage] = grade
    for split, query, answer in _rows(directory, 'answers'):
        splits['answers'].setdefault(split, {}).setdefault(query, []).append(answer)
    passages = open_passages(directory, about['passages'])
    return Collection(about['name'], passages, license=about['license'], **splits)


def write_table(directory: pathlib.Path, name: str, items: list[tuple]) -> None:
    schema = _TABLES[name]
    columns = zip(*items, strict=True) if items else [()] * len(schema)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    table = pa.table(arrays, schema=schema)
    with pa.OSFile(str(directory / f'{name}.arrow'), 'wb') as f, pa.ipc.new_file(f, schema) as out:
        out.write_table(table, _ROWS_PER_BATCH)


def read_table(directory: pathlib.Path, name: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(directory / f'{name}.arrow'))).read_all()


def _rows(directory: pathlib.Path, name: str) -> Iterator[tuple]:
    columns = (column.to_pylist() for column in read_table(directory, name).columns)
    return zip(*columns, strict=True)


def open_passages(directory: pathlib.Path, fingerprint: str) -> Passages:
    hashes, order, group = (
        # A view as a plain array: subclasses surprise those who compute with them.
        np.asarray(np.load(directory / f'{name}.npy', mmap_mode='r'))
        for name in ('hashes', 'order', 'group')
    )
    table = read_table(directory, 'passages')
    return Passages.from_table(table, hashes, order, group, fingerprint)
