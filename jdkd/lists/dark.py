"""Dark examples (ADAM): new passages between positive and negative, made on the host.

The paper says: reinforced negatives are negatives strengthened by mixing in text of the positive,
in discrete (token) space; noisy positives are positives with tokens masked. The ratios and the
way of mixing are ours, config fields with the defaults below.
"""

from collections.abc import Sequence

import numpy as np

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
    """Splices a contiguous span of the positive into the negative at a random place.

    Where the result would exceed the length, the end of the negative gives way, never the span.

    Args:
        rng: Where the randomness comes from.
        positive: Token ids without special tokens.
        negative: Token ids without special tokens.
        fraction: Range of the uniform share r of the positive's tokens that is spliced in.
        length: Largest number of tokens of the result.

    Returns:
        Token ids without special tokens.
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
    rng: np.random.Generator,
    positive: np.ndarray,
    *,
    fraction: tuple[float, float],
    mask_id: int,
) -> np.ndarray:
    """Replaces tokens of the positive by the mask token.

    Args:
        rng: Where the randomness comes from.
        positive: Token ids without special tokens.
        fraction: Range of the uniform share m of tokens that is masked, at least one.
        mask_id: Id of the mask token.

    Returns:
        Token ids without special tokens.
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
    config,
    seed: int,
    round_index: int,
) -> np.ndarray:
    """Dark examples of each list: first the reinforced negatives, then the noisy positives.

    Each is a function of (seed, round, query id, copy of the list), so that a run that was killed
    makes the same ones again. The k-th reinforced negative comes from the k-th hard negative.

    Args:
        passages: `[M, N_o]` originals, the positive at index 0.
        tokens: Token store of the collection by the student's tokenizer, without a prefix: the
            teacher and the assistants read what is made of it, after prefixes of their own.
        query_ids: `[M]` query id of each list.
        copies: `[M]` how many lists of the query came before.
        special: Ids of `cls`, `sep`, `pad`, `mask`.
        length: Tokens of a dark example, special ones included.
        config: `reinforced`, `noisy` (counts), `splice`, `mask` (ranges of shares).
        seed: Of the run.
        round_index: The round.

    Returns:
        `[M, reinforced + noisy, length]` ids, padded.
    """
    num_dark = config.reinforced + config.noisy
    out = np.full((len(passages), num_dark, length), special['pad'], tokens.dtype)
    edges = [special[name] for name in ('cls', 'sep', 'pad')]

    def plain(row):
        return tokens[row][~np.isin(tokens[row], edges)]

    for dark, rows, query_id, copy in zip(out, passages, query_ids, copies, strict=True):
        rng = item_rng(seed, round_index, DARK, query_id, int(copy))
        positive, negatives = plain(rows[0]), rows[1:]
        examples = [
            reinforced_negative(
                rng,
                positive,
                plain(negatives[k % len(negatives)]),
                fraction=config.splice,
                length=length - 2,
            )
            for k in range(config.reinforced)
        ] + [
            noisy_positive(
                rng, positive[: length - 2], fraction=config.mask, mask_id=special['mask']
            )
            for _ in range(config.noisy)
        ]
        for slot, ids in zip(dark, examples, strict=True):
            slot[0], slot[1 : 1 + len(ids)], slot[1 + len(ids)] = (
                special['cls'],
                ids,
                special['sep'],
            )
    return out
