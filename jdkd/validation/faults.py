"""Faults: sentences, each with the field that is wrong and how to mend it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def caught(check: Callable[..., Any], *args: Any, of: str = '') -> Iterator[str]:
    """The sentence that a check raises, if it does.

    Args:
        check: Called with `args`.
        *args: For it.
        of: Put before the sentence.
    """
    try:
        check(*args)
    except (ValueError, OSError, ImportError) as error:
        yield f'{of}: {error}' if of else str(error)


def raise_all(sentences: Iterable[str]) -> None:
    """Raises all faults at once.

    Raises:
        ValueError: if there is one.
    """
    found = list(dict.fromkeys(sentences))
    if len(found) == 1:
        raise ValueError(found[0])
    if found:
        raise ValueError(f'{len(found)} things are wrong:\n' + '\n'.join(f'- {s}' for s in found))
