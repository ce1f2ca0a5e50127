"""The cross-encoder: a query and a passage, read together, to one relevance logit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jdkd.models.config import ACTIVATIONS, TransformerConfig
from jdkd.models.dual_encoder import mean_pool, safe_normalize
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import Dropout, Transformer, layer_norm, real_tokens, row_lengths

HEADS = ('cosine', 'linear')


class CrossEncoder(nn.Module):
    """Scores rows of a query and a passage, as `join_pairs` makes them.

    Attributes:
        transformer: Sizes of the encoder.
        head: 'linear' is the head of the family's `*ForSequenceClassification`: for checkpoints
            that were trained so. 'cosine' is a learned scale times the cosine of the mean query
            state and the mean passage state (special tokens included) plus a learned bias: where
            the encoder comes from a dual-encoder it ranks well before the first step, and each
            segment sees the other in every layer.
        num_labels: Outputs of the linear head.
    """

    transformer: TransformerConfig
    head: str = 'cosine'
    num_labels: int = 1

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        *,
        dropout_rows: jax.Array | None = None,
    ) -> jax.Array:
        """Relevance of each row.

        Args:
            tokens: `[B, L]` integer ids, padded with `transformer.pad_id`.
            token_types: `[B, L]` integers, 0 on the query and 1 on the passage; the encoder sees
                them where its family marks the second text so.
            dropout_rows: Of the rows, to drop out; see `Transformer`.

        Returns:
            `[B]` float32 logits, no sigmoid, no bounds; `[B, num_labels]` for several labels.

        Raises:
            ValueError: if `head` is not supported, or not with several labels.
        """
        if self.head not in HEADS:
            raise ValueError(f'head={self.head!r} is not supported; use one of {", ".join(HEADS)}.')
        encoder = Transformer(self.transformer, name='transformer')
        mask = real_tokens(tokens, self.transformer.pad_id)
        if self.head == 'linear':
            if not FAMILIES[self.transformer.family].segments:
                token_types = None
            states = encoder(tokens, token_types, dropout_rows=dropout_rows)
            logits = self._classify(states, mask, dropout_rows)
            return logits[:, 0] if self.num_labels == 1 else logits
        if self.num_labels != 1:
            raise ValueError(
                f"head='cosine' has one label, not {self.num_labels}; use head='linear'."
            )
        # A dual-encoder has only ever seen token type 0: the embedding of type 1 would shift
        # every passage state by something untrained. The segments are for pooling alone.
        states = encoder(tokens, dropout_rows=dropout_rows)
        query = safe_normalize(mean_pool(states, mask & (token_types == 0)))
        passage = safe_normalize(mean_pool(states, mask & (token_types == 1)))
        scale = self.param('scale', nn.initializers.constant(20.0), ())
        bias = self.param('bias', nn.initializers.zeros, ())
        return scale * jnp.sum(query * passage, axis=-1) + bias

    def _classify(
        self, states: jax.Array, mask: jax.Array, dropout_rows: jax.Array | None
    ) -> jax.Array:
        """`[B, num_labels]` logits: pooling, dense, activation, dense."""
        config = self.transformer

        def dense(features, name, use_bias=True):
            # In float32, as every score: bfloat16 logits tie.
            return nn.Dense(
                features,
                dtype=jnp.float32,
                use_bias=use_bias,
                kernel_init=nn.initializers.normal(0.02),
                name=name,
            )

        def dropout(x):
            return Dropout(config.dropout)(x, dropout_rows)

        x = mean_pool(states, mask) if config.head_pooling == 'mean' else states[:, 0]
        if FAMILIES[config.family].dropout_first:
            x = dropout(x)
        x = dense(config.hidden_size, 'pooler', config.use_bias)(x)
        x = ACTIVATIONS[config.head_activation](x)
        if config.norm_first:
            x = layer_norm(config, 'pooler_norm')(x)
        return dense(self.num_labels, 'classifier')(dropout(x))


def head_shapes(config: TransformerConfig, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the linear head, by its path (`classifier/kernel`)."""
    model = CrossEncoder(config, 'linear', num_labels)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)['params']
    del params['transformer']
    flat = traverse_util.flatten_dict(params, sep='/')
    return {path: leaf.shape for path, leaf in flat.items()}


def join_pairs(
    query_tokens: np.ndarray, passage_tokens: np.ndarray, pad_id: int, separators: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of [CLS] query [SEP] passage [SEP] out of tokenised queries and passages.

    Args:
        query_tokens: `[M, Lq]` ids, each row [CLS] query [SEP] and padding on the right.
        passage_tokens: `[M, Lp]` ids, each row [CLS] passage [SEP] and padding on the right.
        pad_id: The padding token.
        separators: 1, or 2 for [CLS] query [SEP] [SEP] passage [SEP]; see `Family.separators`.

    Returns:
        `[M, Lq + Lp - 2 + separators]` ids, padded on the right, and as many int32 token types:
        1 on the passage and its [SEP] (both, if there are two before it), 0 elsewhere. A pair of
        rows of padding gives a row of padding.

    Raises:
        ValueError: if the numbers of rows differ.
    """
    if len(query_tokens) != len(passage_tokens):
        raise ValueError(
            f'{len(query_tokens)} queries cannot be joined with {len(passage_tokens)} passages; '
            'give one query row for each passage row.'
        )
    query_length = row_lengths(query_tokens, pad_id)[:, None]
    passage_length = row_lengths(passage_tokens, pad_id)[:, None]
    width = query_tokens.shape[1] + passage_tokens.shape[1] - 2 + separators
    columns = np.arange(width)[None]
    is_query = columns < query_length
    # Column in the passage row: past its [CLS], or with a second [SEP] in place of that.
    from_passage = columns - query_length + 2 - separators
    is_passage = ~is_query & (from_passage < passage_length)
    query = np.take_along_axis(query_tokens, np.minimum(columns, query_tokens.shape[1] - 1), axis=1)
    passage = np.take_along_axis(
        passage_tokens, np.clip(from_passage, 0, passage_tokens.shape[1] - 1), axis=1
    )
    if separators == 2:
        last = np.take_along_axis(query_tokens, np.maximum(query_length - 1, 0), axis=1)
        passage = np.where(from_passage == 0, last, passage)
    tokens = np.where(is_query, query, np.where(is_passage, passage, pad_id))
    dtype = np.result_type(query_tokens, passage_tokens)
    return tokens.astype(dtype), is_passage.astype(np.int32)
