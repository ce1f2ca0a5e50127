"""Builds a collection on disk from a source, and checks all that it reads.

Passages stream from the source to the disk. Importing P passages with Q queries holds at most about
0.3 GB + 70 bytes * P + 1 KB * Q: 8.8 million passages and 550,000 queries took 1.1 GB, as
`benchmarks.collection` measures.
"""

import collections
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from jdkd.corpus import passages as passages_lib
from jdkd.corpus import storage
from jdkd.corpus.passages import SCHEMA, Column, Fingerprint, IdIndex
from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError, Source
from jdkd.runtime import progress, stages
from jdkd.runtime.messages import shown

# Passages (or judgements) in memory at once.
_BATCH_PASSAGES = 2**16
_BATCH_CHARACTERS = 2**26


class NothingLeftError(ValueError):
    """A source without usable passages or queries; names the first error, if there is one.

    Attributes:
        skipped: {kind of error: {'count', 'first'}}.
    """

    def __init__(
        self, source: Source, items: str, skipped: Mapping[str, Mapping[str, Any]]
    ) -> None:
        message = f'collection {source.name!r} has no {items}; it needs at least one.'
        first = [errors['first'] for errors in skipped.values()][:1]
        super().__init__(' The first error: '.join([message, *first]))
        self.skipped = skipped


def build_collection(
    source: Source, directory: pathlib.Path, *, on_error: str = 'stop'
) -> dict[str, Any]:
    """Reads a source into an empty directory, where `storage.open_collection` finds it.

    Args:
        on_error: What to do with unusable passages, queries and judgements: `stop` raises at the
            first one; `skip` leaves them out, counts and logs them.

    Returns:
        `skipped`: {kind of error: {'count', 'first'}}.

    Raises:
        ValueError: The data is bad; the message names the place, the error and the remedy.
    """
    skipped: dict[str, dict[str, Any]] = {}
    handler = base.make_on_error(on_error, skipped)
    fingerprint = _write_passages(source, directory, handler, skipped)
    id_index = storage.open_passages(directory, fingerprint).id_index
    queries = _read_queries(source, handler)
    qrels, missing = _read_qrels(source, queries, id_index, handler)
    # After the judgements: broken ones may be the reason, and their errors come first.
    if not queries and (source.needs_queries or skipped):
        raise NothingLeftError(source, 'queries', skipped)
    storage.write_splits(directory, queries, qrels, _read_answers(source, queries, handler))
    header = {
        'name': source.name,
        'license': source.license,
        'passages': fingerprint,
        'missing': missing,
    }
    stages.write_json(directory / 'collection.json', header)
    base.log_skipped(source.name, skipped)
    collection = storage.open_collection(directory)
    for split, ids in collection.queries.items():
        measurable = collection.measurable(split)
        if not measurable and collection.qrels.get(split):
            logging.warning(
                '%s: no judgement of split %r is above 0, so that none of its %d queries is '
                'measured.',
                source.name,
                split,
                len(ids),
            )
        elif unlabelled := len(ids) - len(measurable):
            logging.warning(
                '%s: %d of the %d queries of split %r have no judgement and no answer; they are '
                'not measured, and in training they are only distilled (collection.unlabelled).',
                source.name,
                unlabelled,
                len(ids),
                split,
            )
    return {'skipped': skipped}


def build_passages(
    source: Source, directory: pathlib.Path, *, on_error: str = 'stop'
) -> dict[str, Any]:
    """Reads the passages alone into an empty directory, for `storage.open_passages`.

    Returns:
        `fingerprint` of the passages, their number as `passages`, and `skipped`.

    Raises:
        ValueError: as `build_collection`.
    """
    skipped: dict[str, dict[str, Any]] = {}
    handler = base.make_on_error(on_error, skipped)
    fingerprint = _write_passages(source, directory, handler, skipped)
    base.log_skipped(source.name, skipped)
    count = len(storage.open_passages(directory, fingerprint))
    return {'fingerprint': fingerprint, 'passages': count, 'skipped': skipped}


