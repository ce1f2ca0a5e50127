"""The dual-encoder: queries and passages to vectors whose inner product is the score."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdkd.models.config import ACTIVATIONS, TransformerConfig
from jdkd.models.transformer import Transformer, real_tokens

POOLINGS = ('mean', 'cls', 'max')
# Of a projection: those of encoders that torch has as modules of their own, and none.
PROJECTION_ACTIVATIONS = {
    'identity': lambda x: x,
    **{name: ACTIVATIONS[name] for name in ('tanh', 'relu', 'gelu')},
}


@dataclasses.dataclass(frozen=True)
class Projection:
    """A dense layer between pooling and normalisation: the Dense of sentence-transformers.

    Attributes:
        out_dim: Dimensions of the embeddings.
        bias: Whether it has one.
        activation: A key of `PROJECTION_ACTIVATIONS`.
    """

    out_dim: int
    bias: bool = True
    activation: str = 'identity'

    def __post_init__(self):
        if self.activation not in PROJECTION_ACTIVATIONS:
            raise ValueError(
                f'activation={self.activation!r} of a projection is not supported; use one of '
                f'{", ".join(PROJECTION_ACTIVATIONS)}.'
            )


def mean_pool(states: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of the chosen states of each row.

    Args:
        states: `[B, L, D]`.
        where: `[B, L]` bool.

    Returns:
        `[B, D]` float32; zeros where a row has nothing chosen.
    """
    weights = where.astype(jnp.float32)
    # Selected before they are multiplied: a state that is not chosen may be anything.
    states = jnp.where(where[..., None], states.astype(jnp.float32), 0.0)
    return jnp.sum(states, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1.0)[:, None]


def max_pool(states: jax.Array, where: jax.Array) -> jax.Array:
    """Largest value of each unit over the chosen states of each row.

    Args:
        states: `[B, L, D]`.
        where: `[B, L]` bool.

    Returns:
        `[B, D]` float32; zeros where a row has nothing chosen.
    """
    states = jnp.where(where[..., None], states.astype(jnp.float32), -jnp.inf)
    return jnp.where(jnp.any(where, axis=1)[:, None], jnp.max(states, axis=1), 0.0)


def pool_segments(states: jax.Array, where: jax.Array, pooling: str) -> jax.Array:
    """Pools each of several texts in a row.

    Args:
        states: `[B, L, D]`.
        where: `[B, S, L]` bool, the tokens of each text.
        pooling: As of `DualEncoder`.

    Returns:
        `[B, S, D]` float32; zeros for a text without tokens.
    """
    if pooling == 'max':
        return jnp.stack([max_pool(states, w) for w in jnp.unstack(where, axis=1)], axis=1)
    if pooling == 'cls':
        first = jnp.argmax(where, axis=2)[:, :, None]
        chosen = jnp.take_along_axis(states, first, axis=1).astype(jnp.float32)
        return jnp.where(jnp.any(where, axis=2)[:, :, None], chosen, 0.0)
    weights = where.astype(jnp.float32)
    # States that are not chosen are finite: 0 takes them out of the sum.
    sums = jnp.einsum(
        'bsl,bld->bsd', weights, states.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return sums / jnp.maximum(jnp.sum(weights, axis=2), 1.0)[:, :, None]


def safe_normalize(x: jax.Array) -> jax.Array:
    """`[..., D]` vectors to unit length in float32; zero stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The inner `where` keeps the derivative of rsqrt at 0, an infinity, out of the gradient. Not
    # `square > 0`, which would make a zero of a NaN.
    zero = square == 0
    return jnp.where(zero, 0.0, x * jax.lax.rsqrt(jnp.where(zero, 1.0, square)))


def tower(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The parameters that embed queries or passages.

    Args:
        params: Of `DualEncoder`, which then embeds both; or of untied towers, one tree each:
            `{'query': ..., 'passage': ...}`.
        name: 'query' or 'passage'.
    """
    return params.get(name, params)


class DualEncoder(nn.Module):
    """One encoder for queries and passages alike; untied towers are two sets of its parameters.

    Attributes:
        transformer: Sizes of the encoder.
        pooling: 'mean' or 'max' over the tokens, special ones included, or the first one, 'cls'.
        normalize: Whether embeddings have unit length, so that the score is the cosine.
        projection: A dense layer after pooling; None for none.
    """

    transformer: TransformerConfig
    pooling: str = 'mean'
    normalize: bool = True
    projection: Projection | None = None

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        *,
        num_segments: int = 1,
        dropout_rows: jax.Array | None = None,
    ) -> jax.Array:
        """Embeddings of rows of tokens.

        Args:
            tokens: `[B, L]` integer ids, padded with `transformer.pad_id`.
            segments: `[B, L]` int32 for rows of several texts: 1 to `num_segments` for the text
                that a token belongs to, 0 for padding. None: a row is a text.
            num_segments: S, texts of a row at most.
            dropout_rows: Of the rows, to drop out; see `Transformer`.

        Returns:
            `[B, D]` float32, `[B, S, D]` where segments are given, with `projection.out_dim` for
            D where there is one; zeros for a text without tokens.

        Raises:
            ValueError: if `pooling` is not supported.
        """
        if self.pooling not in POOLINGS:
            raise ValueError(
                f'pooling={self.pooling!r} is not supported; use one of {", ".join(POOLINGS)}.'
            )
        states = Transformer(self.transformer, name='transformer')(
            tokens, segments=segments, dropout_rows=dropout_rows
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
                # TPUs would multiply in bfloat16 by default.
                precision=jax.lax.Precision.HIGHEST,
                kernel_init=nn.initializers.normal(0.02),
                name='projection',
            )
            embeddings = PROJECTION_ACTIVATIONS[self.projection.activation](dense(embeddings))
            # A bias must not make an embedding of nothing.
            embeddings = jnp.where(jnp.any(mask, axis=-1)[..., None], embeddings, 0.0)
        return safe_normalize(embeddings) if self.normalize else embeddings
