"""The dual-encoder: maps queries and passages to vectors whose inner product is the score."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jdkd.config.systems import POOLINGS
from jdkd.models.config import ACTIVATIONS, TransformerConfig
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import INITIALIZER, RowNumbers, TokenArray, Transformer, real_tokens

# Activations of a projection: those that torch has as modules, and none.
PROJECTION_ACTIVATIONS = {
    'identity': lambda x: x,
    **{name: ACTIVATIONS[name] for name in ('tanh', 'relu', 'gelu')},
}


@dataclasses.dataclass(frozen=True)
class Projection:
    """A dense layer between pooling and normalisation, as `Dense` of sentence-transformers."""

    out_dim: int  # Dimensions of the embeddings.
    bias: bool = True
    activation: str = 'identity'  # A key of `PROJECTION_ACTIVATIONS`.

    def __post_init__(self):
        if self.activation not in PROJECTION_ACTIVATIONS:
            raise ValueError(
                f'activation={self.activation!r} of a projection is not supported; use one of '
                f'{", ".join(PROJECTION_ACTIVATIONS)}.'
            )


def mean_pool(
    states: Float[Array, 'batch length hidden'], where: Bool[Array, 'batch length']
) -> Float[Array, 'batch hidden']:
    """Averages the selected states of each row, in float32; zeros if a row selects none."""
    weights = where.astype(jnp.float32)
    # Select before multiplying: states that are not selected may hold anything, NaN included.
    states = jnp.where(where[..., None], states.astype(jnp.float32), 0.0)
    return jnp.sum(states, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)[:, None]


def max_pool(
    states: Float[Array, 'batch length hidden'], where: Bool[Array, 'batch length']
) -> Float[Array, 'batch hidden']:
    """Takes each unit's maximum over the selected states, in float32; zeros if there are none."""
    states = jnp.where(where[..., None], states.astype(jnp.float32), -jnp.inf)
    return jnp.where(jnp.any(where, axis=1)[:, None], jnp.max(states, axis=1), 0.0)


def pool_segments(
    states: Float[Array, 'batch length hidden'],
    where: Bool[Array, 'batch texts length'],
    pooling: str,
) -> Float[Array, 'batch texts hidden']:
    """Pools finite states of each of several texts in a row, in float32; see `DualEncoder`.

    `where` selects the tokens of each text. A text without tokens gives zeros.
    """
    if pooling == 'max':
        return jnp.stack([max_pool(states, w) for w in jnp.unstack(where, axis=1)], axis=1)
    if pooling == 'cls':
        first = jnp.argmax(where, axis=2)[:, :, None]
        chosen = jnp.take_along_axis(states, first, axis=1).astype(jnp.float32)
        return jnp.where(jnp.any(where, axis=2)[:, :, None], chosen, 0.0)
    weights = where.astype(jnp.float32)
    # A weight of 0 suffices here, because states that are not selected are finite.
    sums = jnp.einsum(
        'bsl,bld->bsd', weights, states.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return sums / jnp.maximum(jnp.sum(weights, axis=2), 1.0)[:, :, None]


def safe_normalize(x: Float[Array | np.ndarray, '*batch dim']) -> Float[Array, '*batch dim']:
    """Scales vectors to unit length in float32; zero stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The inner `where` keeps the infinite derivative of rsqrt at 0 out of the gradient. Testing
    # `square > 0` would turn NaN into zero.
    zero = square == 0
    return jnp.where(zero, 0.0, x * jax.lax.rsqrt(jnp.where(zero, 1.0, square)))


def prefix(
    embeddings: Float[Array | np.ndarray, '*batch dim'], dim: int, *, normalize: bool
) -> Float[Array, '*batch {dim}']:
    """The first `dim` dimensions of embeddings, of unit length if the model normalises.

    Matryoshka embeddings (Kusupati et al., 2022, https://arxiv.org/abs/2205.13147) are trained so
    that these serve alone.
    """
    part = jnp.asarray(embeddings)[..., :dim]
    return safe_normalize(part) if normalize else part


def tower(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns the parameters that embed texts of kind `name`, 'query' or 'passage'.

    `params` are those of one `DualEncoder`, or of untied towers `{'query': ..., 'passage': ...}`.
    """
    return params.get(name, params)


def embedding_width(model: Any) -> int:
    """Dimensions of an encoder's embeddings; of a cross-encoder, those of its states."""
    projection = getattr(model, 'projection', None)
    return model.transformer.hidden_size if projection is None else projection.out_dim


class DualEncoder(nn.Module):
    """One encoder for queries and passages; untied towers are two sets of its parameters."""

    transformer: TransformerConfig
    pooling: str = 'mean'  # Or 'max', over all tokens, special ones included; 'cls' for the first.
    normalize: bool = True  # Whether embeddings have unit length, so that scores are cosines.
    projection: Projection | None = None
    # Whether texts may be pairs: ids of a second text, which has token type 1, are then given as
    # `transformer.vocab_size` more. So stores and rows of tokens need no types beside them.
    pairs: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: TokenArray,
        segments: TokenArray | None = None,
        *,
        num_segments: int = 1,
        dropout_rows: RowNumbers | None = None,
    ) -> Float[Array, 'batch dim'] | Float[Array, 'batch {num_segments} dim']:
        """Embeds rows of tokens.

        Args:
            tokens: Ids, padded with `transformer.pad_id`; see also `pairs`.
            segments: For rows that hold several texts, int32: the index of the token's text, 1 to
                `num_segments`, or 0 for padding. None if each row is one text.
            num_segments: Maximum number of texts in a row.
            dropout_rows: Row numbers that seed dropout; see `Transformer`.

        Returns:
            float32 embeddings of the rows, or with `segments` of each text in each row; zeros for
            a text without tokens.

        Raises:
            ValueError: if `pooling` is not supported.
        """
        if self.pooling not in POOLINGS:
            raise ValueError(
                f'pooling={self.pooling!r} is not supported; use one of {", ".join(POOLINGS)}.'
            )
        types = None
        if self.pairs:
            size = self.transformer.vocab_size
            tokens, is_second = tokens % size, tokens // size
            types = is_second if FAMILIES[self.transformer.family].segments else None
        states = Transformer(self.transformer, name='transformer')(
            tokens, types, segments=segments, dropout_rows=dropout_rows
        )
        if segments is not None:
            mask = segments[:, None] == 1 + jnp.arange(num_segments)[:, None]
            embeddings = pool_segments(states, mask, self.pooling)
        else:
            mask = real_tokens(tokens, self.transformer.pad_id)
            if self.pooling == 'cls':
                states, mask = states[:, :1], mask[:, :1]
            embeddings = (max_pool if self.pooling == 'max' else mean_pool)(states, mask)
        if self.projection is not None:
            dense = nn.Dense(
                self.projection.out_dim,
                use_bias=self.projection.bias,
                dtype=jnp.float32,
                # The default on TPUs is to multiply in bfloat16.
                precision=jax.lax.Precision.HIGHEST,
                kernel_init=INITIALIZER,
                name='projection',
            )
            embeddings = PROJECTION_ACTIVATIONS[self.projection.activation](dense(embeddings))
            # A bias must not give a text without tokens an embedding.
            embeddings = jnp.where(jnp.any(mask, axis=-1)[..., None], embeddings, 0.0)
        return safe_normalize(embeddings) if self.normalize else embeddings
