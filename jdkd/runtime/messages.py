"""Quotes foreign text in messages: escapes control characters and shortens it."""

import re
import reprlib
import textwrap
from collections.abc import Iterable
from typing import Any

# Terminals act on control characters; bidirectional marks and line separators reorder and break
# lines; surrogates cannot be encoded.
_ACTIVE = re.compile(
    r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 100

# Like `repr`, but shows only the ends of long values.
shown = _repr.repr


def escape(text: str) -> str:
    r"""Escapes all that a terminal would act on, but tabs and ends of lines: ESC becomes `\x1b`."""
    return _ACTIVE.sub(lambda match: match[0].encode('unicode_escape').decode(), text)


def brief(text: object) -> str:
    """The beginning of a text, such as an error of a library that quotes all of its input."""
    words = (
        word if len(word) <= 100 else f'{word[:67]}...{word[-30:]}' for word in str(text).split()
    )
    return textwrap.shorten(escape(' '.join(words)), 300, placeholder=' ...')


class EscapedStream:
    """A text stream, such as stderr, that escapes what is written to it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        # Progress bars return to the beginning of their line.
        return self._stream.write('\r'.join(map(escape, text.split('\r'))))

    def writelines(self, lines: Iterable[str]) -> None:
        self.write(''.join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
