"""The collection of a run: read once from its source, kept on disk as memory-mapped columns.

    passages.arrow                  ids, titles, texts (Arrow IPC, large_string)
    hashes.npy, order.npy           passage id -> row
    group.npy                       rows of equal text
    queries.arrow, qrels.arrow, answers.arrow

Passages stream from the source to the disk. Importing P passages with Q queries holds at most about
0.3 GB + 70 bytes * P + 1 KB * Q: 8.8 million passages and 550,000 queries took 1.1 GB. What is
opened holds its queries alone (about 0.5 KB each), and the operating system keeps of the rest what
it has room for. `benchmarks.collection` measures both.
"""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging
from tqdm import tqdm

from jdkd.corpus import passages as passages_lib
from jdkd.corpus.collection import Collection, for_training
from jdkd.corpus.passages import SCHEMA, Column, Fingerprint, Passages, Rows
from jdkd.corpus.sources import parsing, registry
from jdkd.corpus.sources.parsing import Fault, Source
from jdkd.runtime import distributed, stages
from jdkd.runtime.messages import shown

# A batch of passages: what of them is in memory at once.
_BATCH_PASSAGES, _BATCH_CHARACTERS = 2**16, 2**26

_TABLES = {
    name: pa.schema([(field, pa.large_string()) for field in fields])
    for name, fields in {
        'queries': ('split', 'query', 'text'),
        'qrels': ('split', 'query', 'passage'),
        'answers': ('split', 'query', 'answer'),
    }.items()
}
_TABLES['qrels'] = _TABLES['qrels'].append(pa.field('grade', pa.int32()))


def collect(config, workdir: pathlib.Path) -> Collection:
    """The collection that a config trains on; see `fetch` and `for_training`.

    Raises:
        ValueError: also if a split is missing or has nothing to train on or to measure.
    """
    spec = config.collection
    found = for_training(fetch(config, workdir), spec, seed=config.seed)
    logging.info('%r', found)
    # Before hours of training, not after them.
    usable = {
        spec.train_split: found.labelled,
        spec.eval_split: found.labelled,
        spec.test_split: found.measurable,
    }
    for split, queries in usable.items():
        if not queries(split):
            raise ValueError(
                f'split {split!r} of collection {found.name!r} has no query with a positive (a '
                'grade above 0); add judgements or name another split.'
            )
    return found


def check(spec, directory: pathlib.Path) -> None:
    """Checks that a collection can be read, before a workdir is begun with it.

    Args:
        spec: `config.collection`: `source` and `options`.
        directory: Where it is kept, if it has been imported.

    Raises:
        ValueError: if the source or an option is unknown, or an option is missing.
        FileNotFoundError: if a file of the source is missing and was not imported.
    """
    if not (directory / stages.MANIFEST).exists():
        registry.source(spec.source, **spec.options.to_dict())


def fetch(config, workdir: pathlib.Path) -> Collection:
    """The collection that a config names: imported into `workdir/collection` unless it is there.

    A second start reads the source's files no more: by their sizes and times they are known to be
    the same, or else by their contents. Where the source is gone, what was imported is used.

    Args:
        config: Its `collection`: `source`, `options`, `on_error`.
        workdir: Of the run.

    Raises:
        ValueError: if the source is unknown, its data is bad, or a file of it has changed since it
            was imported.
        FileNotFoundError: if a file is missing that was not imported yet. Of several processes
            only the first needs the files.
    """
    directory = workdir / 'collection'
    distributed.from_primary(
        lambda: _import(config.collection, directory),
        'the collection',
        writes=[directory / stages.MANIFEST],
    )
    return open_(directory)


def _import(spec, directory: pathlib.Path) -> None:
    options = spec.options.to_dict()
    try:
        source = registry.source(spec.source, **options)
    except FileNotFoundError as error:
        if stages.read_manifest(directory) is None:
            raise
        logging.warning('%s Going on with what was imported.', error)
    else:
        stages.stage_of_files(
            directory,
            source.files,
            {'source': spec.source, 'options': options, 'on_error': spec.on_error},
            lambda out: build(source, out, on_error=spec.on_error),
        )


def build(source: Source, directory: pathlib.Path, *, on_error: str = 'stop') -> dict[str, Any]:
    """Reads a source into an empty directory.

    Args:
        source: What to read.
        directory: Where `open_` finds it.
        on_error: What becomes of passages, queries and judgements that cannot be used: `stop`
            raises at the first; `skip` leaves them out, counts and logs.

    Returns:
        `skipped`: {kind: {'count', 'first'}} of what was left out.

    Raises:
        ValueError: one sentence with the place, the fault and the way to mend it.
    """
    skipped: dict[str, dict[str, Any]] = {}
    fault = parsing.fault_of(on_error, skipped)
    fingerprint = _write_passages(source, directory, fault)
    row = _open_passages(directory, fingerprint).row
    queries = _read_queries(source, fault)
    qrels = _read_qrels(source, queries, row, fault)
    answers = _read_answers(source, queries, fault)
    tables = {
        'queries': [(s, q, text) for s, split in queries.items() for q, text in split.items()],
        'qrels': [
            (s, q, passage, grade)
            for s, split in qrels.items()
            for q, grades in split.items()
            for passage, grade in grades.items()
        ],
        'answers': [
            (s, q, answer)
            for s, split in answers.items()
            for q, strings in split.items()
            for answer in strings
        ],
    }
    for table, items in tables.items():
        _write_table(directory, table, items)
    about = {'name': source.name, 'license': source.license, 'passages': fingerprint}
    stages.write_json(directory / 'collection.json', about)
    parsing.log_skipped(source.name, skipped)
    _log_unlabelled(open_(directory))
    return {'skipped': skipped}


