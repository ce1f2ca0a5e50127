"""From records to batches: Grain reads, shuffles, looks up tokens, batches; all by step number."""

import dataclasses
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
BATCH_PASSAGES = 'batch_passages'  # Originals of the whole batch, also those of other processes.


@dataclasses.dataclass(frozen=True)
class DualEncoderTokens:
    """Token rows of lists for a dual-encoder: the query, and each candidate by itself.

    Attributes:
        queries: Token store of the split.
        passages: Token store of the collection.
        length: Tokens of a candidate in training; longer ones are cut.
        sep_id: Id of the separator, which ends a cut passage too.
        dark: Whether dark examples are candidates.
    """

    queries: TokenStore
    passages: TokenStore
    length: int
    sep_id: int
    dark: bool = True

    def lengths(self, records: Features) -> np.ndarray:
        """`[M, N]` int32 tokens of the candidates."""
        lengths = np.minimum(self.passages.lengths[records['passages']], self.length)
        if self.dark and 'dark' in records:
            dark = records['dark'][..., : self.length]
            of_dark = row_lengths(dark.reshape(-1, dark.shape[-1]), self.passages.pad_id)
            lengths = np.concatenate([lengths, of_dark.reshape(dark.shape[:2])], axis=1)
        return lengths.astype(np.int32)

    def __call__(self, records: Features) -> tuple[dict, dict]:
        """Texts of the candidates `{name: [B, N, L]}`, and the arrays beside them."""
        tokens = self.passages.rows(records['passages'], self.length, end=self.sep_id)
        if self.dark and 'dark' in records:
            tokens = np.concatenate([tokens, records['dark'][..., : self.length]], axis=1)
        beside = {k: v for k, v in records.items() if k not in ('passages', 'dark')}
        beside['query'] = self.queries.rows(records['query_row']).astype(np.int32)
        return {'tokens': tokens}, beside


@dataclasses.dataclass(frozen=True)
class CrossEncoderTokens:
    """Token rows of lists for a cross-encoder: the query joined with each passage.

    Attributes:
        queries: Token store of the split.
        passages: Token store of the collection.
        separators: Of a pair; see `join_pairs`.
    """

    queries: TokenStore
    passages: TokenStore
    separators: int = 1

    def lengths(self, records: Features) -> np.ndarray:
        """`[M, N]` int32 tokens of the pairs."""
        lengths = self.passages.lengths[records['passages']] + self.separators - 2
        return lengths + self.queries.lengths[records['query_row']][:, None]

    def __call__(self, records: Features) -> tuple[dict, dict]:
        """Texts of the pairs `{name: [B, N, L]}`, and the arrays beside them."""
        shape = records['passages'].shape
        queries = self.queries.rows(np.repeat(records['query_row'], shape[1]))
        passages = self.passages.rows(records['passages'].ravel())
        tokens, token_types = join_pairs(queries, passages, self.queries.pad_id, self.separators)
        texts = {'tokens': tokens, 'token_types': token_types}
        beside = {k: v for k, v in records.items() if k != 'passages'}
        return {name: x.reshape(*shape, -1) for name, x in texts.items()}, beside


Tokens = DualEncoderTokens | CrossEncoderTokens


@dataclasses.dataclass(frozen=True)
class RowPacker:
    """Makes batches of stacked records: their candidates' texts in the rows of a layout.

    Attributes:
        to_tokens: Of the model.
        layout: That every batch fits into.
        parts: Of a batch, those that the records are.
    """

    to_tokens: Tokens
    layout: packing.Layout
    parts: np.ndarray

    def __call__(self, records: Features) -> dict[str, Any]:
        lengths = self.to_tokens.lengths(records)
        texts, beside = self.to_tokens(records)
        rows = packing.pack(
            texts,
            lengths,
            self.layout,
            pad_id=self.to_tokens.queries.pad_id,
            parts=self.parts,
        )
        return beside | rows | {'lengths': lengths}


