"""Finds the test queries on which two systems differ most."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from jdkd.corpus.collection import Collection
from jdkd.retrieval import measures

_EXAMPLES = 5  # Wins, and as many losses.
_LONGEST = 300  # Characters of a text.


@dataclasses.dataclass(frozen=True)
class Tested:
    """Results of a system on the test split, query by query; see `measures.Measurements`."""

    name: str
    per_query: Mapping[str, Mapping[str, float]]
    first: Mapping[str, str]


def load(directory: pathlib.Path, system: str, name: str | None = None) -> Tested:
    """Loads the results of a system from the test stage's directory; `name` is shown instead."""
    per_query = measures.load(directory, system)
    return Tested(name or system, per_query, measures.load(directory, system, 'first'))


@dataclasses.dataclass(frozen=True)
class Example:
    """A query on which two systems differ; long texts are cut."""

    query: str  # Its text.
    ours: float  # Measure of the first system.
    theirs: float
    wanted: str  # The judged passage of the highest grade, or the answers.
    top: Mapping[str, str]  # {system: the passage it ranks first, '' if none}


@dataclasses.dataclass(frozen=True)
class Duel:
    """Two systems, query by query."""

    ours: str  # Name of the first system.
    theirs: str
    measure: str
    differences: Mapping[str, float]  # {query id: measure of ours less that of theirs}
    wins: Sequence[Example]  # Where ours is better by most; ties keep the collection's order.
    losses: Sequence[Example]  # Where ours is worse by most.


def duel(
    collection: Collection, split: str, measure: str, ours: Tested, theirs: Tested
) -> Duel | None:
    """Contrasts two systems on the queries of `split` with both measures; None without any."""
    our_values, their_values = ours.per_query, theirs.per_query
    differences = {
        query_id: values[measure] - their_values[query_id][measure]
        for query_id, values in our_values.items()
        if measure in values and measure in their_values.get(query_id, ())
    }
    if not differences:
        return None

    def examples(query_ids):
        return [
            Example(
                query=_cut(collection.queries[split][query_id]),
                ours=our_values[query_id][measure],
                theirs=their_values[query_id][measure],
                wanted=_wanted(collection, split, query_id),
                top={s.name: _passage(collection, s.first.get(query_id)) for s in (ours, theirs)},
            )
            for query_id in query_ids
        ]

    rising = sorted(differences, key=lambda query_id: differences[query_id])
    falling = sorted(differences, key=lambda query_id: -differences[query_id])
    wins = examples(query_id for query_id in falling[:_EXAMPLES] if differences[query_id] > 0)
    losses = examples(query_id for query_id in rising[:_EXAMPLES] if differences[query_id] < 0)
    return Duel(ours.name, theirs.name, measure, differences, wins, losses)


def _wanted(collection: Collection, split: str, query_id: str) -> str:
    grades = collection.positives(split, query_id)
    best = max(grades, key=lambda passage_id: grades[passage_id], default=None)
    if best is not None:
        return _passage(collection, best)
    return _cut(' / '.join(collection.answers.get(split, {}).get(query_id, [])))


def _passage(collection: Collection, passage_id: str | None) -> str:
    return '' if passage_id is None else _cut(collection.passages[collection.id_index[passage_id]])


def _cut(text: str) -> str:
    """The beginning of a text, on one line, without control characters."""
    text = ''.join(c if c.isprintable() else ' ' for c in text[: 4 * _LONGEST])
    text = ' '.join(text.split())
    return text if len(text) <= _LONGEST else f'{text[:_LONGEST].rstrip()} ...'
