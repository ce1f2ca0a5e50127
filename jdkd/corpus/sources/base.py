"""What every source of a collection provides, and how errors in its data are handled."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

# (kind, message): told of an item that cannot be used. It raises, or returns for the item to be
# left out.
OnError = Callable[[str, str], None]


def raise_error(kind: str, message: str) -> None:
    """The OnError that raises.

    Raises:
        ValueError: always.
    """
    del kind
    raise ValueError(message)


def count_errors(counts: dict[str, dict[str, Any]]) -> OnError:
    """A OnError that counts into `counts`: {kind: {'count': how many, 'first': message}}."""

    def count(kind: str, message: str) -> None:
        counts.setdefault(kind, {'count': 0, 'first': message})['count'] += 1

    return count


def make_on_error(on_error: str, counts: dict[str, dict[str, Any]]) -> OnError:
    """The OnError of a config's `on_error`: `stop`, or `skip`, which counts.

    Raises:
        ValueError: if it is neither.
    """
    if on_error not in ('stop', 'skip'):
        raise ValueError(f"on_error is '{on_error}'; use stop or skip.")
    return raise_error if on_error == 'stop' else count_errors(counts)


def log_skipped(name: str, counts: Mapping[str, Mapping[str, Any]]) -> None:
    """Logs what a OnError has counted.

    Args:
        name: Of what was read.
        counts: As `counting` leaves them.
    """
    for kind, found in counts.items():
        logging.warning(
            '%s: left out %d (%s), the first: %s', name, found['count'], kind, found['first']
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection to be read: nothing is before it is asked for, and nothing is kept.

    Each function takes a OnError and streams tuples that begin with the place which messages name.

    Attributes:
        name: What reports call the collection.
        files: What is read; a collection is read again when one of them has changed.
        passages: Streams (where, id, title, text).
        queries: Streams (where, split, id, text).
        qrels: Streams (where, split, query id, passage id, grade).
        answers: Streams (where, split, query id, answer).
        license: The terms of the texts, or None if unknown.
    """

    name: str
    files: Sequence[pathlib.Path]
    passages: Callable[[OnError], Iterable[tuple[str, str, str, str]]]
    queries: Callable[[OnError], Iterable[tuple[str, str, str, str]]]
    qrels: Callable[[OnError], Iterable[tuple[str, str, str, str, int]]]
    answers: Callable[[OnError], Iterable[tuple[str, str, str, str]]] = lambda fault: ()
    license: str | None = None
