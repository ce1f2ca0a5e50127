"""A collection: passages, queries in splits, and relevance judgements (qrels)."""

import collections
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging

from jdkd.corpus.passages import Column, IdIndex, Passages, text_digest

_HELD_OUT = 32  # Queries of a new split, at least, if they are at most half of all.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Collection:
    """Passages, and the queries and judgements of each split.

    Passages may be larger than memory; queries and judgements are dicts (about 1 KB a query).
    Answers are strings that a relevant passage contains (see `jdkd.retrieval.answers`), in addition
    to judgements or instead of them.
    """

    name: str
    passages: Passages
    queries: Mapping[str, Mapping[str, str]]  # {split: {query id: text}}
    # {split: {query id: {passage id: grade}}}; a positive has a grade above 0.
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]]
    # {split: {query id: [answer, ...]}}
    answers: Mapping[str, Mapping[str, list[str]]] = dataclasses.field(default_factory=dict)
    license: str | None = None  # Terms of the texts; None if unknown.
    missing: frozenset[str] = frozenset()  # Ids of judged passages that do not exist.
    made: frozenset[str] = frozenset()  # Ids of pseudo-queries.
    # Whether a query's id is that of its positive, as in a list of numbered questions and answers,
    # so that equal ids do not mean equal texts.
    ids_pair: bool = False

    def __repr__(self) -> str:
        splits = ', '.join(f'{split} {len(q)}' for split, q in self.queries.items())
        return f'Collection({self.name!r}: {len(self)} passages; queries: {splits})'

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def passage_ids(self) -> Column:
        return self.passages.ids

    @property
    def id_index(self) -> IdIndex:
        """Passage id -> row."""
        return self.passages.id_index

    @property
    def group(self) -> np.ndarray:
        """`[P]` int32: the first row of the same text; see `Passages`."""
        return self.passages.group

    def labelled(self, split: str) -> list[str]:
        """Returns the ids of a split's queries that have a positive to train on, in order.

        Raises:
            ValueError: The collection lacks the split.
        """
        self._require(split)
        return [q for q in self.queries[split] if self.positives(split, q)]

    def _require(self, split: str) -> None:
        if split not in self.queries:
            raise ValueError(
                f'collection {self.name!r} has no split {split!r}; it has '
                f'{", ".join(map(repr, self.queries)) or "none"}; name one of these in '
                'collection.train_split, eval_split or test_split (None: nothing is tested; '
                'configs/unlabelled.py trains without labels, and without a train split).'
            )

    def unlabelled(self, split: str) -> list[str]:
        """Returns the ids of a split's queries that have no positive to train on, in order.

        Pseudo-queries are left out.
        """
        own = (q for q in self.queries[split] if q not in self.made)
        return [q for q in own if not self.positives(split, q)]

    def positives(self, split: str, query: str) -> dict[str, int]:
        """Returns the grades of a query's positives that exist, {passage id: grade}."""
        grades = self.qrels.get(split, {}).get(query, {})
        return {p: grade for p, grade in grades.items() if grade > 0 and p not in self.missing}

    def measurable(self, split: str) -> list[str]:
        """Returns the ids of a split's queries that have a judgement or an answer, in order.

        As in trec_eval, a query without a positive, or whose positives do not exist, counts too.
        There are none if no query of the split has a grade above 0 or an answer.

        Raises:
            ValueError: The collection lacks the split.
        """
        self._require(split)
        qrels, answers = self.qrels.get(split, {}), self.answers.get(split, {})
        if not answers and not any(g > 0 for grades in qrels.values() for g in grades.values()):
            return []
        return [q for q in self.queries[split] if qrels.get(q) or q in answers]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all fields, each item preceded by its length."""
        digest = hashlib.sha256()

        def add(items: Iterable[str]) -> None:
            encoded = [item.encode() for item in items]
            digest.update(b'%d;' % len(encoded))
            for item in encoded:
                digest.update(b'%d:' % len(item))
                digest.update(item)

        add([self.name, self.license or '', self.passages.fingerprint])
        add(self.queries)
        for split_queries in self.queries.values():
            add(split_queries)
            add(split_queries.values())
        add(self.qrels)
        for split_qrels in self.qrels.values():
            add(split_qrels)
            for grades in split_qrels.values():
                add(grades)
                add(map(str, grades.values()))
        add(self.answers)
        for split_answers in self.answers.values():
            add(split_answers)
            for strings in split_answers.values():
                add(strings)
        return digest.hexdigest()


def pairs_ids(collection: Collection) -> bool:
    """Whether most queries with a passage's id and a positive have that passage as a positive."""
    judged = {
        query: grades
        for split in collection.qrels.values()
        for query, grades in split.items()
        if any(grade > 0 for grade in grades.values())
    }
    own = sum(grades.get(query, 0) > 0 for query, grades in judged.items())
    if not own:
        return False
    return 2 * own > int((collection.id_index.find(list(judged)) >= 0).sum())