def _write_passages(
    source: Source,
    directory: pathlib.Path,
    on_error: OnError,
    skipped: Mapping[str, Mapping[str, Any]],
) -> str:
    """Writes passages with their id index and text groups; returns their fingerprint."""
    drop: frozenset[int] = frozenset()
    while True:
        fingerprint, id_hashes, digests = _write_columns(source, directory, on_error, drop)
        if not id_hashes:
            raise NothingLeftError(source, 'passages', skipped)
        hashes, order = passages_lib.sorted_hashes(np.frombuffer(id_hashes, '<u8'))
        ids = Column(storage.read_table(directory, 'passages').column('id'))
        repeated = _repeated_rows(ids, hashes, order)
        if not repeated:
            break
        # Repeated ids show only in the hashes of all ids. To name their places, or to leave them
        # out, the source is read again; its other errors were reported the first time.
        ignore = base.count_errors({})
        for row, (where, passage_id, *_) in enumerate(_usable_passages(source, ignore)):
            if row in repeated:
                on_error(
                    'repeated passage',
                    f'{where}: passage id {passage_id!r} occurs a second time; remove one of the '
                    'two or rename it.',
                )
        drop, on_error = repeated, ignore
    np.save(directory / 'hashes.npy', hashes)
    np.save(directory / 'order.npy', order)
    np.save(directory / 'group.npy', passages_lib.equal_text_groups(digests))
    return fingerprint


def _write_columns(
    source: Source, directory: pathlib.Path, on_error: OnError, drop: frozenset[int]
) -> tuple[str, bytearray, bytearray]:
    """Writes the usable passages not in `drop`; returns fingerprint, id hashes, text digests."""
    fingerprint, hashes, digests = Fingerprint(), bytearray(), bytearray()
    empty: list[str] = []
    usable = progress.bar(None, source.name, 'passages', over=_usable_passages(source, on_error))
    kept = (passage for row, passage in enumerate(usable) if row not in drop)
    with pa.OSFile(str(directory / 'passages.arrow'), 'wb') as f, pa.ipc.new_file(f, SCHEMA) as out:
        for batch in _make_batches(kept):
            where, ids, titles, texts, batch_digests = zip(*batch, strict=True)
            hashes += passages_lib.id_hashes(ids).tobytes()
            digests += b''.join(batch_digests)
            joined = map(passages_lib.join_title, titles, texts)
            empty += [w for w, passage in zip(where, joined, strict=True) if not passage]
            columns = [pa.array(column, pa.large_string()) for column in (ids, titles, texts)]
            record_batch = pa.record_batch(columns, schema=SCHEMA)
            fingerprint.update(record_batch)
            out.write(record_batch)
    if empty:
        message = '%s: %d passages are empty, the first at %s; no query will find them.'
        logging.warning(message, source.name, len(empty), empty[0])
    return fingerprint.hexdigest(), hashes, digests


def _usable_passages(source: Source, on_error: OnError) -> Iterator[tuple[Any, ...]]:
    """Yields (where, id, title, text, text digest) of each passage that can be stored."""
    for where, passage_id, title, text in source.passages(on_error):
        digest, error = b'', parsing.id_error('passage', passage_id)
        try:
            digest = passages_lib.text_digest(title, text)
        except UnicodeEncodeError:
            error = parsing.HOLDS_SURROGATE
        if error:
            on_error('unusable passage', f'{where}: {error}')
        else:
            yield where, passage_id, title, text, digest


def _make_batches(passages: Iterable[tuple]) -> Iterator[list[tuple]]:
    """Yields batches of `_usable_passages`, bounded in passages and characters."""
    batch, size = [], 0
    for passage in passages:
        batch.append(passage)
        size += len(passage[2]) + len(passage[3])
        if len(batch) == _BATCH_PASSAGES or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _repeated_rows(ids: Column, hashes: np.ndarray, order: np.ndarray) -> frozenset[int]:
    """Finds the rows whose id an earlier row has."""
    at = np.flatnonzero(hashes[1:] == hashes[:-1])
    rows = np.unique(order[np.concatenate([at, at + 1])])[::-1]  # Two ids may share a hash.
    first = dict(zip(ids.take(rows), rows.tolist(), strict=True))
    return frozenset(rows.tolist()) - frozenset(first.values())


