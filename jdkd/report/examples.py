"""Test queries on which two systems differ most, to be read."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from jdkd.corpus.collection import Collection
from jdkd.retrieval import measures

_EXAMPLES = 5  # Of wins, and of losses.
_LONGEST = 300  # Characters of a text.


@dataclasses.dataclass(frozen=True)
class Tested:
    """A system and what is known of it, query by query; see `evaluate.Measured`."""

    name: str
    per_query: Mapping[str, Mapping[str, float]]
    first: Mapping[str, str]


def load(directory: pathlib.Path, system: str, name: str | None = None) -> Tested:
    """A system of a test stage.

    Args:
        directory: The stage.
        system: Its name there.
        name: What it is called; `system` by default.
    """
    return Tested(
        name or system,
        measures.load_per_query(directory, system),
        measures.load_first(directory, system),
    )


@dataclasses.dataclass(frozen=True)
class Example:
    """A query, what it was measured at, and what was found; texts are cut.

    Attributes:
        query: Its text.
        ours: The measure of the system that is looked at.
        theirs: Of the one that it is compared with.
        wanted: The judged passage of the highest grade, or the answers.
        found: {system: the passage that it ranks first}, or '' where there is none.
    """

    query: str
    ours: float
    theirs: float
    wanted: str
    found: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Duel:
    """Two systems, query by query.

    Attributes:
        ours: Name of the system that is looked at.
        theirs: Of the one that it is compared with.
        measure: What they are compared by.
        differences: {query id: ours less theirs}.
        wins: Where ours is better by most; of equal ones the first of the collection.
        losses: Where it is worse by most.
    """

    ours: str
    theirs: str
    measure: str
    differences: Mapping[str, float]
    wins: Sequence[Example]
    losses: Sequence[Example]


def duel(
    collection: Collection,
    split: str,
    measure: str,
    ours: Tested,
    theirs: Tested,
) -> Duel | None:
    """Compares two systems on the queries that both were measured on; None if there are none.

    Args:
        collection: Of the queries.
        split: Of the queries.
        measure: What they are compared by.
        ours: The system that is looked at.
        theirs: The one that it is compared with.
    """
    our_values, their_values = ours.per_query, theirs.per_query
    found = {
        query_id: values[measure] - their_values[query_id][measure]
        for query_id, values in our_values.items()
        if measure in values and measure in their_values.get(query_id, ())
    }
    if not found:
        return None

    def examples(query_ids):
        return [
            Example(
                query=_cut(collection.queries[split][query_id]),
                ours=our_values[query_id][measure],
                theirs=their_values[query_id][measure],
                wanted=_wanted(collection, split, query_id),
                found={s.name: _passage(collection, s.first.get(query_id)) for s in (ours, theirs)},
            )
            for query_id in query_ids
        ]

    falling = sorted(found, key=lambda query_id: -found[query_id])[:_EXAMPLES]
    rising = sorted(found, key=lambda query_id: found[query_id])[:_EXAMPLES]
    return Duel(
        ours.name,
        theirs.name,
        measure,
        found,
        wins=examples(query_id for query_id in falling if found[query_id] > 0),
        losses=examples(query_id for query_id in rising if found[query_id] < 0),
    )


def _wanted(collection: Collection, split: str, query_id: str) -> str:
    grades = collection.qrels.get(split, {}).get(query_id, {})
    best = max(grades, key=grades.get, default=None)
    if best is not None and grades[best] > 0:
        return _passage(collection, best)
    return _cut(' / '.join(collection.answers.get(split, {}).get(query_id, [])))


def _passage(collection: Collection, passage_id: str | None) -> str:
    return '' if passage_id is None else _cut(collection.passages[collection.id_index[passage_id]])


def _cut(text: str) -> str:
    """The beginning of a text, on one line, without what a browser would obey."""
    text = ''.join(c if c.isprintable() else ' ' for c in text[: 4 * _LONGEST])
    text = ' '.join(text.split())
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST].rstrip()} ...'
