"""Lays out the title and the text of a passage as a model was trained to read them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jdkd.corpus.passages import Passages, join_title

# Stands between title and text in place of a space, so that slices of passages keep the border. No
# passage has it: a lone surrogate cannot be stored.
_BORDER = '\ud800'
_NO_TITLE = '-'  # SimLM's title of passages that have none.


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model reads passages: the format and the prefix of its config entry."""

    format: str  # One of `config.systems.FORMATS`.
    prefix: str = ''  # Text before each passage.

    def bordered(self, passages: Passages) -> Sequence[str]:
        """Texts of passages in which each character stands as in `passages`, for `render`."""
        return passages if self.format == 'joined' else _Bordered(passages)

    def border(self, title: str, text: str) -> str:
        """The text of one passage in `bordered`."""
        return join_title(title, text) if self.format == 'joined' else _border(title, text)

    def render(self, text: str) -> str | tuple[str, str]:
        """What the tokenizer reads of a text of `bordered`, or of slices of such texts.

        In slices of several passages the first border counts.
        """
        if self.format == 'joined':
            return self.prefix + text
        title, border, rest = text.partition(_BORDER)
        title, text = (title.strip(), rest) if border else ('', title)
        title, text = title or _NO_TITLE, text.replace(_BORDER, ' ').strip()
        if self.format == 'colon':
            return f'{self.prefix}{title}: {text}'
        return self.prefix + title, text

    def inputs(self, passages: Passages) -> Sequence[Any]:
        """What the tokenizer reads of each passage: a str, or a pair of them; a slice is a list."""
        return _Rendered(self, self.bordered(passages))


@dataclasses.dataclass(frozen=True)
class _Bordered(Sequence[str]):
    passages: Passages

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, i: int | slice) -> Any:
        titles, texts = self.passages.titles[i], self.passages.texts[i]
        if isinstance(i, slice):
            return [_border(*pair) for pair in zip(titles, texts, strict=True)]
        return _border(titles, texts)


@dataclasses.dataclass(frozen=True)
class _Rendered(Sequence[Any]):
    layout: Layout
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int | slice) -> Any:
        if isinstance(i, slice):
            return [self.layout.render(text) for text in self.texts[i]]
        return self.layout.render(self.texts[i])


def _border(title: str, text: str) -> str:
    joined = join_title(title, text)
    if not title.strip() or not text.strip():
        return joined  # A passage of a title alone is its text.
    at = len(title.lstrip())
    return joined[:at] + _BORDER + joined[at + 1 :]
