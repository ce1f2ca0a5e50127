"""Collects errors: sentences that name a wrong config field and how to fix it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def catch(check: Callable[..., Any], *args: Any, prefix: str = '', **kwargs: Any) -> Iterator[str]:
    """Yields the message of the error that a check raises, after a prefix and a colon, if any."""
    try:
        check(*args, **kwargs)
    except (ValueError, OSError, ImportError) as error:
        yield f'{prefix}: {error}' if prefix else str(error)


def raise_all(errors: Iterable[str]) -> None:
    """Raises one ValueError that lists all distinct errors, if there is any."""
    unique = list(dict.fromkeys(errors))
    if len(unique) == 1:
        raise ValueError(unique[0])
    if unique:
        raise ValueError('\n- '.join([f'{len(unique)} things are wrong:', *unique]))
