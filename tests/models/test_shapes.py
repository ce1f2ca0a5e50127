"""The import hook of tests/conftest.py checks jaxtyping's annotations; a wrong shape raises."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from jdkd.models import positions
from jdkd.models.attention import attention
from jdkd.models.dual_encoder import mean_pool
from jdkd.models.transformer import Embeddings, TransformerConfig

STATES = jnp.ones((2, 3, 4))


def test_pooling_refuses_a_mask_of_another_length():
    with pytest.raises(jaxtyping.TypeCheckError, match='where'):
        mean_pool(STATES, jnp.ones((2, 5), bool))


def test_pooling_refuses_a_mask_of_numbers():
    with pytest.raises(jaxtyping.TypeCheckError, match='where'):
        mean_pool(STATES, jnp.ones((2, 3)))


def test_attention_refuses_a_bias_for_other_heads():
    x, segments = jnp.ones((2, 3, 4, 5)), jnp.ones((2, 3), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError, match='bias'):
        bias = jnp.ones((1, 2, 3, 3))
        attention(x, x, x, segments=segments, packed=False, bias=bias, scale=1.0)


def test_rotate_refuses_angles_of_whole_heads():
    with pytest.raises(jaxtyping.TypeCheckError, match='angles'):
        positions.rotate(jnp.ones((2, 3, 4, 6)), positions.rotary_angles(3, 12, 100.0))


def test_modules_are_checked_while_jit_traces_them():
    model = Embeddings(TransformerConfig(10, 8, 1, 2, 16))
    tokens = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError, match='token_types'):
        jax.jit(model.init)(jax.random.key(0), tokens, tokens[:, :2], tokens[:1])
