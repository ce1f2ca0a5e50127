"""The cross-encoder: reads a query and a passage together and scores their relevance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jdkd.models.config import ACTIVATIONS, TransformerConfig
from jdkd.models.dual_encoder import mean_pool, safe_normalize
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import (
    INITIALIZER,
    Dropout,
    RowNumbers,
    TokenArray,
    Transformer,
    init_shapes,
    layer_norm,
    real_tokens,
)

HEADS = ('cosine', 'linear')


class CrossEncoder(nn.Module):
    """Scores rows of a query and a passage, as built by `join_pairs`.

    Head 'linear' is that of the family's `*ForSequenceClassification`, for checkpoints trained with
    one. 'cosine' is a learned scale times the cosine between the mean query state and the mean
    passage state (special tokens included) plus a learned bias: if the encoder comes from a
    dual-encoder, it ranks well before the first step, and each text sees the other in every layer.
    """

    transformer: TransformerConfig
    head: str = 'cosine'
    num_labels: int = 1  # Outputs of the linear head.

    @nn.compact
    def __call__(
        self, tokens: TokenArray, token_types: TokenArray, *, dropout_rows: RowNumbers | None = None
    ) -> Float[Array, ' batch'] | Float[Array, 'batch {self.num_labels}']:
        """Scores each row.

        Args:
            tokens: Ids, padded with `transformer.pad_id`.
            token_types: 0 on the query and 1 on the passage. The encoder sees them if its family
                marks the second text of a pair this way.
            dropout_rows: Row numbers that seed dropout; see `Transformer`.

        Returns:
            Unbounded float32 logits; one per label if there are several labels.

        Raises:
            ValueError: if `head` is not supported, or does not support several labels.
        """
        if self.head not in HEADS:
            raise ValueError(f'head={self.head!r} is not supported; use one of {", ".join(HEADS)}.')
        encoder = Transformer(self.transformer, name='transformer')
        mask = real_tokens(tokens, self.transformer.pad_id)
        if self.head == 'linear':
            types = token_types if FAMILIES[self.transformer.family].segments else None
            states = encoder(tokens, types, dropout_rows=dropout_rows)
            logits = self._classify(states, mask, dropout_rows)
            return logits[:, 0] if self.num_labels == 1 else logits
        if self.num_labels != 1:
            raise ValueError(
                f"head='cosine' has one label, not {self.num_labels}; use head='linear'."
            )
        # A dual-encoder has only seen token type 0: the untrained embedding of type 1 would shift
        # every passage state. Token types serve pooling alone.
        states = encoder(tokens, dropout_rows=dropout_rows)
        query = safe_normalize(mean_pool(states, mask & (token_types == 0)))
        passage = safe_normalize(mean_pool(states, mask & (token_types == 1)))
        scale = self.param('scale', nn.initializers.constant(20.0), ())
        bias = self.param('bias', nn.initializers.zeros, ())
        return scale * jnp.sum(query * passage, axis=-1) + bias

    def _classify(
        self,
        states: Float[Array, 'batch length hidden'],
        mask: Bool[Array, 'batch length'],
        dropout_rows: RowNumbers | None,
    ) -> Float[Array, 'batch {self.num_labels}']:
        """Applies the linear head: pooling, dense layer, activation, dense layer."""
        config = self.transformer

        def dense(features, name, use_bias=True):
            # In float32, since bfloat16 logits would tie.
            return nn.Dense(
                features,
                dtype=jnp.float32,
                use_bias=use_bias,
                kernel_init=INITIALIZER,
                precision=jax.lax.Precision.HIGHEST,
                name=name,
            )

        x = mean_pool(states, mask) if config.head_pooling == 'mean' else states[:, 0]
        if FAMILIES[config.family].dropout_first:
            x = Dropout(config.dropout)(x, dropout_rows)
        x = dense(config.hidden_size, 'pooler', config.use_bias)(x)
        x = ACTIVATIONS[config.head_activation](x)
        if config.norm_first:
            x = layer_norm(config, 'pooler_norm')(x)
        return dense(self.num_labels, 'classifier')(Dropout(config.dropout)(x, dropout_rows))


def head_shapes(config: TransformerConfig, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter of the linear head by path, as `classifier/kernel`."""
    shapes = init_shapes(CrossEncoder(config, 'linear', num_labels))
    return {k: shape for k, shape in shapes.items() if not k.startswith('transformer/')}
