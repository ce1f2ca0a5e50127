"""Quotes foreign text in messages: escapes control characters and shortens it."""

import reprlib
import textwrap

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100

# Like `repr`, but shows only the ends of long values.
shown = _repr.repr


def brief(text: object) -> str:
    """The beginning of a text, such as an error of a library that quotes all of its input."""
    return textwrap.shorten(str(text), 300, placeholder=' ...')
