"""The dual-encoder: queries and passages to vectors whose inner product is the score."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdkd.models.transformer import Transformer, TransformerConfig

POOLINGS = ('mean', 'cls')


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


def safe_normalize(x: jax.Array) -> jax.Array:
    """`[..., D]` vectors to unit length in float32; zero stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The inner `where` keeps the derivative of rsqrt at 0, an infinity, out of the gradient.
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


class DualEncoder(nn.Module):
    """One encoder for queries and passages alike.

    Attributes:
        transformer: Sizes of the encoder.
        pooling: 'mean' of the tokens, special ones included, or the first token, 'cls'.
        normalize: Whether embeddings have unit length, so that the score is the cosine.
    """

    transformer: TransformerConfig
    pooling: str = 'mean'
    normalize: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Embeddings of rows of tokens.

        Args:
            tokens: `[B, L]` integer ids, padded with `transformer.pad_id`.
            deterministic: False drops out; see `Transformer`.

        Returns:
            `[B, D]` float32; zeros for a row that is all padding.

        Raises:
            ValueError: if `pooling` is not supported.
        """
        if self.pooling not in POOLINGS:
            raise ValueError(
                f'pooling={self.pooling!r} is not supported; use one of {", ".join(POOLINGS)}.'
            )
        states = Transformer(self.transformer, name='transformer')(
            tokens, deterministic=deterministic
        )
        mask = tokens != self.transformer.pad_id
        if self.pooling == 'cls':
            states, mask = states[:, :1], mask[:, :1]
        embeddings = mean_pool(states, mask)
        return safe_normalize(embeddings) if self.normalize else embeddings
