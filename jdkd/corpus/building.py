"""Builds a collection on disk from a source."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging
from tqdm import tqdm

from jdkd.corpus import passages as passages_lib
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import SCHEMA, Column, Fingerprint, IdIndex
from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError, Source
from jdkd.corpus.storage import open_collection, open_passages, read_table, write_table
from jdkd.runtime import stages
from jdkd.runtime.messages import shown

# A batch of passages: what of them is in memory at once.
_BATCH_PASSAGES = 2**16


_BATCH_CHARACTERS = 2**26


def build_collection(
    source: Source, directory: pathlib.Path, *, on_error: str = 'stop'
) -> dict[str, Any]:
    """Reads a source into an empty directory.

    Args:
        source: What to read.
        directory: Where `open_collection` finds it.
        on_error: What becomes of passages, queries and judgements that cannot be used: `stop`
            raises at the first; `skip` leaves them out, counts and logs.

    Returns:
        `skipped`: {kind: {'count', 'first'}} of what was left out.

    Raises:
        ValueError: one sentence with the place, the fault and the way to mend it.
    """
    skipped: dict[str, dict[str, Any]] = {}
    fault = base.make_on_error(on_error, skipped)
    fingerprint = _write_passages(source, directory, fault)
    row = open_passages(directory, fingerprint).id_index
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
        write_table(directory, table, items)
    about = {'name': source.name, 'license': source.license, 'passages': fingerprint}
    stages.write_json(directory / 'collection.json', about)
    base.log_skipped(source.name, skipped)
    _log_unlabelled(open_collection(directory))
    return {'skipped': skipped}


def _write_passages(source: Source, directory: pathlib.Path, fault: OnError) -> str:
    """Writes the columns and what is derived from them; returns the fingerprint."""
    drop: frozenset[int] = frozenset()
    while True:
        fingerprint, hashes, digests = _write_columns(source, directory, fault, drop)
        hashes, order = passages_lib.sorted_hashes(np.frombuffer(hashes, '<u8'))
        repeated = _repeated(Column(read_table(directory, 'passages').column('id')), hashes, order)
        if not repeated:
            break
        # Only the hashes of all ids tell that one is repeated: to say where, or to leave some
        # out, the source is read again. What else is wrong was told the first time.
        quiet = base.count_errors({})
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
    np.save(directory / 'group.npy', passages_lib.equal_text_groups(digests))
    return fingerprint


def _write_columns(
    source: Source, directory: pathlib.Path, fault: OnError, drop: frozenset[int]
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
            joined = map(passages_lib.join_title, titles, texts)
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


def _usable(source: Source, fault: OnError) -> Iterator[tuple[str, str, str, str, bytes]]:
    """(where, id, title, text, digest) of the passages that a collection can hold."""
    for where, passage_id, title, text in source.passages(fault):
        message = parsing.id_error('passage', passage_id)
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
    """IdIndex whose id an earlier row has."""
    at = np.flatnonzero(hashes[1:] == hashes[:-1])
    rows = np.unique(order[np.concatenate([at, at + 1])])  # Two ids may share a hash.
    first: dict[str, int] = {}
    for row, passage_id in zip(rows.tolist(), ids.take(rows), strict=True):
        first.setdefault(passage_id, row)
    return frozenset(rows.tolist()) - frozenset(first.values())


def _read_queries(source: Source, fault: OnError) -> dict[str, dict[str, str]]:
    queries: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for where, split, query, text in source.queries(fault):
        message = parsing.id_error('query', query)
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
    source: Source, queries: Mapping[str, Mapping[str, str]], row: IdIndex, fault: OnError
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
    source: Source, queries: Mapping[str, Mapping[str, str]], fault: OnError
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
