"""Dark examples (ADAM): new passages between positive and negative, made on the host.

In the paper, reinforced negatives are negatives that are strengthened by mixing in text of the
positive, in discrete (token) space, and noisy positives are positives with masked tokens. The
ratios and the way of mixing whole words are ours; `config.dark` sets the ratios.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jdkd.config import DarkConfig
from jdkd.lists.candidates import DARK, item_rng
from jdkd.lists.slices import MASK, SlicedTexts
from jdkd.tokens.tokenizer import Tokenizer
from jdkd.tokens.words import Words

_READ = 512  # Tokens of a passage among which words are masked; bounds what long ones take.


@dataclasses.dataclass(frozen=True)
class Source:
    """A passage that dark examples are made of."""

    row: int  # In the collection.
    length: int  # In characters.
    words: Words  # Those among its first tokens.


def reinforced_negative(
    rng: np.random.Generator,
    positive: Source,
    negative: Source,
    *,
    share: tuple[float, float],
    room: int,
) -> np.ndarray:
    """Splices consecutive words of the positive into the negative, between any two words.

    The words come from, and go to, the part that the student reads in training, so that it reads
    all of them.

    Args:
        rng: Source of randomness.
        share: Range of the uniform share of the words of that part that are spliced in, rounded up.
        room: Tokens of a passage that the student reads in training, without special ones.

    Returns:
        `[k, 3]` slices; see `SlicedTexts`.
    """
    seen = positive.words.within(room)
    size = math.ceil(rng.uniform(*share) * seen)
    if not size:
        return np.array([(negative.row, 0, negative.length)])
    first = rng.integers(seen - size + 1)
    spans, tokens = positive.words.spans, positive.words.tokens
    left = negative.words.within(room - int(tokens[first + size] - tokens[first]))
    word = rng.integers(left + 1)  # The one after the splice.
    at = negative.words.spans[word - 1, 1] if word else 0
    return _without_empty(
        np.array(
            [
                (negative.row, 0, at),
                (positive.row, spans[first, 0], spans[first + size - 1, 1]),
                (negative.row, at, negative.length),
            ]
        )
    )


def noisy_positive(
    rng: np.random.Generator, positive: Source, *, share: tuple[float, float]
) -> np.ndarray:
    """Masks some words of the positive.

    Args:
        share: Range of the uniform share of words that are masked, rounded up.

    Returns:
        `[k, 3]` slices; see `SlicedTexts`.
    """
    size = math.ceil(rng.uniform(*share) * len(positive.words))
    masked = positive.words.spans[np.sort(rng.choice(len(positive.words), size, replace=False))]
    slices = np.empty((2 * size + 1, 3), np.int32)
    slices[::2] = positive.row
    slices[1::2] = MASK
    slices[:, 1] = [0, *masked.ravel()]
    slices[:, 2] = [*masked.ravel(), positive.length]
    return _without_empty(slices)


def generate(
    passages: np.ndarray,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    query_ids: Sequence[str],
    copies: np.ndarray,
    room: int,
    config: DarkConfig,
    seed: int,
    round_index: int,
) -> SlicedTexts:
    """Draws the dark examples of each list: reinforced negatives, then noisy positives.

    Each is a function of (seed, round, query id, copy of the list), so that a killed run draws the
    same ones again. The k-th reinforced negative comes from the k-th hard negative.

    Args:
        passages: `[M, N_o]` originals, the positive at index 0.
        texts: Texts of the collection's passages, of which only those needed are read.
        tokenizer: The student's, whose words are spliced and masked.
        query_ids: `[M]` query id of each list.
        copies: `[M]` number of earlier lists of the query.
        room: Tokens of a passage that the student reads in training, without special ones.

    Returns:
        `[M, reinforced + noisy]` texts.
    """
    num_negatives = passages.shape[1] - 1
    rows = np.unique(passages[:, : 1 + min(config.reinforced, num_negatives)])
    needed = [texts[int(row)] for row in rows]
    words = tokenizer.words(needed, _READ)
    sources = {
        int(row): Source(int(row), len(text), found)
        for row, text, found in zip(rows, needed, words, strict=True)
    }
    examples = []
    for own, query_id, copy in zip(passages.tolist(), query_ids, copies, strict=True):
        rng = item_rng(seed, round_index, DARK, query_id, int(copy))
        positive = sources[own[0]]
        for k in range(config.reinforced):
            negative = sources[own[1 + k % num_negatives]]
            examples.append(
                reinforced_negative(rng, positive, negative, share=config.splice, room=room)
            )
        examples += [noisy_positive(rng, positive, share=config.mask) for _ in range(config.noisy)]
    counts = np.array([len(slices) for slices in examples], np.int32)
    return SlicedTexts(np.concatenate(examples, dtype=np.int32), counts.reshape(len(passages), -1))


def _without_empty(slices: np.ndarray) -> np.ndarray:
    return slices[slices[:, 1] < slices[:, 2]]
