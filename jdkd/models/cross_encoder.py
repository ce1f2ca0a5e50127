"""The cross-encoder: a query and a passage, read together, to one relevance logit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jdkd.models.config import ACTIVATIONS, TransformerConfig
from jdkd.models.dual_encoder import mean_pool, safe_normalize
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import Dropout, Transformer, layer_norm, real_tokens

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
