"""The interface of sources of collections, and handlers of errors in their data."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

# Called as on_error(kind, message) for an item that cannot be used. Raises, or returns for the item
# to be left out.
OnError = Callable[[str, str], None]

# Streamed items; each begins with its place, which error messages name.
Passage = tuple[str, str, str, str]  # where, id, title, text
Query = tuple[str, str, str, str]  # where, split, id, text
Judgement = tuple[str, str, str, str, int]  # where, split, query id, passage id, grade
Answer = tuple[str, str, str, Any]  # where, split, query id, answer


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection to import: streams its items on request, and keeps nothing."""

    name: str  # In reports.
    files: Sequence[pathlib.Path]  # When one of them changes, the collection is stale.
    passages: Callable[[OnError], Iterable[Passage]]
    queries: Callable[[OnError], Iterable[Query]]
    qrels: Callable[[OnError], Iterable[Judgement]]
    answers: Callable[[OnError], Iterable[Answer]] = lambda on_error: ()
    license: str | None = None  # Terms of the texts; None if unknown.
    needs_queries: bool = True  # Whether it is an error to have none.


def raise_error(kind: str, message: str) -> None:
    """Raises a ValueError; an `OnError` handler."""
    raise ValueError(message)


def count_errors(counts: dict[str, dict[str, Any]]) -> OnError:
    """Makes a handler that counts errors into {kind: {'count': int, 'first': message}}."""

    def count(kind: str, message: str) -> None:
        counts.setdefault(kind, {'count': 0, 'first': message})['count'] += 1

    return count


def make_on_error(on_error: str, counts: dict[str, dict[str, Any]]) -> OnError:
    """Makes the handler of a config's `on_error`: `stop` raises, `skip` counts.

    Raises:
        ValueError: `on_error` is neither.
    """
    if on_error not in ('stop', 'skip'):
        raise ValueError(f"on_error is '{on_error}'; use stop or skip.")
    return raise_error if on_error == 'stop' else count_errors(counts)


def attempt(on_error: OnError, kind: str, parse: Callable, *args):
    """Returns `parse(*args)`; after a ValueError calls `on_error` and returns None."""
    try:
        return parse(*args)
    except ValueError as error:
        return on_error(kind, str(error))


def log_skipped(name: str, counts: Mapping[str, Mapping[str, Any]]) -> None:
    """Logs the errors that `count_errors` has counted while reading `name`."""
    for kind, errors in counts.items():
        logging.warning(
            '%s: left out %d (%s), the first: %s', name, errors['count'], kind, errors['first']
        )