def _read_queries(source: Source, on_error: OnError) -> dict[str, dict[str, str]]:
    queries: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for where, split, query, text in source.queries(on_error):
        error = parsing.id_error('query', query)
        if not text.strip():
            error = f'query {query!r} has no text; write one or remove the query.'
        elif query in queries.get(split, ()):
            error = f'query id {query!r} occurs a second time; remove one of the two or rename it.'
        elif texts.get(query, text) != text:
            error = f'query id {query!r} has another text in another split; rename one.'
        elif parsing.SURROGATE.search(text):
            error = parsing.HOLDS_SURROGATE
        if error:
            on_error('unusable query', f'{where}: {error}')
        else:
            texts[query] = text
            queries.setdefault(split, {})[query] = text
    shared = sum(map(len, queries.values())) - len(texts)
    if shared:
        logging.warning('%s: %d queries occur in more than one split.', source.name, shared)
    return queries


def _read_qrels(
    source: Source, queries: Mapping[str, Mapping[str, str]], id_index: IdIndex, on_error: OnError
) -> tuple[dict[str, dict[str, dict[str, int]]], list[str]]:
    """Reads the judgements; returns them with the ids of those passages that do not exist.

    Some may be missing, as ArguAna's are. Where all of a split are, that is an error.
    """
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    missing: dict[str, None] = {}
    absent: dict[str, str] = {}  # {split: the first judgement of a passage that does not exist}
    counts: collections.Counter[str] = collections.Counter()
    judgements = iter(source.qrels(on_error))
    while chunk := list(itertools.islice(judgements, _BATCH_PASSAGES)):
        rows = id_index.find([passage for _, _, _, passage, _ in chunk])
        for (where, split, query, passage, grade), row in zip(chunk, rows, strict=True):
            error = parsing.id_error('passage', passage)
            if query not in queries.get(split, ()):
                error = (
                    f'the judgement names query {shown(query)}, which does not exist; add it or '
                    'remove the judgement.'
                )
            if error:
                on_error('judgement of something unknown', f'{where}: {error}')
                continue
            grades = qrels.setdefault(split, {}).setdefault(query, {})
            if row < 0 and passage not in grades:
                missing[passage] = None
                absent.setdefault(split, f'{where}: passage {shown(passage)}')
                counts[split] += 1
            if grades.setdefault(passage, grade) != grade:
                on_error(
                    'contradicting judgement',
                    f'{where}: query {query!r} and passage {passage!r} have grade {grade} here '
                    f'and {grades[passage]} above; keep one.',
                )
    for split, first in absent.items():
        judged = sum(map(len, qrels[split].values()))
        if counts[split] == judged:
            on_error(
                'judgements of another collection',
                f'{first} does not exist, nor does any other of the {judged} that split '
                f'{split!r} judges; give the judgements of this collection.',
            )
        logging.warning(
            '%s: %d of the %d judgements of split %r are of passages that do not exist, the first '
            'at %s. They count in measures, as in trec_eval; nothing is trained on them.',
            source.name,
            counts[split],
            judged,
            split,
            first,
        )
    return qrels, list(missing)


def _read_answers(
    source: Source, queries: Mapping[str, Mapping[str, str]], on_error: OnError
) -> dict[str, dict[str, list[str]]]:
    answers: dict[str, dict[str, list[str]]] = {}
    for where, split, query, answer in source.answers(on_error):
        if not isinstance(answer, str) or not answer.strip() or parsing.SURROGATE.search(answer):
            on_error(
                'unusable answer', f'{where}: answer {shown(answer)} must be a string with text.'
            )
        elif query not in queries.get(split, ()):
            on_error(
                'answer to something unknown',
                f'{where}: the answer names query {shown(query)}, which does not exist in split '
                f'{split!r}; add it or remove the answer.',
            )
        else:
            answers.setdefault(split, {}).setdefault(query, []).append(answer)
    return answers
