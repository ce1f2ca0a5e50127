"""Collects errors: sentences that name a wrong config field and how to fix it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def catch(check: Callable[..., Any], *args: Any, prefix: str = '') -> Iterator[str]:
    """Yields the message of the error that a check raises, if it raises one.

    Args:
        check: Function to call with `args`.
        *args: Its arguments.
        prefix: Name put before the message, followed by a colon.
    """
    try:
        check(*args)
    except (ValueError, OSError, ImportError) as error:
        yield f'{prefix}: {error}' if prefix else str(error)


def raise_all(errors: Iterable[str]) -> None:
    """Raises one error that lists all distinct ones.

    Raises:
        ValueError: if there is any.
    """
    unique = list(dict.fromkeys(errors))
    if len(unique) == 1:
        raise ValueError(unique[0])
    if unique:
        raise ValueError('\n- '.join([f'{len(unique)} things are wrong:', *unique]))
