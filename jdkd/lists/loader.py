"""Loads batches with Grain: shuffles records, looks up their tokens and packs them into rows."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jax.sharding import Mesh

from jdkd.lists import packing
from jdkd.runtime import mesh as meshes
from jdkd.tokens.pairs import join_pairs, row_lengths
from jdkd.tokens.store import TokenStore

Features = Mapping[str, np.ndarray]
# Threads that make batches: an accelerator takes a step of a small model in the time that two of
# them need for its batch.
_READERS = min(max(2, (os.cpu_count() or 2) // 4), 8)


@dataclasses.dataclass(frozen=True)
class DualEncoderTokens:
    """Looks up the tokens of lists for a dual-encoder: the query, and each candidate by itself."""

    queries: TokenStore
    passages: TokenStore
    length: int  # Most tokens of a candidate in training; longer ones are cut.
    sep_id: int  # The separator also ends a cut passage.
    dark: bool = True  # Whether dark examples are candidates.

    def lengths(self, records: Features) -> np.ndarray:
        """Returns the `[M, N]` int32 tokens of each candidate."""
        lengths = np.minimum(self.passages.lengths[records['passages']], self.length)
        if self.dark and 'dark' in records:
            dark = records['dark'][..., : self.length]
            flat = row_lengths(dark.reshape(-1, dark.shape[-1]), self.passages.pad_id)
            lengths = np.concatenate([lengths, flat.reshape(dark.shape[:2])], axis=1)
        return lengths.astype(np.int32)

    def __call__(self, records: Features) -> tuple[dict, dict]:
        """Returns the candidates' texts `{name: [B, N, L]}`, and the other features."""
        tokens = self.passages.rows(records['passages'], self.length, end=self.sep_id)
        if self.dark and 'dark' in records:
            tokens = np.concatenate([tokens, records['dark'][..., : self.length]], axis=1)
        others = {k: v for k, v in records.items() if k not in ('passages', 'dark')}
        queries = self.queries.rows(records['query_row'], self._query_length)
        others['query'] = queries.astype(np.int32)
        return {'tokens': tokens}, others

    @functools.cached_property
    def _query_length(self) -> int:
        """Columns of a batch's queries, which hold the longest query of the split."""
        return packing.round_length(int(self.queries.lengths.max()), self.queries.length)


@dataclasses.dataclass(frozen=True)
class CrossEncoderTokens:
    """Looks up the tokens of lists for a cross-encoder: the query joined with each passage."""

    queries: TokenStore
    passages: TokenStore
    separators: int = 1  # See `join_pairs`.

    def lengths(self, records: Features) -> np.ndarray:
        """Returns the `[M, N]` int32 tokens of each pair."""
        lengths = self.passages.lengths[records['passages']] + self.separators - 2
        return lengths + self.queries.lengths[records['query_row']][:, None]

    def __call__(self, records: Features) -> tuple[dict, dict]:
        """Returns the pairs' texts `{name: [B, N, L]}`, and the other features."""
        shape = records['passages'].shape
        queries = self.queries.rows(np.repeat(records['query_row'], shape[1]))
        passages = self.passages.rows(records['passages'].ravel())
        tokens, token_types = join_pairs(queries, passages, self.queries.pad_id, self.separators)
        texts = {'tokens': tokens, 'token_types': token_types}
        others = {k: v for k, v in records.items() if k != 'passages'}
        return {name: x.reshape(*shape, -1) for name, x in texts.items()}, others


TokenLookup = DualEncoderTokens | CrossEncoderTokens


@dataclasses.dataclass(frozen=True)
class RowPacker:
    """Makes batches of stacked records: packs their candidates' texts into rows."""

    to_tokens: TokenLookup
    layout: packing.Layout  # Of every batch.
    parts: np.ndarray  # Numbers of the batch's parts that the records make up.

    def __call__(self, records: Features) -> dict[str, Any]:
        lengths = self.to_tokens.lengths(records)
        texts, others = self.to_tokens(records)
        pad_id = self.to_tokens.queries.pad_id
        rows = packing.pack(texts, lengths, self.layout, pad_id=pad_id, parts=self.parts)
        return others | rows | {'lengths': lengths}


# Features beside the tokens: (own records, numbers of the global batch's lists) -> features.
Extra = Callable[[Features, np.ndarray], dict[str, np.ndarray]]
# Functions from rows of queries and of passages to the embeddings that theirs are to become.
Targets = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]
# Passages `[Q, U]` of each query, padded with -1, their logits, and a function from rows of
# passages to stored float32 embeddings.
Scored = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]


def in_batch(
    passages: np.ndarray,
    scorers: Sequence[Callable[[np.ndarray, np.ndarray], np.ndarray]],
    scales: Sequence[float],
) -> Extra:
    """The assistants' logits of each query against all originals of the global batch.

    Args:
        passages: `[M, N_o]`, the originals of all lists.
        scorers: K functions (query rows `[B]`, passage rows `[C]`) -> raw scores `[B, C]`.
        scales: `[K]` logits per unit of score.
    """

    def score(records: Features, numbers: np.ndarray) -> dict[str, np.ndarray]:
        queries, columns = records['query_row'], passages[numbers].ravel()
        logits = [
            scale * scorer(queries, columns) for scale, scorer in zip(scales, scorers, strict=True)
        ]
        return {'in_batch': np.stack(logits, axis=1, dtype=np.float32)}

    return score


