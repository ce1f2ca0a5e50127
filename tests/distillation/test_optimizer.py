"""The optimizer: its schedule, and updates from the mean gradient of several steps."""

import jax
import numpy as np
import pytest

from jdkd import config as configs
from jdkd.config import OptimizerConfig
from jdkd.configs import common
from jdkd.distillation import step as steps

SHAPES = {'kernel': (4, 3), 'bias': (3,)}


def optimizer(**fields):
    changed = {'learning_rate': 1e-2, 'warmup_steps': 4, 'total_steps': 12, 'cycle_steps': 0}
    return steps.optimizer(OptimizerConfig(**changed | fields))


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def train(tx, gradients, params):
    """Parameters after each gradient."""
    state, found = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = jax.tree.map(np.add, params, updates)
        found.append(params)
    return found


def test_accumulated_steps_are_one_update_of_their_mean():
    gradients = [parameters(seed) for seed in range(1, 13)]
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *gradients[i : i + 2]) for i in range(0, 12, 2)]
    start = parameters()
    found = train(optimizer(accumulate=2), gradients, start)
    # The schedule goes on by steps, of which an update is two.
    expected = train(optimizer(warmup_steps=2, total_steps=6), means, start)
    for i in range(6):
        between = found[2 * i - 1] if i else start
        jax.tree.map(np.testing.assert_array_equal, found[2 * i], between)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[2 * i + 1], expected[i]
        )


def test_gradients_are_cut_after_they_are_averaged():
    large = jax.tree.map(lambda x: 1e6 * x, parameters(1))
    opposite = jax.tree.map(lambda x: -x, large)
    start = parameters()
    tx = optimizer(warmup_steps=0, weight_decay=0.0, accumulate=2)
    found = train(tx, [large, opposite], start)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), found, start)


def test_matrices_decay_by_the_weight_of_the_config_and_vectors_do_not():
    start = parameters()
    nothing = jax.tree.map(np.zeros_like, start)
    (found,) = train(optimizer(warmup_steps=0, weight_decay=0.3), [nothing], start)
    # At the rate of 0.01 a step takes 0.3 % of each entry.
    np.testing.assert_allclose(found['kernel'], 0.997 * start['kernel'], rtol=1e-6)
    np.testing.assert_array_equal(found['bias'], start['bias'])


@pytest.mark.parametrize('accumulate', [1, 3])
def test_the_rate_warms_up_and_falls_by_steps(accumulate):
    """Adam's update under a constant gradient is the rate, but for weight decay."""
    ones = {'bias': np.ones(3, np.float32)}
    found = train(optimizer(accumulate=accumulate), [ones] * 12, {'bias': np.zeros(3, np.float32)})
    values = [0.0, *(float(p['bias'][0]) for p in found)]
    rates = -np.diff(values)[accumulate - 1 :: accumulate]
    progress = np.arange(0, 12, accumulate)
    cosine = 0.5 * (1 + np.cos(np.pi * (progress - 4) / 8))
    np.testing.assert_allclose(
        rates, 1e-2 * np.where(progress < 4, progress / 4, cosine), rtol=1e-4, atol=1e-8
    )


@pytest.mark.parametrize('accumulate', [1, 2])
def test_the_rate_starts_again_in_each_cycle(accumulate):
    tx = optimizer(cycle_steps=12, total_steps=36, accumulate=accumulate, weight_decay=0.0)
    ones = {'bias': np.ones(3, np.float32)}
    params = train(tx, [ones] * 36, {'bias': np.zeros(3, np.float32)})
    values = [0.0, *(float(p['bias'][0]) for p in params)]
    rates = -np.diff(values)[accumulate - 1 :: accumulate].reshape(3, -1)
    progress = np.arange(0, 12, accumulate)
    cosine = 0.5 * (1 + np.cos(np.pi * (progress - 4) / 8))
    expected = 1e-2 * np.where(progress < 4, progress / 4, cosine)
    np.testing.assert_allclose(rates, [expected] * 3, rtol=1e-3, atol=1e-7)


def test_a_run_restarts_the_rate_in_each_round_unless_told_otherwise():
    c = common.get_config()
    c.rounds, c.steps_per_round = 3, 50
    c.optimizer.update(learning_rate=1e-3, warmup_steps=10)
    rate = steps.learning_rate(configs.resolve(c).optimizer)
    rates = np.array([rate(i) for i in range(150)]).reshape(3, 50)
    np.testing.assert_array_equal(rates, rates[[0, 0, 0]])
    assert rates[:, 0].tolist() == [0, 0, 0] and rates[:, 10].tolist() == [np.float32(1e-3)] * 3
    c.optimizer.cycle_steps = 0
    rate = steps.learning_rate(configs.resolve(c).optimizer)
    over_all = [float(rate(i)) for i in (0, 10, 80, 149)]
    np.testing.assert_allclose(over_all, [0, 1e-3, 5e-4, 1.3e-7], rtol=0.05)
