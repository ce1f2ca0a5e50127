"""Sharding rules: complete, used, and the same result however parameters are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdkd.configs import common
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig
from jdkd.runtime import mesh as meshes

CONFIG = TransformerConfig(
    vocab_size=64, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32
)


def params():
    return DualEncoder(CONFIG).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']


def test_mesh_must_use_all_devices():
    with pytest.raises(ValueError, match='not the number of devices, 8'):
        meshes.make_mesh(3, 2)
    assert dict(meshes.make_mesh(model=2).shape) == {'data': 4, 'model': 2}


def test_the_default_rules_decide_for_every_parameter():
    rules = common.get_config().sharding
    meshes.check_rules(params(), rules)
    placed = meshes.shardings(meshes.make_mesh(model=2), params(), rules)
    layer = placed['transformer']['layer_0']
    assert layer['ffn']['up']['kernel'].spec == P(None, 'model')
    assert layer['ffn']['up']['bias'].spec == P('model')
    assert layer['ffn']['down']['kernel'].spec == P('model', None)
    assert layer['attention_norm']['scale'].spec == P()


def test_split_parameters_compute_the_same():
    rules = common.get_config().sharding
    mesh = meshes.make_mesh(model=2)
    tokens = np.random.default_rng(0).integers(4, 64, (8, 10))
    split = jax.device_put(params(), meshes.shardings(mesh, params(), rules))
    outputs = jax.jit(lambda p, t: DualEncoder(CONFIG).apply({'params': p}, t))(
        split, jax.device_put(tokens, meshes.batch_sharding(mesh))
    )
    expected = DualEncoder(CONFIG).apply({'params': params()}, tokens)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_a_rule_without_parameters_is_an_error():
    with pytest.raises(ValueError, match="'nothing/' matches no parameter first"):
        meshes.check_rules(params(), (('nothing/', ()), ('.*', ())))


def test_a_parameter_without_rule_is_an_error():
    with pytest.raises(ValueError, match='no sharding rule matches parameter .*norm'):
        meshes.check_rules(params(), (('kernel', ()), ('bias', ()), ('embedding$', ())))


def test_a_split_that_does_not_divide_is_an_error():
    tree = {'embedding': jnp.zeros((3, 20))}
    with pytest.raises(ValueError, match='splits embedding .* 8 ways, which does not divide 20'):
        meshes.shardings(meshes.make_mesh(), tree, (('.*', (None, 'data')),))
