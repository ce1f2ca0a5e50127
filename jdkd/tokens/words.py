"""Finds the words of texts in their characters, by a tokenizer."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tokenizers

# Scripts without spaces give words as long as clauses: longer ones than this fall into tokens.
_WORD_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a text, with punctuation as words of its own."""

    spans: np.ndarray  # `[W, 2]` first character and end of each word.
    tokens: np.ndarray  # `[W + 1]` tokens before each word, and of all words.

    def __len__(self) -> int:
        return len(self.spans)

    def within(self, tokens: int) -> int:
        """Returns how many words from the first on fit into so many tokens."""
        return max(int(np.searchsorted(self.tokens, tokens, 'right')) - 1, 0)


def find_words(encodings: Sequence[tokenizers.Encoding]) -> list[Words]:
    """Finds the words of texts that were encoded with offsets and without special tokens."""
    sizes = np.array([len(encoding) for encoding in encodings])
    text = np.repeat(np.arange(len(sizes)), sizes)
    characters = itertools.chain.from_iterable(
        itertools.chain.from_iterable(encoding.offsets for encoding in encodings)
    )
    spans = np.fromiter(characters, np.int64, 2 * len(text)).reshape(-1, 2)
    numbers = itertools.chain.from_iterable(encoding.word_ids for encoding in encodings)
    word = np.fromiter((-1 if n is None else n for n in numbers), np.int64, len(text))

    new_text = np.diff(text, prepend=-1) > 0
    first = new_text | (np.diff(word, prepend=-1) != 0)
    lengths = np.diff(np.append(np.flatnonzero(first), len(text)))
    first |= np.repeat(lengths > _WORD_TOKENS, lengths)
    # Tokens of one character (the bytes of an emoji) stay together, and empty ones join a word.
    overlaps = (spans[:, 0] < np.roll(spans[:, 1], 1)) | (spans[:, 0] == spans[:, 1])
    starts = np.flatnonzero(new_text | (first & ~overlaps))
    words = np.stack([spans[starts, 0], np.maximum.reduceat(spans[:, 1], starts)], axis=1)

    edges = np.append(0, np.cumsum(sizes))  # Tokens before each text.
    bounds = np.searchsorted(starts, edges)
    return [
        Words(words[i:j], np.append(starts[i:j], end) - start)
        for i, j, start, end in zip(bounds, bounds[1:], edges, edges[1:], strict=False)
    ]
