"""Candidate lists: a query's positive or its stand-in, then mined hard negatives."""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from jdkd.config import Config
from jdkd.lists.slices import SlicedTexts

_LARGE_COLLECTION = 100_000  # Passages.
_MOST_COPIES = 4  # Lists of a query, to reach a share.

# Purposes of random draws, each with a stream of its own.
QUERIES, NEGATIVES, DARK, REPLAY, ORDER, ALIGN = range(6)


def item_rng(
    seed: int, round_index: int, purpose: int, item: str, copy: int = 0
) -> np.random.Generator:
    """Makes a generator that depends on these arguments alone, on any machine."""
    return np.random.default_rng(
        [seed, round_index, purpose, zlib.crc32(item.encode()), len(item), copy]
    )


def count_lists(config: Config, held_out: int) -> dict[str, int]:
    """Lists of a round for each split; `held_out` queries of D_eval have lists."""
    # D_eval in whole batches, on any number of devices; queries repeat where it has fewer.
    batches = min(config.candidates.eval_lists, held_out) // config.batch_size
    return {
        'train': config.steps_per_round * config.batch_size,
        'eval': max(batches, 1) * config.batch_size,
    }


def array_digest(array: np.ndarray) -> str:
    """Returns the sha256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Lists:
    """Candidate lists of fixed length, one row a list."""

    query: np.ndarray  # `[M]` int32, row of the query in its split; a query may have several lists.
    passages: np.ndarray  # `[M, N_o]` int32 rows of the collection, the positive at index 0.
    dark: SlicedTexts  # `[M, N_d]` dark examples; N_d may be 0.

    @classmethod
    def from_originals(cls, query: np.ndarray, passages: np.ndarray) -> 'Lists':
        """Makes lists without dark examples."""
        return cls(query, passages, SlicedTexts.empty(len(query)))

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, part: slice) -> 'Lists':
        return Lists(self.query[part], self.passages[part], self.dark[part])

    @property
    def num_dark(self) -> int:
        """Dark examples of each list."""
        return self.dark.counts.shape[1]

    def dark_texts(self, passages: Sequence[str], mask: str = '') -> list[str]:
        """Returns the texts of the `M * N_d` dark examples, list after list.

        They are as long as the passages that they are made of. Take lists in parts: all texts of a
        round may be larger than memory.

        Args:
            passages: Texts of the collection's passages, as `Run.passages`.
            mask: The reader's mask token, or nothing to remove what is masked.
        """
        return self.dark.render(passages, mask)

    def filled(self, there: np.ndarray) -> tuple['Lists', np.ndarray]:
        """Lists whose every slot has a passage to score.

        Args:
            there: `[M, N_o]` bool; where it is False, another passage of the list stands.

        Returns:
            The lists with such a passage, without dark examples, and their rows here.
        """
        rows = np.flatnonzero(there.any(axis=1))
        there, own = there[rows], self.passages[rows]
        first = np.take_along_axis(own, there.argmax(axis=1)[:, None], axis=1)
        return Lists.from_originals(self.query[rows], np.where(there, own, first)), rows


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The teacher's logits of a pool, to draw the hardest safe negatives from it."""

    logits: np.ndarray  # `[Q, U]`, of the passages of the pool; NaN where there is none.
    best: Sequence[np.ndarray]  # Of each query's positives that lists draw from.
    margin: float  # By how much a negative must be below the positive.
    hardest: int  # Negatives to draw from, at most.

    def choose(self, row: int, positive: int, pool: np.ndarray) -> np.ndarray:
        """Of a query's pool `[U]`, the hardest passages that are safe beside a positive."""
        logits = self.logits[row]
        safe = np.flatnonzero((pool >= 0) & (logits <= self.best[row][positive] - self.margin))
        order = np.argsort(-logits[safe], kind='stable')
        return pool[safe[order[: self.hardest]]]

    def complete(self, row: int, pool: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
        """Adds the passages of a pool `[U]` with the lowest logits, up to `count` in all."""
        others = np.flatnonzero((pool >= 0) & ~np.isin(pool, chosen))
        order = np.argsort(self.logits[row][others], kind='stable')
        return np.concatenate([chosen, pool[others[order[: count - len(chosen)]]]])


def mined_passages(
    rankings: Sequence[np.ndarray], positives: Sequence[np.ndarray], group: np.ndarray, depth: int
) -> np.ndarray:
    """Collects the passages to draw each query's hard negatives from.

    They are the union of the retrievers' top passages, the first of each before the second of any,
    one of each text, without the texts of positives.

    Args:
        rankings: For each retriever `[Q, >= depth]` passage rows, best first, -1 for none.
        positives: Rows of each query's positives.
        group: `[P]` text group of each passage.
        depth: Number of passages from each retriever.

    Returns:
        `[Q, len(rankings) * depth]` int32, padded with -1.
    """
    top = np.stack([r[:, :depth] for r in rankings], axis=2).reshape(len(rankings[0]), -1)
    pool = np.full(top.shape, -1, np.int32)
    for out, rows, own in zip(pool, top, positives, strict=True):
        rows = _distinct_texts(rows, group)
        rows = rows[~np.isin(group[rows], group[own])]
        out[: len(rows)] = rows
    return pool


def interleave(rankings: Sequence[np.ndarray], group: np.ndarray, depth: int) -> np.ndarray:
    """Interleaves rankings: all first passages, then all second ones, and so on.

    Args:
        rankings: For each retriever `[Q, n]` passage rows, best first, -1 for none.
        group: `[P]` text group of each passage; only its first passage is kept.
        depth: Number of passages of a query.

    Returns:
        `[Q, depth]` int32, padded with -1.
    """
    turns = np.stack([r[:, :depth] for r in rankings], axis=2).reshape(len(rankings[0]), -1)
    merged = np.full((len(turns), depth), -1, np.int32)
    for out, rows in zip(merged, turns, strict=True):
        rows = _distinct_texts(rows, group)[:depth]
        out[: len(rows)] = rows
    return merged


def _distinct_texts(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Keeps the first passage of each text, and drops -1."""
    rows = rows[rows >= 0]
    _, first = np.unique(group[rows], return_index=True)
    return rows[np.sort(first)]


def choose_queries(
    active: np.ndarray, num_lists: int, *, seed: int, round_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the query of each list: all of `active` in random order, then again while needed.

    Returns:
        `[M]` int32 rows and `[M]` int32 copies, the number of earlier lists of the query.
    """
    rng = item_rng(seed, round_index, QUERIES, '')
    copies = max(-(-num_lists // len(active)), 1)
    rows = np.concatenate([rng.permutation(active) for _ in range(copies)])[:num_lists]
    return rows.astype(np.int32), (np.arange(num_lists) // len(active)).astype(np.int32)


def choose_labelled(
    active: np.ndarray,
    is_labelled: np.ndarray,
    num_lists: int,
    *,
    share: float,
    seed: int,
    round_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses queries as `choose_queries`, with a minimum share of labelled ones (ours).

    Where labels are few, labelled queries repeat more often than others, but at most four times.
    Both kinds are spread over the round at random.

    Args:
        is_labelled: `[Q]` bool of all rows.
        share: Smallest share of lists of labelled queries.
    """
    labelled, others = active[is_labelled[active]], active[~is_labelled[active]]
    count = min(round(share * num_lists), _MOST_COPIES * len(labelled))
    choose = functools.partial(choose_queries, seed=seed, round_index=round_index)
    if not len(labelled) or not len(others) or len(labelled) * num_lists >= count * len(active):
        return choose(active, num_lists)
    chosen = choose(labelled, count), choose(others, num_lists - count)
    order = item_rng(seed, round_index, ORDER, '').permutation(num_lists)
    rows, copies = (np.concatenate(both)[order] for both in zip(*chosen, strict=True))
    return rows, copies


def sample_lists(
    rows: np.ndarray,
    copies: np.ndarray,
    *,
    query_ids: Sequence[str],
    positives: Sequence[np.ndarray],
    best: Sequence[np.ndarray],
    pool: np.ndarray,
    group: np.ndarray,
    num_negatives: int,
    ranked: Ranked | None,
    closed: bool,
    seed: int,
    round_index: int,
) -> np.ndarray:
    """Samples the originals of each list: one positive, then distinct hard negatives.

    If a query's pool is smaller than the list, random passages of the collection complete it; in a
    closed pool, which has enough, those of it with the lowest logits complete too few hard ones.

    Args:
        rows: `[M]` query of each list.
        copies: `[M]` number of earlier lists of the query.
        query_ids: Ids of the split's queries.
        positives: Rows of each query's positives, or of its stand-in.
        best: The subset of positives to sample from.
        pool: `[Q, U]` from `mined_passages`.
        group: `[P]` text group of each passage.
        num_negatives: N_o - 1.
        ranked: Logits of the pool, to draw from the hardest alone; None to draw from all.
        closed: Whether no passage outside the pool may be drawn, because it has no score.

    Returns:
        `[M, 1 + num_negatives]` int32 rows of the collection.

    Raises:
        ValueError: The collection has too few passages for the list.
    """
    lists = np.empty((len(rows), 1 + num_negatives), np.int32)
    for out, row, copy in zip(lists, rows, copies, strict=True):
        rng = item_rng(seed, round_index, NEGATIVES, query_ids[int(row)], int(copy))
        positive = int(rng.integers(len(best[row])))
        mined = pool[row][pool[row] >= 0]
        if ranked is not None:
            mined = ranked.choose(int(row), positive, pool[row])
            if closed and len(mined) < num_negatives:
                mined = ranked.complete(int(row), pool[row], mined, num_negatives)
        if len(mined) < num_negatives:
            taken = np.concatenate([group[positives[row]], group[mined]])
            others = _sample_others(rng, group, taken, num_negatives - len(mined))
            mined = np.concatenate([mined, others])
            if len(mined) < num_negatives:
                raise ValueError(
                    f"query '{query_ids[row]}' has only {len(mined)} distinct passages that are "
                    f'not relevant; lower candidates.hard_negatives={num_negatives}.'
                )
        out[0] = best[row][positive]
        out[1:] = rng.choice(mined, num_negatives, replace=False)
    return lists


def _sample_others(
    rng: np.random.Generator, group: np.ndarray, taken: np.ndarray, count: int
) -> np.ndarray:
    """Samples rows of `count` different texts that are not taken, or of all there are."""
    if len(group) > _LARGE_COLLECTION:
        # Listing millions of others takes long, and most random rows are among them.
        drawn = np.unique(group[rng.integers(len(group), size=8 * (count + len(taken)))])
        drawn = drawn[~np.isin(drawn, taken)]
        if len(drawn) >= count:
            return rng.choice(drawn, count, replace=False)
    others = np.flatnonzero((np.arange(len(group)) == group) & ~np.isin(group, taken))
    return rng.choice(others, min(count, len(others)), replace=False)
