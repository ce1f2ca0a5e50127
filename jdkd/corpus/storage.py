"""An imported collection on disk, as memory-mapped columns.

    collection.json                            name, license, fingerprint of the passages, missing
    passages.arrow                             ids, titles, texts (Arrow IPC, large_string)
    hashes.npy, order.npy                      passage id -> row
    group.npy                                  rows of equal text
    queries.arrow, qrels.arrow, answers.arrow

An open collection holds its queries in memory (about 0.5 KB each); the operating system caches as
much of the rest as it has room for.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import pyarrow as pa

from jdkd.corpus.collection import Collection, pairs_ids
from jdkd.corpus.passages import Passages
from jdkd.runtime import files, stages

_ROWS_PER_BATCH = 2**16
_KEYS = [('split', pa.large_string()), ('query', pa.large_string())]
_TABLES = {
    'queries': pa.schema([*_KEYS, ('text', pa.large_string())]),
    'qrels': pa.schema([*_KEYS, ('passage', pa.large_string()), ('grade', pa.int32())]),
    'answers': pa.schema([*_KEYS, ('answer', pa.large_string())]),
}


def open_collection(directory: pathlib.Path) -> Collection:
    """Opens the collection that `building.build_collection` wrote."""
    header = stages.read_json(directory / 'collection.json')
    queries, qrels, answers = {}, {}, {}
    for split, query, text in _read_rows(directory, 'queries'):
        queries.setdefault(split, {})[query] = text
    for split, query, passage, grade in _read_rows(directory, 'qrels'):
        qrels.setdefault(split, {}).setdefault(query, {})[passage] = grade
    for split, query, answer in _read_rows(directory, 'answers'):
        answers.setdefault(split, {}).setdefault(query, []).append(answer)
    passages = open_passages(directory, header['passages'])
    missing = frozenset(header.get('missing', ()))
    license = header['license']
    found = Collection(header['name'], passages, queries, qrels, answers, license, missing)
    return dataclasses.replace(found, ids_pair=pairs_ids(found))


def open_passages(directory: pathlib.Path, fingerprint: str) -> Passages:
    """Opens the passages alone, which may have been written before the rest."""
    names = 'hashes', 'order', 'group'
    hashes, order, group = (files.map_array(directory / f'{name}.npy') for name in names)
    table = read_table(directory, 'passages')
    return Passages.from_table(table, hashes, order, group, fingerprint)


def write_splits(
    directory: pathlib.Path,
    queries: Mapping[str, Mapping[str, str]],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
    answers: Mapping[str, Mapping[str, list[str]]],
) -> None:
    """Writes queries, judgements and answers; see `Collection` for their form."""
    rows: dict[str, list[tuple]] = {name: [] for name in _TABLES}
    for s, split in queries.items():
        rows['queries'] += [(s, q, text) for q, text in split.items()]
    for s, split in qrels.items():
        rows['qrels'] += [(s, q, *grade) for q, grades in split.items() for grade in grades.items()]
    for s, split in answers.items():
        rows['answers'] += [(s, q, answer) for q, strings in split.items() for answer in strings]
    for name, schema in _TABLES.items():
        columns = zip(*rows[name], strict=True) if rows[name] else [()] * len(schema)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
        path = str(directory / f'{name}.arrow')
        with pa.OSFile(path, 'wb') as f, pa.ipc.new_file(f, schema) as out:
            out.write_table(pa.table(arrays, schema=schema), _ROWS_PER_BATCH)


def read_table(directory: pathlib.Path, name: str) -> pa.Table:
    """Memory-maps one of the Arrow files."""
    return pa.ipc.open_file(pa.memory_map(str(directory / f'{name}.arrow'))).read_all()


def _read_rows(directory: pathlib.Path, name: str) -> zip:
    return zip(*(c.to_pylist() for c in read_table(directory, name).columns), strict=True)
