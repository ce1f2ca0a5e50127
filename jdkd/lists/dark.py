"""Dark examples (ADAM): new passages between positive and negative, made on the host.

In the paper, reinforced negatives are negatives that are strengthened by mixing in text of the
positive, in discrete (token) space, and noisy positives are positives with masked tokens. The
ratios and the way of mixing are ours; `config.dark` sets the ratios.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jdkd.config import DarkConfig
from jdkd.lists.candidates import DARK, item_rng
from jdkd.tokens.store import TokenStore


def reinforced_negative(
    rng: np.random.Generator,
    positive: np.ndarray,
    negative: np.ndarray,
    *,
    fraction: tuple[float, float],
    length: int,
) -> np.ndarray:
    """Splices a contiguous span of the positive into the negative at a random position.

    If the result would exceed the length, the end of the negative is cut, never the span.

    Args:
        rng: Source of randomness.
        positive, negative: Token ids without special tokens, like the result.
        fraction: Range of the uniform share of the positive's tokens that are spliced in.
        length: Most tokens of the result.
    """
    if not len(positive):
        return negative[:length]
    size = int(np.clip(round(rng.uniform(*fraction) * len(positive)), 1, length))
    start = rng.integers(len(positive) - size + 1)
    span = positive[start : start + size]
    negative = negative[: length - size]
    at = rng.integers(len(negative) + 1)
    return np.concatenate([negative[:at], span, negative[at:]])


def noisy_positive(
    rng: np.random.Generator, positive: np.ndarray, *, fraction: tuple[float, float], mask_id: int
) -> np.ndarray:
    """Replaces some tokens of the positive, which has no special ones, with the mask token.

    Args:
        fraction: Range of the uniform share of tokens that are masked, at least one.
    """
    noisy = positive.copy()
    if len(noisy):
        size = max(round(rng.uniform(*fraction) * len(noisy)), 1)
        noisy[rng.choice(len(noisy), size, replace=False)] = mask_id
    return noisy


def generate(
    passages: np.ndarray,
    tokens: TokenStore,
    *,
    query_ids: Sequence[str],
    copies: np.ndarray,
    special: dict[str, int],
    length: int,
    config: DarkConfig,
    seed: int,
    round_index: int,
) -> np.ndarray:
    """Generates the dark examples of each list: reinforced negatives, then noisy positives.

    Each is a function of (seed, round, query id, copy of the list), so that a killed run generates
    the same ones again. The k-th reinforced negative comes from the k-th hard negative.

    Args:
        passages: `[M, N_o]` originals, the positive at index 0.
        tokens: Token store of the collection by the student's tokenizer, without a prefix, because
            teacher and assistants put their own prefixes before dark examples.
        query_ids: `[M]` query id of each list.
        copies: `[M]` number of earlier lists of the query.
        special: Ids of `cls`, `sep`, `pad`, `mask`.
        length: Most tokens of a dark example, special ones included.

    Returns:
        `[M, reinforced + noisy, length]` ids, padded.
    """
    num_dark = config.reinforced + config.noisy
    out = np.full((len(passages), num_dark, length), special['pad'], tokens.dtype)
    edges = [special[name] for name in ('cls', 'sep', 'pad')]

    splice = functools.partial(reinforced_negative, fraction=config.splice, length=length - 2)
    mask = functools.partial(noisy_positive, fraction=config.mask, mask_id=special['mask'])

    def text_ids(row: int) -> np.ndarray:
        return tokens[row][~np.isin(tokens[row], edges)]

    for dark, rows, query_id, copy in zip(out, passages, query_ids, copies, strict=True):
        rng = item_rng(seed, round_index, DARK, query_id, int(copy))
        positive, negatives = text_ids(rows[0]), rows[1:]
        examples = [
            splice(rng, positive, text_ids(negatives[k % len(negatives)]))
            for k in range(config.reinforced)
        ]
        examples += [mask(rng, positive[: length - 2]) for _ in range(config.noisy)]
        for slot, ids in zip(dark, examples, strict=True):
            slot[: len(ids) + 2] = [special['cls'], *ids, special['sep']]
    return out