@dataclasses.dataclass(frozen=True)
class InBatchScorer:
    """Adds the assistants' logits of every query of a batch against every original of it.

    Attributes:
        to_rows: Applied to the records as well.
        scorers: K functions (query rows `[B]`, passage rows `[C]`) -> raw scores `[B, C]`.
        scales: Logits per unit of score, one an assistant.
    """

    to_rows: RowPacker
    scorers: Sequence[Callable[[np.ndarray, np.ndarray], np.ndarray]]
    scales: Sequence[float]

    def __call__(self, records: Features) -> dict[str, Any]:
        queries, passages = records['query_row'], records[BATCH_PASSAGES].ravel()
        logits = [
            scale * scorer(queries, passages)
            for scale, scorer in zip(self.scales, self.scorers, strict=True)
        ]
        own = {k: v for k, v in records.items() if k != BATCH_PASSAGES}
        return self.to_rows(own) | {'in_batch': np.stack(logits, axis=1, dtype=np.float32)}


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """Which lists each global batch has; a function of these numbers alone.

    Attributes:
        batch_size: Lists.
        seed: Numbers that the shuffling depends on; each epoch is shuffled anew.
        shuffle: False keeps the order.
        epochs: None repeats for ever.
    """

    batch_size: int
    seed: Sequence[int]
    shuffle: bool = True
    epochs: int | None = None

    def batches(self, count: int) -> grain.MapDataset:
        """Numbers of the lists of each batch, of so many lists in all.

        Raises:
            ValueError: if there is less than one batch.
        """
        if count < self.batch_size:
            raise ValueError(
                f'{count} candidate lists are less than one batch of {self.batch_size}; '
                'lower batch_size, or use more queries.'
            )
        # One number of several, such that (0, 1) and (1, 0) shuffle in different ways.
        mixed = int(np.random.SeedSequence(self.seed).generate_state(1)[0])
        numbers = grain.MapDataset.range(count).seed(mixed)
        if self.shuffle:
            numbers = numbers.shuffle()
        return numbers.repeat(self.epochs).batch(self.batch_size, drop_remainder=True)


def make_row_packer(
    to_tokens: Tokens,
    records: Features,
    order: BatchOrder,
    rows: packing.RowSpec,
    mesh: Mesh,
    *,
    steps: int,
) -> RowPacker:
    """What puts the first batches of an order into rows: the least that all of them fit into.

    Args:
        to_tokens: Of the model.
        records: All of them, stacked: what `to_tokens.lengths` reads.
        order: Of the records.
        rows: How they are made.
        mesh: What batches are for; each process makes the rows that its devices hold.
        steps: How many batches there are.
    """
    lengths = to_tokens.lengths(records)
    numbers = order.batches(len(lengths))
    layout = packing.fit_layout((lengths[numbers[k]] for k in range(steps)), rows)
    return RowPacker(to_tokens, layout, meshes.local_rows(mesh, rows.parts))


def batches(
    source, to_batch: Callable[[Features], dict[str, Any]], order: BatchOrder, mesh: Mesh
) -> grain.DatasetIterator:
    """An iterator of batches whose position can be saved.

    Global batch k is a function of (source, order, k) alone, and so is the position after it. Each
    process gets the lists of it that its devices hold; see `meshes.local_rows`.

    Args:
        source: From `dataset.read`, or any sequence of records.
        to_batch: Makes a batch of stacked records: adds their token rows.
        order: Of the records.
        mesh: What batches are for.

    Raises:
        ValueError: if the source holds less than one batch, or devices do not divide it.
    """
    own = meshes.local_rows(mesh, order.batch_size)

    def read(numbers: np.ndarray) -> dict[str, Any]:
        if not isinstance(to_batch, InBatchScorer):
            return to_batch(_stack(source, numbers[own]))
        records = _stack(source, numbers)
        mine = {name: values[own] for name, values in records.items()}
        return to_batch(mine | {BATCH_PASSAGES: records['passages']})

    data = order.batches(len(source)).map(read)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _stack(source, numbers: np.ndarray) -> dict[str, np.ndarray]:
    records = [source[int(i)] for i in numbers]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}
