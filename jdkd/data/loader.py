"""From records to batches: Grain reads, shuffles, looks up tokens, batches; all by step number."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import grain
import jax
import numpy as np

from jdkd.data.tokens import TokenStore
from jdkd.models.cross_encoder import join_pairs

Features = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class DualEncoderTokens:
    """Token rows of lists for a dual-encoder: the query, and each passage by itself.

    Attributes:
        queries: Token store of the split.
        passages: Token store of the collection.
        length: Tokens of a passage in training; longer ones are cut.
        sep_id: Id of the separator, which ends a cut passage too.
    """

    queries: TokenStore
    passages: TokenStore
    length: int
    sep_id: int

    def __call__(self, records: Features) -> dict[str, np.ndarray]:
        passages = self.passages.rows(records['passages'], self.length, end=self.sep_id)
        if 'dark' in records:
            passages = np.concatenate([passages, records['dark'][..., : self.length]], axis=1)
        kept = {k: v for k, v in records.items() if k not in ('query_row', 'passages', 'dark')}
        return kept | {
            'query': self.queries.rows(records['query_row']).astype(np.int32),
            'passages': passages.astype(np.int32),
        }


@dataclasses.dataclass(frozen=True)
class CrossEncoderTokens:
    """Token rows of lists for a cross-encoder: the query joined with each passage.

    Attributes:
        queries: Token store of the split.
        passages: Token store of the collection.
        pad_id: Id of the padding token.
        separators: Of a pair; see `join_pairs`.
    """

    queries: TokenStore
    passages: TokenStore
    pad_id: int
    separators: int = 1

    def __call__(self, records: Features) -> dict[str, np.ndarray]:
        shape = records['passages'].shape
        queries = self.queries.rows(np.repeat(records['query_row'], shape[1]))
        passages = self.passages.rows(records['passages'].ravel())
        tokens, token_types = join_pairs(queries, passages, self.pad_id, self.separators)
        kept = {k: v for k, v in records.items() if k not in ('query_row', 'passages')}
        return kept | {
            'passages': tokens.astype(np.int32).reshape(*shape, -1),
            'token_types': token_types.reshape(*shape, -1),
        }


@dataclasses.dataclass(frozen=True)
class InBatchScores:
    """Adds the assistants' logits of every query of a batch against every original of it.

    Attributes:
        to_tokens: Applied to the records as well.
        scorers: K functions (query rows `[B]`, passage rows `[C]`) -> raw scores `[B, C]`.
        scales: Logits per unit of score, one an assistant.
    """

    to_tokens: Callable[[Features], dict[str, np.ndarray]]
    scorers: Sequence[Callable[[np.ndarray, np.ndarray], np.ndarray]]
    scales: Sequence[float]

    def __call__(self, records: Features) -> dict[str, np.ndarray]:
        queries, passages = records['query_row'], records['passages'].ravel()
        logits = [
            scale * scorer(queries, passages)
            for scale, scorer in zip(self.scales, self.scorers, strict=True)
        ]
        return self.to_tokens(records) | {'in_batch': np.stack(logits, axis=1, dtype=np.float32)}


def batches(
    source,
    to_batch: Callable[[Features], dict[str, np.ndarray]],
    *,
    batch_size: int,
    seed: Sequence[int],
    shuffle: bool = True,
    epochs: int | None = None,
) -> grain.DatasetIterator:
    """An iterator of batches whose position can be saved.

    Batch k is a function of (source, seed, k) alone. With several processes each gets its part of
    every global batch.

    Args:
        source: From `dataset.read`, or any sequence of records.
        to_batch: Makes a batch of stacked records: adds their token rows.
        batch_size: Global number of lists.
        seed: Numbers that the shuffling depends on; each epoch is shuffled anew.
        shuffle: False keeps the order.
        epochs: None repeats for ever.

    Raises:
        ValueError: if the source holds less than one batch, or processes do not divide it.
    """
    if len(source) < batch_size:
        raise ValueError(
            f'{len(source)} candidate lists are less than one batch of {batch_size}; '
            'lower batch_size, or use more queries.'
        )
    if batch_size % jax.process_count():
        raise ValueError(
            f'batch_size={batch_size} does not divide among {jax.process_count()} processes.'
        )
    # One number of several, such that (0, 1) and (1, 0) shuffle in different ways.
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    data = grain.MapDataset.source(source).seed(mixed)
    if shuffle:
        data = data.shuffle()
    data = data.repeat(epochs)
    data = data[jax.process_index() :: jax.process_count()]
    data = data.batch(batch_size // jax.process_count(), drop_remainder=True).map(to_batch)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
