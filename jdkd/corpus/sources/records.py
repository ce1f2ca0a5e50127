"""Collections of records with named fields, as tables in files and TFDS datasets have them.

Which of `passages` and `qrels` are given decides between three shapes:

    passages, queries, qrels    three tables, like BEIR's on the Hugging Face hub
    passages, queries           a query's record holds the ids of its positives in `positives`
    queries                     a query's record holds its positive passage too, as in SQuAD

The last needs about 100 bytes a passage in memory while it is read.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jdkd.corpus.sources import base, parsing
from jdkd.corpus.sources.base import OnError, attempt
from jdkd.runtime.messages import brief

Record = Mapping[str, Any]  # Values are strings, numbers, lists and dicts.
# Streams (where, record) of the table of a name.
ReadTable = Callable[[str, OnError], Iterable[tuple[str, Record]]]

# Role -> field; None: there is none. A path such as answers/text leads into inner records, and into
# those of a list.
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
# For records that hold a query and its passage. Without ids, equal texts get equal ones.
_PAIR_FIELDS = {'passage_id': None, 'title': None, 'query_id': None, 'query': 'query'}
_BROKEN = 'broken record'  # Kind of all errors in them.


def make_source(
    name: str,
    find_files: Callable[[str], Iterable[pathlib.Path]],
    read: ReadTable,
    passages: str | None,
    queries: Mapping[str, str],
    qrels: Mapping[str, str] | None,
    fields: Mapping[str, str | None] | None,
) -> base.Source:
    """Makes the source of a collection of records.

    Args:
        find_files: Finds the files of a table by its name.
        passages: Table of passages; None if they stand beside the queries.
        queries: {split: table of queries}.
        qrels: {split: table of judgements}; none if the queries' records hold the positives.
        fields: Fields that differ from FIELDS, by role.

    Raises:
        ValueError: A role is unknown, or the tables do not tell what is relevant.
    """
    unknown = set(fields or {}) - set(FIELDS)
    if unknown:
        raise ValueError(
            f"the option fields has no role '{min(unknown)}'; it has {', '.join(FIELDS)}."
        )
    roles = {**FIELDS, **({} if passages else _PAIR_FIELDS), **(fields or {})}
    if qrels and not passages:
        raise ValueError('the option qrels is given without passages; give both or neither.')
    if passages and not qrels and not roles['positives']:
        raise ValueError(
            'nothing says what is relevant: give the option qrels, or fields.positives, the field '
            "of a query's record that holds the ids of its positives."
        )
    tables = [*([passages] if passages else []), *queries.values(), *(qrels or {}).values()]
    files = dict.fromkeys(file for table in tables for file in find_files(table))
    title_is_named = bool((fields or {}).get('title'))
    reader = _Reader(read, passages, queries, qrels or {}, roles, title_is_named)
    judgements = reader.qrels if qrels else reader.positives
    return base.Source(
        name, tuple(files), reader.passages, reader.queries, judgements, reader.answers
    )


def passages_source(
    name: str,
    files: Sequence[pathlib.Path],
    read: ReadTable,
    fields: Mapping[str, str | None] | None,
) -> base.Source:
    """Makes the source of passages alone, in the table of the source's name.

    Raises:
        ValueError: `fields` has a role that passages do not have.
    """
    roles = ('passage_id', 'title', 'text')
    if unknown := set(fields or {}) - set(roles):
        raise ValueError(
            f"the option fields has no role '{min(unknown)}' for passages; it has "
            f'{", ".join(roles)}.'
        )
    title_is_named = bool((fields or {}).get('title'))
    reader = _Reader(read, name, {}, {}, {**FIELDS, **(fields or {})}, title_is_named)
    return base.Source(name, files, reader.passages, lambda on_error: (), lambda on_error: ())


@dataclasses.dataclass(frozen=True)
class _Reader:
    read: ReadTable
    passage_table: str | None
    query_tables: Mapping[str, str]
    qrels_tables: Mapping[str, str]
    roles: Mapping[str, Any]
    title_is_named: bool  # Whether the option `fields` says where titles are.

    def passages(self, on_error: OnError) -> Iterator[base.Passage]:
        seen, has_title = set(), False
        first: tuple[str, Record] | None = None
        for table in [self.passage_table] if self.passage_table else self.query_tables.values():
            for where, record in self.read(table, on_error):
                first = first or (where, record)
                passage = attempt(on_error, _BROKEN, _passage, where, record, self.roles)
                has_title = has_title or bool(passage and passage[1])
                if passage and not self.passage_table:
                    key = _made_id(*passage)
                    if key in seen:
                        continue  # A passage of several queries has as many records.
                    seen.add(key)
                if passage:
                    yield where, *passage
        if first and not has_title and self.title_is_named:
            _get(*first, self.roles, 'title')  # A title may be missing here and there.

    def queries(self, on_error: OnError) -> Iterator[base.Query]:
        for split, table in self.query_tables.items():
            seen = set()
            for where, record in self.read(table, on_error):
                query = attempt(on_error, _BROKEN, _query_id, where, record, self.roles)
                if query is None:
                    continue
                text = attempt(on_error, _BROKEN, _text, where, record, self.roles, 'query')
                # A query with several passages has as many records.
                if text is not None and (self.passage_table or (query, text) not in seen):
                    seen.add((query, text))
                    yield where, split, query, text

    def qrels(self, on_error: OnError) -> Iterator[base.Judgement]:
        """Judgements that have tables of their own."""
        for split, table in self.qrels_tables.items():
            for where, record in self.read(table, on_error):
                if judgement := attempt(on_error, _BROKEN, _judgement, where, record, self.roles):
                    yield where, split, *judgement

    def positives(self, on_error: OnError) -> Iterator[base.Judgement]:
        """Judgements in the records of queries."""
        ignore = base.count_errors({})  # `passages` and `queries` have reported these errors.
        for split, where, query, record in self._query_records():
            if self.passage_table:
                role = 'positives'
                positives = attempt(on_error, _BROKEN, _ids, where, record, self.roles, role)
            else:
                passage = attempt(ignore, _BROKEN, _passage, where, record, self.roles)
                positives = passage and passage[:1]
            if query is not None:
                for passage_id in positives or ():
                    yield where, split, query, passage_id, 1

    def answers(self, on_error: OnError) -> Iterator[base.Answer]:
        if not self.roles['answers']:
            return
        seen = set()
        for split, where, query, record in self._query_records():
            if query is None:
                continue
            answers = attempt(on_error, _BROKEN, _list, where, record, self.roles, 'answers')
            for answer in answers or ():
                key = split, query, repr(answer)  # It may be anything yet.
                if key not in seen:  # As those of a query's other records.
                    seen.add(key)
                    yield where, split, query, answer

    def _query_records(self) -> Iterator[tuple[str, str, str | None, Record]]:
        """Split, place, query id and record of each query; `queries` reports the faults of these.

        Records of pairs that give an id another text than the first are left out.
        """
        ignore = base.count_errors({})
        for split, table in self.query_tables.items():
            texts: dict[str, str] = {}
            for where, record in self.read(table, ignore):
                query = attempt(ignore, _BROKEN, _query_id, where, record, self.roles)
                if query is not None and not self.passage_table:
                    text = attempt(ignore, _BROKEN, _text, where, record, self.roles, 'query')
                    if text is None or texts.setdefault(query, text) != text:
                        continue
                yield split, where, query, record


def _get(where: str, record: Record, roles: Mapping[str, Any], role: str) -> Any:
    """The value of the field that has a role."""
    try:
        value = _follow(record, roles[role])
    except KeyError:
        raise ValueError(
            f'{where}: there is no field {roles[role]!r}; there are {brief(", ".join(record))}: '
            f'name the right one in the option fields, {{"fields": {{"{role}": "..."}}}}.'
        ) from None
    return parsing.check_once(where, value)


def _follow(value: Any, path: str) -> Any:
    """The value at the end of a path, a list of values where the path goes through a list.

    Raises:
        KeyError: There is no such path.
    """
    if isinstance(value, list):
        return [_follow(inner, path) for inner in value]
    if not isinstance(value, Mapping):
        raise KeyError(path)
    if path in value:  # The name of a field may hold a slash.
        return value[path]
    field, slash, rest = path.partition('/')
    if not slash or field not in value:
        raise KeyError(path)
    inner = value[field]
    return inner if isinstance(inner, parsing.Repeated) else _follow(inner, rest)


def _text(where: str, record: Record, roles: Mapping[str, Any], role: str) -> str:
    return parsing.check_text(where, roles[role], _get(where, record, roles, role))


def _id(where: str, record: Record, roles: Mapping[str, Any], role: str) -> str:
    return parsing.check_id(where, roles[role], _get(where, record, roles, role))


def _list(where: str, record: Record, roles: Mapping[str, Any], role: str) -> list:
    value = _get(where, record, roles, role)
    return value if isinstance(value, list) else [] if value is None else [value]


def _ids(where: str, record: Record, roles: Mapping[str, Any], role: str) -> list[str]:
    values = _list(where, record, roles, role)
    return [parsing.check_id(where, roles[role], value) for value in values]


def _made_id(*texts: str) -> str:
    return hashlib.sha256('\0'.join(texts).encode(errors='surrogatepass')).hexdigest()[:16]


def _query_id(where: str, record: Record, roles: Mapping[str, Any]) -> str:
    if roles['query_id'] is None:
        return _made_id(_text(where, record, roles, 'query'))
    return _id(where, record, roles, 'query_id')


def _passage(where: str, record: Record, roles: Mapping[str, Any]) -> tuple[str, str, str]:
    title = None
    if roles['title']:
        with contextlib.suppress(KeyError):
            title = _follow(record, roles['title'])
    title = '' if title is None else parsing.check_text(where, roles['title'], title)
    text = _text(where, record, roles, 'text')
    if roles['passage_id'] is None:
        return _made_id(title, text), title, text
    return _id(where, record, roles, 'passage_id'), title, text


def _judgement(where: str, record: Record, roles: Mapping[str, Any]) -> tuple[str, str, int]:
    query = _id(where, record, roles, 'judged_query')
    passage = _id(where, record, roles, 'judged_passage')
    return query, passage, parsing.parse_grade(where, _get(where, record, roles, 'grade'))
