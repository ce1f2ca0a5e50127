"""Where collections come from, by the name that a config gives."""

import functools
import inspect

from jdkd.data import beir, python_docs
from jdkd.data.collection import Collection

SOURCES = ('python_docs', 'beir:PATH')


def load(source: str, **options) -> Collection:
    """Reads a collection.

    Args:
        source: `python_docs` (the documentation of the Python that runs this) or `beir:PATH` (a
            directory in BEIR layout).
        **options: Keyword arguments of the source's own `load`.

    Raises:
        ValueError: the source or an option is unknown, or the data is bad.
        FileNotFoundError: the source's directory or a file in it is missing.
    """
    kind, colon, path = source.partition(':')
    if kind == 'beir' and path:
        read = functools.partial(beir.load, path)
    elif kind == 'python_docs' and not colon:
        read = python_docs.load
    else:
        raise ValueError(f'unknown collection source {source!r}: use one of {", ".join(SOURCES)}.')
    known = [p for p in inspect.signature(read).parameters if p != 'path']
    for option in options:
        if option not in known:
            raise ValueError(
                f'source {source!r} has no option {option!r}: it has {", ".join(known)}.'
            )
    return read(**options)
