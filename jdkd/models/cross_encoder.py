"""The cross-encoder: a query and a passage, read together, to one relevance logit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdkd.models.dual_encoder import mean_pool, safe_normalize
from jdkd.models.transformer import Transformer, TransformerConfig

HEADS = ('cosine', 'linear')


class CrossEncoder(nn.Module):
    """Scores rows of [CLS] query [SEP] passage [SEP], as `join_pairs` makes them.

    Attributes:
        transformer: Sizes of the encoder.
        head: 'linear' is BERT's pooler (dense and tanh on the first token) and a dense layer of
            one unit, as in `BertForSequenceClassification`: for checkpoints that were trained
            so. 'cosine' is a learned scale times the cosine of the mean query state and the mean
            passage state (special tokens included) plus a learned bias: where the encoder comes
            from a dual-encoder it ranks well before the first step, and each segment sees the
            other in every layer.
    """

    transformer: TransformerConfig
    head: str = 'cosine'

    @nn.compact
    def __call__(
        self, tokens: jax.Array, token_types: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Relevance of each row.

        Args:
            tokens: `[B, L]` integer ids, padded with `transformer.pad_id`.
            token_types: `[B, L]` integers, 0 on the query and 1 on the passage.
            deterministic: False drops out; see `Transformer`.

        Returns:
            `[B]` float32 logits: no sigmoid, no bounds.

        Raises:
            ValueError: if `head` is not supported.
        """
        if self.head not in HEADS:
            raise ValueError(f'head={self.head!r} is not supported; use one of {", ".join(HEADS)}.')
        encoder = Transformer(self.transformer, name='transformer')
        if self.head == 'linear':
            states = encoder(tokens, token_types, deterministic=deterministic)
            pooled = _dense(self.transformer.hidden_size, 'pooler')(states[:, 0])
            pooled = nn.Dropout(self.transformer.dropout)(
                jnp.tanh(pooled), deterministic=deterministic
            )
            return _dense(1, 'classifier')(pooled)[:, 0]
        # A dual-encoder has only ever seen token type 0: the embedding of type 1 would shift
        # every passage state by something untrained. The segments are for pooling alone.
        states = encoder(tokens, deterministic=deterministic)
        mask = tokens != self.transformer.pad_id
        query = safe_normalize(mean_pool(states, mask & (token_types == 0)))
        passage = safe_normalize(mean_pool(states, mask & (token_types == 1)))
        scale = self.param('scale', nn.initializers.constant(20.0), ())
        bias = self.param('bias', nn.initializers.zeros, ())
        return scale * jnp.sum(query * passage, axis=-1) + bias


def _dense(features: int, name: str) -> nn.Dense:
    # In float32, as every score: bfloat16 logits tie.
    return nn.Dense(
        features, dtype=jnp.float32, kernel_init=nn.initializers.normal(0.02), name=name
    )


def join_pairs(
    query_tokens: np.ndarray, passage_tokens: np.ndarray, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of [CLS] query [SEP] passage [SEP] out of tokenised queries and passages.

    Args:
        query_tokens: `[M, Lq]` ids, each row [CLS] query [SEP] and padding on the right.
        passage_tokens: `[M, Lp]` ids, each row [CLS] passage [SEP] and padding on the right.
        pad_id: The padding token.

    Returns:
        `[M, Lq + Lp - 1]` ids, padded on the right, and as many int32 token types: 1 on the
        passage and its [SEP], 0 elsewhere. A pair of rows of padding gives a row of padding.

    Raises:
        ValueError: if the numbers of rows differ or a row has padding that is not on its right.
    """
    if len(query_tokens) != len(passage_tokens):
        raise ValueError(
            f'{len(query_tokens)} queries cannot be joined with {len(passage_tokens)} passages; '
            'give one query row for each passage row.'
        )
    query_length = _row_lengths(query_tokens, pad_id, 'query_tokens')
    passage_length = _row_lengths(passage_tokens, pad_id, 'passage_tokens')
    columns = np.arange(query_tokens.shape[1] + passage_tokens.shape[1] - 1)[None]
    is_query = columns < query_length
    from_passage = columns - query_length + 1  # Column in the passage row, past its [CLS].
    is_passage = ~is_query & (from_passage < passage_length)
    query = np.take_along_axis(query_tokens, np.minimum(columns, query_tokens.shape[1] - 1), axis=1)
    passage = np.take_along_axis(
        passage_tokens, np.clip(from_passage, 0, passage_tokens.shape[1] - 1), axis=1
    )
    tokens = np.where(is_query, query, np.where(is_passage, passage, pad_id))
    dtype = np.result_type(query_tokens, passage_tokens)
    return tokens.astype(dtype), is_passage.astype(np.int32)


def _row_lengths(tokens: np.ndarray, pad_id: int, name: str) -> np.ndarray:
    """`[M, 1]` tokens of each row."""
    real = tokens != pad_id
    broken = np.flatnonzero((real[:, 1:] & ~real[:, :-1]).any(axis=1))
    if broken.size:
        raise ValueError(
            f'Row {broken[0]} of {name} has padding (id {pad_id}) before its last token; pad on '
            'the right only.'
        )
    return real.sum(axis=1, keepdims=True)