def forget_labels(collection: Collection, splits: Iterable[str]) -> Collection:
    """Removes the judgements and answers of splits, and keeps their queries."""
    splits = set(splits)
    qrels, answers = (
        {split: labels for split, labels in owner.items() if split not in splits}
        for owner in (collection.qrels, collection.answers)
    )
    return dataclasses.replace(collection, qrels=qrels, answers=answers)


def hold_out(
    collection: Collection,
    split: str = 'train',
    to: str = 'dev',
    *,
    fraction: float,
    seed: int = 0,
) -> Collection:
    """Moves a fraction of a split's labelled queries to a new split, unless that split exists.

    Where none is labelled, all its queries take part. At least 32 are moved, or half of fewer than
    64: weights and scales are fitted to them. Moves those with the smallest hashes of (seed, id),
    at least one and never all, so that the choice does not depend on the order of the file. A query
    whose text occurs again, in any split, is not moved.

    Raises:
        ValueError: `split` is missing or has fewer than two such queries, or none of them has a
            text of its own, or `fraction` is not in (0, 1).
    """
    if to in collection.queries:
        return collection
    if not 0 < fraction < 1:
        raise ValueError(f'hold_out: fraction must lie between 0 and 1, not {fraction}.')
    ids = collection.labelled(split) or list(collection.queries[split])
    if len(ids) < 2:
        raise ValueError(
            f'hold_out: split {split!r} of collection {collection.name!r} has {len(ids)} queries, '
            f'too few to make a split {to!r} from; add queries.'
        )
    texts = collections.Counter(
        text_digest('', text)
        for queries in collection.queries.values()
        for text in queries.values()
    )
    own = [q for q in ids if texts[text_digest('', collection.queries[split][q])] == 1]
    if not own:
        raise ValueError(
            f'hold_out: every labelled query of split {split!r} of collection {collection.name!r} '
            f'has the text of another query, so that none can be held out as {to!r}; name a split '
            'of other queries as collection.eval_split.'
        )
    least = min(_HELD_OUT, len(ids) // 2)
    count = min(max(math.ceil(fraction * len(ids)), least), len(ids) - 1)
    moved = _smallest_hashes(own, count, f'{seed}')
    fields = {}
    for name in ('queries', 'qrels', 'answers'):
        splits = fields[name] = dict(getattr(collection, name))
        if split in splits:
            items = splits[split].items()
            splits[to] = {q: x for q, x in items if q in moved}
            splits[split] = {q: x for q, x in items if q not in moved}
    return dataclasses.replace(collection, **fields)


def drop_repeated(collection: Collection, split: str, others: Iterable[str]) -> Collection:
    """Removes the queries of a split whose text other splits or an earlier query of it have.

    Raises:
        ValueError: None would be left.
    """
    queries = collection.queries[split]
    seen = {
        text_digest('', text) for s in others for text in collection.queries.get(s, {}).values()
    }
    kept = {}
    for query, text in queries.items():
        if (key := text_digest('', text)) not in seen:
            seen.add(key)
            kept[query] = text
    if len(kept) == len(queries):
        return collection
    if not kept:
        raise ValueError(
            f'every query of split {split!r} of collection {collection.name!r} has the text of a '
            'train or test query; name a split of other queries as collection.eval_split.'
        )
    logging.warning(
        '%s: %d of the %d queries of split %r have the text of a train, test or earlier query, '
        'and are left out.',
        collection.name,
        len(queries) - len(kept),
        len(queries),
        split,
    )
    return dataclasses.replace(collection, queries={**collection.queries, split: kept})


def keep_labels(collection: Collection, split: str, *, share: float, seed: int = 0) -> Collection:
    """Keeps the judgements of a share of a split's labelled queries, and all its queries.

    Keeps those with the smallest hashes of (seed, id), at least one: a larger share keeps them too.
    A share of 0 keeps none.
    """
    if not share:
        return forget_labels(collection, [split])
    ids = collection.labelled(split)
    kept = _smallest_hashes(ids, max(round(share * len(ids)), 1), f'{seed}:labels')
    if len(kept) == len(ids):
        return collection
    qrels = {q: grades for q, grades in collection.qrels[split].items() if q in kept}
    return dataclasses.replace(collection, qrels={**collection.qrels, split: qrels})


def drop_unlabelled(collection: Collection, split: str) -> Collection:
    """Removes the queries of a split that have no positive."""
    kept = {q: collection.queries[split][q] for q in collection.labelled(split)}
    return dataclasses.replace(collection, queries={**collection.queries, split: kept})


def _smallest_hashes(ids: Iterable[str], count: int, seed: str) -> set[str]:
    """Chooses the ids with the smallest hashes, whatever the order of the ids."""
    return set(sorted(ids, key=lambda q: hashlib.sha256(f'{seed}:{q}'.encode()).digest())[:count])
