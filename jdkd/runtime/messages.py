"""What others wrote, in messages of ours: control characters escaped, and never a screenful."""

import reprlib
import textwrap

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100

# Like `repr`, but of long values only the ends.
shown = _repr.repr


def brief(text: object) -> str:
    """The beginning of a text, such as a library's error that quotes all that it was given."""
    return textwrap.shorten(str(text), 300, placeholder=' ...')