def embedding_targets(targets: Targets) -> Extra:
    """The targets of the embeddings of queries and originals."""
    of_queries, of_passages = targets
    return lambda records, _: {
        'query_target': of_queries(records['query_row']),
        'passage_target': of_passages(records['passages']),
    }


def scored_pool(scored: Scored) -> Extra:
    """A teacher's scored passages of each query, with embeddings that are stored."""
    all_passages, logits, embed = scored

    def look_up(records: Features, _: np.ndarray) -> dict[str, np.ndarray]:
        queries = records['query_row']
        passages = all_passages[queries]
        return {
            'pool_embedding': embed(np.maximum(passages, 0)),
            'pool_teacher': logits[queries],
            'pool_there': passages >= 0,
        }

    return look_up


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """The order of lists in global batches, determined by these fields alone."""

    batch_size: int
    seed: Sequence[int]  # Seeds the shuffling; each epoch is shuffled anew.
    shuffle: bool = True  # False keeps the order of the records.
    epochs: int | None = None  # None repeats without end.
    # `[count]` topics of the lists. Batches are cut from lists that are sorted by topic: most hold
    # lists of one, some the end of one topic and the start of the next.
    topics: np.ndarray | None = dataclasses.field(default=None, compare=False)

    def batches(self, count: int) -> grain.MapDataset:
        """Returns the numbers of the lists of each batch, out of `count` lists.

        Raises:
            ValueError: There is less than one batch.
        """
        if count < self.batch_size:
            raise ValueError(
                f'{count} candidate lists are less than one batch of {self.batch_size}; '
                'lower batch_size, or use more queries.'
            )
        if self.topics is not None:
            return self._by_topic(count)
        # Mixes the seeds into one, so that (0, 1) and (1, 0) shuffle differently.
        mixed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        numbers = grain.MapDataset.range(count).seed(mixed)
        if self.shuffle:
            numbers = numbers.shuffle()
        return numbers.repeat(self.epochs).batch(self.batch_size, drop_remainder=True)

    def _by_topic(self, count: int) -> grain.MapDataset:
        per_epoch = count // self.batch_size

        @functools.lru_cache(2)
        def arrange(epoch: int) -> np.ndarray:
            """`[per_epoch, batch_size]` numbers of lists: topics one after another, in batches."""
            rng = np.random.default_rng([*self.seed, epoch])
            numbers, topics = rng.permutation(count), np.asarray(self.topics)
            rank = rng.permutation(topics.max() + 1)
            numbers = numbers[np.argsort(rank[topics[numbers]], kind='stable')]
            numbers = np.roll(numbers, rng.integers(count))  # Any list may be left over.
            numbers = numbers[: per_epoch * self.batch_size].reshape(per_epoch, -1)
            return numbers[rng.permutation(per_epoch)]

        epochs = sys.maxsize // per_epoch if self.epochs is None else self.epochs
        steps = grain.MapDataset.range(epochs * per_epoch)
        return steps.map(lambda k: arrange(int(k) // per_epoch)[int(k) % per_epoch])


def make_row_packer(
    to_tokens: TokenLookup,
    records: Features,
    order: BatchOrder,
    spec: packing.RowSpec,
    mesh: Mesh,
    *,
    steps: int,
) -> RowPacker:
    """Makes the row packer with the least padding that fits the first batches of an order.

    Args:
        records: All records, stacked, with the features that `to_tokens.lengths` reads.
        mesh: Devices of the batches; each process packs the rows that its devices hold.
        steps: Number of batches.
    """
    lengths = to_tokens.lengths(records)
    numbers = order.batches(len(lengths))
    layout = packing.fit_layout((lengths[numbers[k]] for k in range(steps)), spec)
    return RowPacker(to_tokens, layout, meshes.local_rows(mesh, spec.parts))


def batches(
    source: Sequence[Features],
    to_batch: Callable[[Features], dict[str, Any]],
    order: BatchOrder,
    mesh: Mesh,
    extras: Sequence[Extra] = (),
) -> grain.DatasetIterator:
    """Iterates over batches; the position of the iterator can be saved.

    Global batch k and the position after it depend on (source, order, k) alone. Each process gets
    the lists that its devices hold; see `meshes.local_rows`.

    Args:
        source: From `dataset.read`, or any sequence of records.
        to_batch: Makes a batch of stacked records, such as a `RowPacker`.
        extras: Add further features to it.

    Raises:
        ValueError: The source holds less than one batch, or its lists do not divide among devices.
    """
    own = meshes.local_rows(mesh, order.batch_size)

    def read(numbers: np.ndarray) -> dict[str, Any]:
        records = _stack(source, numbers[own])
        batch = to_batch(records)
        for extra in extras:
            batch |= extra(records, numbers)
        return batch

    data = order.batches(len(source)).map(read)
    options = grain.ReadOptions(num_threads=_READERS, prefetch_buffer_size=2 * _READERS)
    return iter(data.to_iter_dataset(options))


def _stack(source: Sequence[Features], numbers: np.ndarray) -> dict[str, np.ndarray]:
    records = [source[int(i)] for i in numbers]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}
