"""A collection: passages, queries in splits, and the judgements (qrels) that join them."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Container, Iterable

import numpy as np
from absl import logging

# (kind, key) -> the place that an error message names; see `validate`.
Where = Callable[[str, object], str]

# Whitespace and control characters: a TREC run file cannot hold an id with one of them.
_NOT_IN_ID = re.compile(r'[\s\x00-\x1f\x7f-\x9f]')


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Collection:
    """Passages, and for each split its queries and their graded judgements.

    Attributes:
      name: what reports call it.
      passage_ids: passage ids; the position in this list is the passage's row everywhere.
      titles: one title a passage, possibly empty.
      texts: one text a passage.
      queries: split -> {query id: text}.
      qrels: split -> {query id: {passage id: grade}}; a positive has a grade above 0.
      license: the terms of the texts, or None if unknown.
    """

    name: str
    passage_ids: list[str]
    titles: list[str]
    texts: list[str]
    queries: dict[str, dict[str, str]]
    qrels: dict[str, dict[str, dict[str, int]]]
    license: str | None = None

    def __repr__(self) -> str:
        splits = ', '.join(f'{split} {len(q)}' for split, q in self.queries.items())
        return f'Collection({self.name!r}: {len(self.passage_ids)} passages; queries: {splits})'

    def __len__(self) -> int:
        return len(self.passage_ids)

    def passage(self, i: int) -> str:
        """Row i as encoders and BM25 read it: title and text, joined as BEIR joins them."""
        return f'{self.titles[i]} {self.texts[i]}'.strip()

    def labelled(self, split: str) -> list[str]:
        """Ids of the split's queries that have a positive, in the collection's order.

        Raises:
          ValueError: there is no such split.
        """
        if split not in self.queries:
            raise ValueError(
                f'collection {self.name!r} has no split {split!r}; it has '
                f'{", ".join(map(repr, self.queries)) or "none"}.'
            )
        qrels = self.qrels.get(split, {})
        return [q for q in self.queries[split] if _has_positive(qrels.get(q, {}))]

    @functools.cached_property
    def row(self) -> dict[str, int]:
        """Passage id -> row."""
        return {passage_id: i for i, passage_id in enumerate(self.passage_ids)}

    @functools.cached_property
    def group(self) -> np.ndarray:
        """int32 [P]: the first row whose passage is equal but for case and whitespace.

        Rows of one group are the same text under several ids: none can be a negative of another.
        """
        first: dict[bytes, int] = {}
        group = np.empty(len(self), np.int32)
        for i in range(len(self)):
            key = ' '.join(self.passage(i).casefold().split())
            # Digests, since the texts of millions of passages would not fit twice.
            group[i] = first.setdefault(hashlib.blake2b(key.encode(), digest_size=16).digest(), i)
        return group

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all the fields, each item with its length before it."""
        digest = hashlib.sha256()

        def add(items: Iterable[str]) -> None:
            encoded = [item.encode() for item in items]
            digest.update(b'%d;' % len(encoded))
            for item in encoded:
                digest.update(b'%d:' % len(item))
                digest.update(item)

        add([self.name, self.license or ''])
        for items in (self.passage_ids, self.titles, self.texts, list(self.queries)):
            add(items)
        for split_queries in self.queries.values():
            add(split_queries)
            add(split_queries.values())
        add(self.qrels)
        for split_qrels in self.qrels.values():
            add(split_qrels)
            for grades in split_qrels.values():
                add(grades)
                add(map(str, grades.values()))
        return digest.hexdigest()


def validate(collection: Collection, where: Where | None = None) -> Collection:
    """Checks a collection that a source has read; every source ends with it.

    Queries without a positive are left out, counted and logged. Empty passages stay, counted and
    logged: published collections have them, even as positives, and without them the measures
    would disagree with trec_eval's on the published judgements.

    Args:
      collection: what was read.
      where: (kind, key) -> the place to name in a message. Kinds and their keys: "passage", row;
        "query", id; "qrel", (split, query id, passage id); "split", split.

    Returns:
      The collection, less what was left out.

    Raises:
      ValueError: one sentence that names the place, the fault and the way to mend it.
    """
    where = where or (lambda kind, key: f'collection {collection.name!r}, {kind} {key!r}')
    if not collection.passage_ids or not collection.queries:
        raise ValueError(
            f'collection {collection.name!r} has {len(collection)} passages and '
            f'{len(collection.queries)} splits of queries: it needs at least one of each.'
        )
    _check_passages(collection, where)
    _check_queries(collection, where)
    _check_qrels(collection, where)
    return _without_unlabelled(collection, where)


