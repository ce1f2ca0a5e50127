"""Where collections come from, by the name that a config gives."""

import functools
import inspect

from jdkd.data import beir, python_docs
from jdkd.data.reading import Source

# Kind -> what opens it and what follows the colon, if anything does.
_KINDS = {
    'python_docs': (python_docs.source, None),
    'beir': (beir.source, 'PATH'),
}
SOURCES = tuple(f'{kind}:{what}' if what else kind for kind, (_, what) in _KINDS.items())


def source(name: str, **options) -> Source:
    """A collection that can be read.

    Args:
        name: One of SOURCES.
        **options: Keyword arguments of the source's own function.

    Raises:
        ValueError: the source or an option is unknown.
        FileNotFoundError: the source's directory or a file in it is missing.
    """
    kind, _, argument = name.partition(':')
    read, what = _KINDS.get(kind, (None, None))
    if read is None or bool(argument) != bool(what) or (not what and name != kind):
        raise ValueError(f'unknown collection source {name!r}: use one of {", ".join(SOURCES)}.')
    known = list(inspect.signature(read).parameters)[bool(what) :]
    for option in options:
        if option not in known:
            raise ValueError(
                f'source {name!r} has no option {option!r}: it has {", ".join(known)}.'
            )
    return functools.partial(read, argument)(**options) if what else read(**options)
