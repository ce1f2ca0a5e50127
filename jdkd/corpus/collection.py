"""A collection: passages, queries in splits, and the judgements (qrels) that join them."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np

from jdkd.corpus.passages import Column, IdIndex, Passages


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Collection:
    """Passages, and for each split its queries and what is relevant to them.

    Passages may be larger than memory; queries and judgements are dicts (about 1 KB a query).

    Attributes:
      name: what reports call it.
      passages: each passage as a str, and the columns behind them.
      queries: split -> {query id: text}, with or without judgements.
      qrels: split -> {query id: {passage id: grade}}; a positive has a grade above 0.
      answers: split -> {query id: [answer, ...]}: strings that a relevant passage contains (see
        `jdkd.retrieval.answers`), beside the judgements or instead of them.
      license: the terms of the texts, or None if unknown.
    """

    name: str
    passages: Passages
    queries: Mapping[str, Mapping[str, str]]
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]]
    answers: Mapping[str, Mapping[str, list[str]]] = dataclasses.field(default_factory=dict)
    license: str | None = None

    def __repr__(self) -> str:
        splits = ', '.join(f'{split} {len(q)}' for split, q in self.queries.items())
        return f'Collection({self.name!r}: {len(self)} passages; queries: {splits})'

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def passage_ids(self) -> Column:
        return self.passages.ids

    @property
    def titles(self) -> Column:
        return self.passages.titles

    @property
    def texts(self) -> Column:
        return self.passages.texts

    @property
    def id_index(self) -> IdIndex:
        """Passage id -> row."""
        return self.passages.id_index

    @property
    def group(self) -> np.ndarray:
        """int32 [P]: the first row of the same text; see `Passages`."""
        return self.passages.group

    def passage(self, i: int) -> str:
        """Row i as encoders and BM25 read it: title and text, joined as BEIR joins them."""
        return self.passages[i]

    def labelled(self, split: str) -> list[str]:
        """Ids of the split's queries that have a positive, in the collection's order.

        Raises:
          ValueError: there is no such split.
        """
        qrels = self.qrels.get(split, {})
        return [q for q in self._split(split) if has_positive(qrels.get(q, {}))]

    def measurable(self, split: str) -> list[str]:
        """Ids of the split's queries that have a positive or an answer, in order.

        Raises:
          ValueError: there is no such split.
        """
        qrels, answers = self.qrels.get(split, {}), self.answers.get(split, {})
        return [q for q in self._split(split) if has_positive(qrels.get(q, {})) or q in answers]

    def _split(self, split: str) -> Mapping[str, str]:
        if split not in self.queries:
            raise ValueError(
                f'collection {self.name!r} has no split {split!r}; it has '
                f'{", ".join(map(repr, self.queries)) or "none"}.'
            )
        return self.queries[split]

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


def has_positive(grades: Mapping[str, int]) -> bool:
    """Whether one of the grades makes its passage relevant."""
    return any(grade > 0 for grade in grades.values())


def for_training(collection: Collection, spec, *, seed: int) -> Collection:
    """The collection with D_eval held out, and with the labels and queries that are to train on.

    Args:
        collection: As it was imported.
        spec: `config.collection`.
        seed: Of the run.
    """
    split = spec.train_split
    found = hold_out(collection, split, spec.eval_split, fraction=spec.eval_fraction, seed=seed)
    found = keep_labels(found, split, share=spec.label_share, seed=seed)
    return without_unlabelled(found, split) if spec.unlabelled == 'skip' else found


def hold_out(
    collection: Collection,
    split: str = 'train',
    to: str = 'dev',
    *,
    fraction: float,
    seed: int = 0,
) -> Collection:
    """Moves a fraction of a split's labelled queries to a new split, unless that split exists.

    The queries moved are those with the smallest hash of (seed, id), at least one of them and
    never all, so they do not depend on the order of the file.

    Raises:
      ValueError: `split` is missing or has fewer than two labelled queries, or fraction is not in
        (0, 1).
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
    moved = _drawn(ids, count, f'{seed}')
    fields = {}
    for name in ('queries', 'qrels', 'answers'):
        splits = fields[name] = dict(getattr(collection, name))
        if split in splits:
            items = splits[split].items()
            splits[to] = {q: x for q, x in items if q in moved}
            splits[split] = {q: x for q, x in items if q not in moved}
    return dataclasses.replace(collection, **fields)


def keep_labels(collection: Collection, split: str, *, share: float, seed: int = 0) -> Collection:
    """Takes the judgements of a split's queries away, but for a share of the labelled ones.

    Those that stay have the smallest hash of (seed, id), at least one of them: they are among those
    that stay of a larger share.

    Args:
        collection: Whose.
        split: Which; all its queries stay.
        share: Of the labelled queries, above 0.
        seed: Of the run.
    """
    ids = collection.labelled(split)
    kept = _drawn(ids, max(round(share * len(ids)), 1), f'{seed}:labels')
    if len(kept) == len(ids):
        return collection
    qrels = {q: grades for q, grades in collection.qrels[split].items() if q in kept}
    return dataclasses.replace(collection, qrels={**collection.qrels, split: qrels})


def without_unlabelled(collection: Collection, split: str) -> Collection:
    """The collection with those queries of a split alone that have a positive."""
    kept = {q: collection.queries[split][q] for q in collection.labelled(split)}
    return dataclasses.replace(collection, queries={**collection.queries, split: kept})


def _drawn(ids: Iterable[str], count: int, seed: str) -> set[str]:
    """Those with the smallest hashes, which do not depend on the order of the ids."""
    return set(sorted(ids, key=lambda q: hashlib.sha256(f'{seed}:{q}'.encode()).digest())[:count])
