"""Collections out of records with fields: what tables in files and TFDS datasets have in common.

Three shapes, told apart by which of `passages` and `qrels` are given:

    passages, queries, qrels    three tables, as BEIR's are on the Hugging Face hub
    passages, queries           a query's record has the ids of its positives in `positives`
    queries                     a query's record has its positive passage beside it, as in SQuAD

The last holds about 100 bytes a passage in memory while it is read.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError
from jdkd.runtime.messages import brief, shown

# Streams (where, record); a record is a dict of str, numbers, lists and dicts.
Table = Callable[[OnError], Iterable[tuple[str, dict[str, Any]]]]

# Role -> field; None: there is none. A path such as answers/text leads into inner records.
FIELDS = {
    'passage_id': '_id',
    'title': 'title',
    'text': 'text',
    'query_id': '_id',
    'query': 'text',
    'positives': None,
    'answers': None,
    'judged_query': 'query-id',
    'judged_passage': 'corpus-id',
    'grade': 'score',
}
# Of records that hold a query and its passage. Without ids, equal texts get equal ones.
_PAIR_FIELDS = {'passage_id': None, 'title': None, 'query_id': None, 'query': 'query'}


def make_source(
    name: str,
    files: Iterable,
    passages: Table | None,
    queries: Mapping[str, Table],
    qrels: Mapping[str, Table],
    fields: Mapping[str, str | None] | None,
    license: str | None,
) -> base.Source:
    """A collection of records.

    Args:
        name: What reports call it.
        files: What the tables read.
        passages: One record a passage; None if they stand beside the queries.
        queries: {split: one record a query}.
        qrels: {split: one record a judgement}; {} if positives are in the queries' records.
        fields: Of FIELDS, those that are named otherwise.
        license: The terms of the texts.

    Raises:
        ValueError: if a role is unknown or the tables do not tell what is relevant.
    """
    unknown = set(fields or {}) - set(FIELDS)
    if unknown:
        raise ValueError(
            f"the option fields has no role '{min(unknown)}'; it has {', '.join(FIELDS)}."
        )
    paired = passages is None
    of = {**FIELDS, **(_PAIR_FIELDS if paired else {}), **(fields or {})}
    if paired and qrels:
        raise ValueError('the option qrels is given without passages; give both or neither.')
    if not paired and not qrels and not of['positives']:
        raise ValueError(
            'nothing says what is relevant: give the option qrels, or fields.positives, the field '
            "of a query's record that holds the ids of its positives."
        )

    def read_queries(fault: OnError) -> Iterator[tuple[str, str, str, dict]]:
        for split, table in queries.items():
            seen = set()
            for where, record in table(fault):
                query = _guarded(fault, _query_id, where, record, of)
                # A query with several passages has as many records.
                if query is not None and not (paired and query in seen):
                    seen.add(query)
                    yield where, split, query, record

    def stream_passages(fault: OnError) -> Iterator[tuple[str, str, str, str]]:
        seen = set()
        for table in queries.values() if paired else [passages]:
            for where, record in table(fault):
                found = _guarded(fault, _passage, where, record, of)
                if found and paired:
                    key = _made_id(*found)
                    if key in seen:
                        continue  # A passage of several queries has as many records.
                    seen.add(key)
                if found:
                    yield where, *found

    def stream_queries(fault: OnError) -> Iterator[tuple[str, str, str, str]]:
        for where, split, query, record in read_queries(fault):
            text = _guarded(fault, _text, where, record, of['query'])
            if text is not None:
                yield where, split, query, text

    def stream_qrels(fault: OnError) -> Iterator[tuple[str, str, str, str, int]]:
        # A record that was faulty above is not told of a second time.
        quiet = base.count_errors({})
        for split, table in qrels.items():
            for where, record in table(fault):
                found = _guarded(fault, _judgement, where, record, of)
                if found:
                    yield where, split, *found
        if qrels:
            return
        for split, table in queries.items():
            for where, record in table(quiet):
                query = _guarded(quiet, _query_id, where, record, of)
                if paired:
                    found = _guarded(quiet, _passage, where, record, of)
                    positives = found and found[:1]
                else:
                    positives = _guarded(fault, _ids, where, record, of['positives'])
                if query is not None:
                    for passage in positives or ():
                        yield where, split, query, passage, 1

    def stream_answers(fault: OnError) -> Iterator[tuple[str, str, str, str]]:
        if of['answers']:
            for where, split, query, record in read_queries(base.count_errors({})):
                for answer in _guarded(fault, _list, where, record, of['answers']) or ():
                    yield where, split, query, answer

    return base.Source(
        name, tuple(files), stream_passages, stream_queries, stream_qrels, stream_answers, license
    )


def _guarded(fault: OnError, read: Callable, *args):
    """What `read` returns; None where the record is faulty."""
    try:
        return read(*args)
    except ValueError as error:
        fault('broken record', str(error))
        return None


def _get(where: str, record: Mapping[str, Any], field: str) -> Any:
    value: Any = record
    for part in field.split('/'):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(
                f'{where}: there is no field {field!r}; there are '
                f'{brief(", ".join(record))}: name the right one in the option fields.'
            )
        value = value[part]
    return value


def _text(where: str, record: Mapping[str, Any], field: str) -> str:
    value = _get(where, record, field)
    if not isinstance(value, str):
        raise ValueError(f'{where}: field {field!r} must be a string, found {shown(value)}.')
    return value


def _made_id(*texts: str) -> str:
    return hashlib.sha256('\0'.join(texts).encode(errors='surrogatepass')).hexdigest()[:16]


def _query_id(where: str, record: Mapping[str, Any], of: Mapping[str, str | None]) -> str:
    if of['query_id'] is None:
        return _made_id(_text(where, record, of['query']))
    return _id(where, record, of['query_id'])


def _id(where: str, record: Mapping[str, Any], field: str) -> str:
    return _as_id(where, field, _get(where, record, field))


def _as_id(where: str, field: str, value: Any) -> str:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(
            f'{where}: field {field!r} must be a string or integer, found {shown(value)}.'
        )
    return str(value)


def _list(where: str, record: Mapping[str, Any], field: str) -> list:
    value = _get(where, record, field)
    return value if isinstance(value, list) else [] if value is None else [value]


def _ids(where: str, record: Mapping[str, Any], field: str) -> list[str]:
    return [_as_id(where, field, value) for value in _list(where, record, field)]


def _passage(
    where: str, record: Mapping[str, Any], of: Mapping[str, str | None]
) -> tuple[str, str, str]:
    title = record.get(of['title']) or ''
    if not isinstance(title, str):
        raise ValueError(f'{where}: field {of["title"]!r} must be a string, found {shown(title)}.')
    text = _text(where, record, of['text'])
    if of['passage_id'] is None:
        return _made_id(title, text), title, text
    return _id(where, record, of['passage_id']), title, text


def _judgement(
    where: str, record: Mapping[str, Any], of: Mapping[str, str | None]
) -> tuple[str, str, int]:
    query = _id(where, record, of['judged_query'])
    passage = _id(where, record, of['judged_passage'])
    value = _get(where, record, of['grade'])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return query, passage, parsing.parse_grade(where, str(value))