def hold_out(
    collection: Collection,
    split: str = 'train',
    to: str = 'dev',
    *,
    fraction: float,
    seed: int = 0,
) -> Collection:
    """Moves a fraction of a split's queries to a new split; no change if that split exists.

    The queries moved are those with the smallest hash of (seed, id), at least one of them and
    never all, so they do not depend on the order of the file.

    Raises:
      ValueError: `split` is missing or has fewer than two queries, or fraction is not in (0, 1).
    """
    if to in collection.queries:
        return collection
    if not 0 < fraction < 1:
        raise ValueError(f'hold_out: fraction must lie between 0 and 1, not {fraction}.')
    ids = collection.labelled(split)
    if len(ids) < 2:
        raise ValueError(
            f'hold_out: split {split!r} of collection {collection.name!r} has {len(ids)} queries, '
            f'too few to make a split {to!r} from; add queries.'
        )
    count = min(math.ceil(fraction * len(ids)), len(ids) - 1)
    moved = set(sorted(ids, key=lambda q: hashlib.sha256(f'{seed}:{q}'.encode()).digest())[:count])
    queries, qrels = dict(collection.queries), dict(collection.qrels)
    for splits in (queries, qrels):
        items = splits[split].items()
        splits[to] = {q: x for q, x in items if q in moved}
        splits[split] = {q: x for q, x in items if q not in moved}
    return dataclasses.replace(collection, queries=queries, qrels=qrels)


def _has_positive(grades: dict[str, int]) -> bool:
    return any(grade > 0 for grade in grades.values())


def _id_fault(what: str, item_id: str, seen: Container[str]) -> str | None:
    if not item_id or _NOT_IN_ID.search(item_id):
        return (
            f'{what} id {item_id!r} is empty or holds whitespace or a control character, '
            'which TREC run files cannot hold; rename it.'
        )
    if item_id in seen:
        return f'{what} id {item_id!r} occurs a second time; remove one of the two or rename it.'
    return None


def _text_fault(*texts: str) -> str | None:
    try:
        ''.join(texts).encode()
    except UnicodeEncodeError:
        return 'the text holds a lone surrogate, which UTF-8 cannot hold; remove it.'
    return None


def _check_passages(collection: Collection, where: Where) -> None:
    columns = collection.passage_ids, collection.titles, collection.texts
    if len(set(map(len, columns))) != 1:
        ids, titles, texts = map(len, columns)
        raise ValueError(
            f'collection {collection.name!r} has {ids} passage ids, {titles} titles and {texts} '
            'texts: give each passage one of each.'
        )
    seen: set[str] = set()
    empty = []
    for i, fields in enumerate(zip(*columns, strict=True)):
        fault = _id_fault('passage', fields[0], seen) or _text_fault(*fields)
        if fault:
            raise ValueError(f'{where("passage", i)}: {fault}')
        seen.add(fields[0])
        if not collection.passage(i):
            empty.append(i)
    if empty:
        logging.warning(
            '%s: %d passages are empty, the first at %s; no query will find them.',
            collection.name,
            len(empty),
            where('passage', empty[0]),
        )


def _check_queries(collection: Collection, where: Where) -> None:
    seen: dict[str, str] = {}
    for queries in collection.queries.values():
        for query, text in queries.items():
            fault = _id_fault('query', query, ()) or _text_fault(query, text)
            if not text.strip():
                fault = f'query {query!r} has no text; write one or remove the query.'
            elif seen.setdefault(query, text) != text:
                fault = f'query id {query!r} has another text in another split; rename one.'
            if fault:
                raise ValueError(f'{where("query", query)}: {fault}')
    shared = sum(map(len, collection.queries.values())) - len(seen)
    if shared:
        logging.warning('%s: %d queries occur in more than one split.', collection.name, shared)


def _check_qrels(collection: Collection, where: Where) -> None:
    for split, split_qrels in collection.qrels.items():
        queries = collection.queries.get(split, {})
        for query, grades in split_qrels.items():
            for passage in grades:
                if query not in queries:
                    unknown = f'query {query!r}'
                elif passage not in collection.row:
                    unknown = f'passage {passage!r}'
                else:
                    continue
                raise ValueError(
                    f'{where("qrel", (split, query, passage))}: the judgement names {unknown}, '
                    'which does not exist; add it or remove the judgement.'
                )


def _without_unlabelled(collection: Collection, where: Where) -> Collection:
    queries, qrels = {}, {}
    for split in collection.queries:
        ids = collection.labelled(split)
        if not ids:
            raise ValueError(
                f'{where("split", split)}: split {split!r} has no query with a positive '
                '(a grade above 0); add judgements or remove the split.'
            )
        dropped = len(collection.queries[split]) - len(ids)
        if dropped:
            logging.warning(
                "%s: left out %d queries of split %r that have no positive.",
                collection.name, dropped, split,
            )  # fmt: skip
        queries[split] = {q: collection.queries[split][q] for q in ids}
        qrels[split] = {q: collection.qrels[split][q] for q in ids}
    return dataclasses.replace(collection, queries=queries, qrels=qrels)