def open_(directory: pathlib.Path) -> Collection:
    """The collection that `build` wrote."""
    about = stages.read_json(directory / 'collection.json')
    splits: dict[str, dict] = {name: {} for name in _TABLES}
    for split, query, text in _rows(directory, 'queries'):
        splits['queries'].setdefault(split, {})[query] = text
    for split, query, passage, grade in _rows(directory, 'qrels'):
        splits['qrels'].setdefault(split, {}).setdefault(query, {})[passage] = grade
    for split, query, answer in _rows(directory, 'answers'):
        splits['answers'].setdefault(split, {}).setdefault(query, []).append(answer)
    passages = _open_passages(directory, about['passages'])
    return Collection(about['name'], passages, license=about['license'], **splits)


def _write_passages(source: Source, directory: pathlib.Path, fault: Fault) -> str:
    """Writes the columns and what is derived from them; returns the fingerprint."""
    drop: frozenset[int] = frozenset()
    while True:
        fingerprint, hashes, digests = _write_columns(source, directory, fault, drop)
        hashes, order = passages_lib.sorted_hashes(np.frombuffer(hashes, '<u8'))
        repeated = _repeated(Column(_read_table(directory, 'passages').column('id')), hashes, order)
        if not repeated:
            break
        # Only the hashes of all ids tell that one is repeated: to say where, or to leave some
        # out, the source is read again. What else is wrong was told the first time.
        quiet = parsing.counting({})
        for row, (where, passage_id, *_) in enumerate(_usable(source, quiet)):
            if row in repeated:
                fault(
                    'repeated passage',
                    f'{where}: passage id {passage_id!r} occurs a second time; remove one of the '
                    'two or rename it.',
                )
        drop, fault = repeated, quiet
    np.save(directory / 'hashes.npy', hashes)
    np.save(directory / 'order.npy', order)
    np.save(directory / 'group.npy', passages_lib.groups(digests))
    return fingerprint


def _write_columns(
    source: Source, directory: pathlib.Path, fault: Fault, drop: frozenset[int]
) -> tuple[str, bytearray, bytearray]:
    """Writes passages.arrow; returns its fingerprint, and id hashes and text digests in bytes."""
    fingerprint, hashes, digests = Fingerprint(), bytearray(), bytearray()
    empty: list[str] = []
    items = tqdm(_usable(source, fault), source.name, unit=' passages', disable=None)
    kept = (item for row, item in enumerate(items) if row not in drop)
    with pa.OSFile(str(directory / 'passages.arrow'), 'wb') as f, pa.ipc.new_file(f, SCHEMA) as out:
        for where, ids, titles, texts, keys in _batches(kept):
            hashes += passages_lib.id_hashes(ids).tobytes()
            digests += b''.join(keys)
            joined = map(passages_lib.join, titles, texts)
            empty += [w for w, passage in zip(where, joined, strict=True) if not passage]
            columns = [pa.array(column, pa.large_string()) for column in (ids, titles, texts)]
            batch = pa.record_batch(columns, schema=SCHEMA)
            fingerprint.update(batch)
            out.write(batch)
    if not hashes:
        raise ValueError(f'collection {source.name!r} has no passages; it needs at least one.')
    if empty:
        logging.warning(
            '%s: %d passages are empty, the first at %s; no query will find them.',
            source.name,
            len(empty),
            empty[0],
        )
    return fingerprint.hexdigest(), hashes, digests


def _usable(source: Source, fault: Fault) -> Iterator[tuple[str, str, str, str, bytes]]:
    """(where, id, title, text, digest) of the passages that a collection can hold."""
    for where, passage_id, title, text in source.passages(fault):
        message = parsing.id_fault('passage', passage_id)
        try:
            digest = passages_lib.text_digest(title, text)
        except UnicodeEncodeError:
            message = 'the text holds a lone surrogate, which UTF-8 cannot hold; remove it.'
        if message:
            fault('unusable passage', f'{where}: {message}')
        else:
            yield where, passage_id, title, text, digest


def _batches(items: Iterable[tuple]) -> Iterator[tuple[list, ...]]:
    """Items column by column, in batches of bounded size."""
    columns: tuple[list, ...] = ([], [], [], [], [])
    size = 0
    for item in items:
        for column, value in zip(columns, item, strict=True):
            column.append(value)
        size += len(item[2]) + len(item[3])
        if len(columns[0]) == _BATCH_PASSAGES or size >= _BATCH_CHARACTERS:
            yield columns
            columns, size = ([], [], [], [], []), 0
    if columns[0]:
        yield columns


