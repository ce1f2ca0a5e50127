"""Encoding: order, padding and batching leave no trace in the result."""

import jax
import jax.numpy as jnp
import numpy as np

from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig
from jdkd.retrieval import encode
from jdkd.runtime import mesh as meshes

MODEL = DualEncoder(
    TransformerConfig(
        vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32
    )
)


def test_rows_of_any_length_encode_as_they_do_alone():
    rng = np.random.default_rng(0)
    tokens = np.zeros((83, 70), np.uint16)
    for row in tokens:
        size = rng.integers(1, 71)
        row[:size] = rng.integers(4, 64, size)
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    for num_devices in (1, 8):
        mesh = meshes.make_mesh(devices=jax.devices()[:num_devices])
        on_mesh = jax.device_put(params, meshes.replicated(mesh))
        found = encode.embed(MODEL, on_mesh, tokens, pad_id=0, mesh=mesh, desc='test')
        expected = MODEL.apply({'params': params}, tokens.astype(np.int32))
        np.testing.assert_allclose(found, expected, atol=2e-6)