def _repeated(ids: Column, hashes: np.ndarray, order: np.ndarray) -> frozenset[int]:
    """Rows whose id an earlier row has."""
    at = np.flatnonzero(hashes[1:] == hashes[:-1])
    rows = np.unique(order[np.concatenate([at, at + 1])])  # Two ids may share a hash.
    first: dict[str, int] = {}
    for row, passage_id in zip(rows.tolist(), ids.take(rows), strict=True):
        first.setdefault(passage_id, row)
    return frozenset(rows.tolist()) - frozenset(first.values())


def _read_queries(source: Source, fault: Fault) -> dict[str, dict[str, str]]:
    queries: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for where, split, query, text in source.queries(fault):
        message = parsing.id_fault('query', query)
        if not text.strip():
            message = f'query {query!r} has no text; write one or remove the query.'
        elif query in queries.get(split, ()):
            message = (
                f'query id {query!r} occurs a second time; remove one of the two or rename it.'
            )
        elif texts.get(query, text) != text:
            message = f'query id {query!r} has another text in another split; rename one.'
        elif parsing.SURROGATE.search(text):
            message = 'the text holds a lone surrogate, which UTF-8 cannot hold; remove it.'
        if message:
            fault('unusable query', f'{where}: {message}')
        else:
            texts[query] = text
            queries.setdefault(split, {})[query] = text
    if not queries:
        raise ValueError(f'collection {source.name!r} has no queries; it needs at least one.')
    shared = sum(map(len, queries.values())) - len(texts)
    if shared:
        logging.warning('%s: %d queries occur in more than one split.', source.name, shared)
    return queries


def _read_qrels(
    source: Source, queries: Mapping[str, Mapping[str, str]], row: Rows, fault: Fault
) -> dict[str, dict[str, dict[str, int]]]:
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    judgements = iter(source.qrels(fault))
    while chunk := list(itertools.islice(judgements, _BATCH_PASSAGES)):
        rows = row.find([passage for _, _, _, passage, _ in chunk])
        for (where, split, query, passage, grade), found in zip(chunk, rows, strict=True):
            unknown = None
            if query not in queries.get(split, ()):
                unknown = f'query {shown(query)}'
            elif found < 0:
                unknown = f'passage {shown(passage)}'
            if unknown:
                fault(
                    'judgement of something unknown',
                    f'{where}: the judgement names {unknown}, which does not exist; add it or '
                    'remove the judgement.',
                )
                continue
            grades = qrels.setdefault(split, {}).setdefault(query, {})
            if grades.setdefault(passage, grade) != grade:
                fault(
                    'contradicting judgement',
                    f'{where}: query {query!r} and passage {passage!r} have grade {grade} here '
                    f'and {grades[passage]} above; keep one.',
                )
    return qrels


def _read_answers(
    source: Source, queries: Mapping[str, Mapping[str, str]], fault: Fault
) -> dict[str, dict[str, list[str]]]:
    answers: dict[str, dict[str, list[str]]] = {}
    for where, split, query, answer in source.answers(fault):
        if not isinstance(answer, str) or not answer.strip() or parsing.SURROGATE.search(answer):
            fault('unusable answer', f'{where}: answer {shown(answer)} must be a string with text.')
        elif query not in queries.get(split, ()):
            fault(
                'answer to something unknown',
                f'{where}: the answer names query {shown(query)}, which does not exist in split '
                f'{split!r}; add it or remove the answer.',
            )
        else:
            answers.setdefault(split, {}).setdefault(query, []).append(answer)
    return answers


def _log_unlabelled(collection: Collection) -> None:
    for split, queries in collection.queries.items():
        unlabelled = len(queries) - len(collection.measurable(split))
        if unlabelled:
            logging.warning(
                '%s: %d of the %d queries of split %r have no positive and no answer; they are '
                'not measured, and those to train on are distilled alone (collection.unlabelled).',
                collection.name,
                unlabelled,
                len(queries),
                split,
            )


def _write_table(directory: pathlib.Path, name: str, items: list[tuple]) -> None:
    schema = _TABLES[name]
    columns = zip(*items, strict=True) if items else [()] * len(schema)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    table = pa.table(arrays, schema=schema)
    with pa.OSFile(str(directory / f'{name}.arrow'), 'wb') as f, pa.ipc.new_file(f, schema) as out:
        out.write_table(table, _BATCH_PASSAGES)


def _read_table(directory: pathlib.Path, name: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(directory / f'{name}.arrow'))).read_all()


def _rows(directory: pathlib.Path, name: str) -> Iterator[tuple]:
    columns = (column.to_pylist() for column in _read_table(directory, name).columns)
    return zip(*columns, strict=True)


def _open_passages(directory: pathlib.Path, fingerprint: str) -> Passages:
    hashes, order, group = (
        # A view as a plain array: subclasses surprise those who compute with them.
        np.asarray(np.load(directory / f'{name}.npy', mmap_mode='r'))
        for name in ('hashes', 'order', 'group')
    )
    table = _read_table(directory, 'passages')
    return Passages.from_parts(table, hashes, order, group, fingerprint)
