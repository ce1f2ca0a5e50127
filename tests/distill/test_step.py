"""The train step: equal on 1 and 8 devices, every term switchable, and it learns."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import common
from jdkd.distill import losses, train
from jdkd.distill import step as steps
from jdkd.models.cross_encoder import CrossEncoder, join_pairs
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig
from jdkd.runtime import mesh as meshes

B, ORIGINALS, DARK, K, L = 8, 4, 2, 3, 12
SCALE = 10.0


def model(dropout=0.0):
    return DualEncoder(
        TransformerConfig(
            vocab_size=64,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            intermediate_size=32,
            max_positions=16,
            dropout=dropout,
        )
    )


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    N = ORIGINALS + DARK

    def tokens(*shape):
        ids = rng.integers(4, 64, shape)
        lengths = rng.integers(3, shape[-1] + 1, shape[:-1])
        return np.where(np.arange(shape[-1]) < lengths[..., None], ids, 0).astype(np.int32)

    group = np.arange(B * ORIGINALS, dtype=np.int32).reshape(B, ORIGINALS)
    group[1, 2] = group[0, 0]  # Another query's positive stands in the list of query 1.
    return {
        'query': tokens(B, 6),
        'passages': tokens(B, N, L),
        'group': group,
        'relevant': group[:, :1],
        'false_negative': np.zeros((B, ORIGINALS), bool),
        'teacher': rng.normal(size=(B, N)).astype(np.float32) * 3,
        'assistants': rng.normal(size=(B, K, N)).astype(np.float32) * 3,
        'in_batch': rng.normal(size=(B, K, B * ORIGINALS)).astype(np.float32) * 9,
    }


TERMS = ('contrastive', 'teacher', 'assistant', 'dark', 'in_batch')


def settings(**loss):
    config = common.get_config()
    config.loss.update({'in_batch': 1.0} | loss)
    config.optimizer = ml_collections.ConfigDict(
        dict(learning_rate=1e-3, warmup_steps=1, total_steps=50, weight_decay=0.01, clip_norm=1.0)
    )
    return config


def make_trainer(config, num_devices=1, net=None, dropout=0.0):
    net = net or model(dropout)
    example = jnp.zeros((1, 4), jnp.int32)
    params = net.init(jax.random.key(0), example)['params']
    mesh = meshes.make_mesh(devices=jax.devices()[:num_devices])
    trainer = train.make_trainer(
        config,
        config.optimizer,
        mesh=mesh,
        params=params,
        score_fn=steps.dual_encoder_scores(net, SCALE),
        num_assistants=K,
        dropout=dropout,
    )
    return trainer, params


def take_steps(config, num_devices=1, num_steps=1, dropout=0.0):
    trainer, params = make_trainer(config, num_devices, dropout=dropout)
    state = trainer.init(params)
    for i in range(num_steps):
        batch = meshes.to_device(make_batch(i), meshes.batch_sharding(trainer.mesh))
        state, metrics = trainer.step(state, batch)
    return jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize('dropout', [0.0, 0.1])
def test_one_and_eight_devices_agree(dropout):
    one, one_metrics = take_steps(settings(), 1, num_steps=3, dropout=dropout)
    eight, eight_metrics = take_steps(settings(), 8, num_steps=3, dropout=dropout)
    assert one_metrics.keys() == eight_metrics.keys()
    for name in one_metrics:
        np.testing.assert_allclose(one_metrics[name], eight_metrics[name], rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(one.selected, eight.selected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, eight.params)


def test_gradients_agree_on_one_and_eight_devices():
    config = settings()
    net = model()
    loss = steps.make_loss(config, steps.dual_encoder_scores(net, SCALE), K)
    params = net.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    found = []
    for num_devices in (1, 8):
        mesh = meshes.make_mesh(devices=jax.devices()[:num_devices])
        batch = meshes.to_device(make_batch(), meshes.batch_sharding(mesh))
        on_mesh = jax.device_put(params, meshes.replicated(mesh))
        grads, _ = jax.jit(jax.grad(loss, has_aux=True))(on_mesh, batch, jnp.zeros(()))
        found.append(jax.device_get(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def first_metrics(config):
    """Metrics of the first batch, without an update."""
    net = model()
    params = net.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    loss = steps.make_loss(config, steps.dual_encoder_scores(net, SCALE), K)
    return jax.jit(loss)(params, make_batch(), jnp.zeros(()))[1]


def test_the_loss_is_the_sum_of_its_terms_and_each_can_be_switched_off():
    metrics = first_metrics(settings())
    terms = [metrics[f'loss/{name}'] for name in TERMS]
    np.testing.assert_allclose(metrics['loss'], sum(terms), rtol=1e-6)
    for name in TERMS:
        without = first_metrics(settings(**{name: 0.0}))
        assert f'loss/{name}' not in without
    alone = first_metrics(settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0))
    np.testing.assert_allclose(alone['loss'], metrics['loss/contrastive'], rtol=1e-6)
    assert 'selected' not in alone


def test_terms_equal_their_definitions():
    config = settings()
    net = model()
    params = net.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    batch = make_batch()
    metrics = first_metrics(config)
    queries = net.apply({'params': params}, batch['query'])
    lists = np.stack(
        [
            SCALE * net.apply({'params': params}, passages) @ query
            for passages, query in zip(batch['passages'], queries, strict=True)
        ]
    )
    teacher_kl = losses.listwise_kl(lists[:, :ORIGINALS], batch['teacher'][:, :ORIGINALS])
    np.testing.assert_allclose(metrics['loss/teacher'], teacher_kl.mean(), rtol=1e-4)
    # The mask is at its beginning: the more confident half of the lists.
    p = jax.nn.softmax(batch['teacher'][:, :ORIGINALS])[:, 0]
    keep = p >= np.sort(p)[3]
    chosen = np.flatnonzero(metrics['selected'])[0]
    subsets = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    fused = jax.nn.softmax(batch['assistants'])[:, subsets[chosen]].mean(axis=1)
    kl = losses.listwise_kl(lists, batch['teacher'])
    kl += losses.kl_from_log_target(lists, jnp.log(fused))
    np.testing.assert_allclose(metrics['loss/dark'], kl[keep].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics['kept_share'], keep.mean())
    # Over the batch: the same choice, its own temperature, every query's list the same passages.
    wide = config.loss.in_batch_temperature
    passages = net.apply({'params': params}, batch['passages'][:, :ORIGINALS].reshape(-1, L))
    fused = jax.nn.softmax(batch['in_batch'] / wide)[:, subsets[chosen]].mean(axis=1)
    kl = losses.kl_from_log_target(SCALE * queries @ passages.T, jnp.log(fused), temperature=wide)
    np.testing.assert_allclose(metrics['loss/in_batch'], kl.mean(), rtol=1e-4)


def test_another_querys_list_with_my_positive_is_no_negative():
    _, _, labels, mask = steps.dual_encoder_scores(model(), SCALE)(
        model().init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params'],
        make_batch(),
        None,
    )
    assert not mask[0, ORIGINALS + 2] and mask[1, ORIGINALS + 2]
    assert mask[jnp.arange(B), labels].all()
    np.testing.assert_array_equal(labels, np.arange(B) * ORIGINALS)


def test_it_learns_the_teachers_distribution():
    config = settings(contrastive=0.0, assistant=0.0, dark=0.0, in_batch=0.0)
    trainer, params = make_trainer(config)
    state = trainer.init(params)
    batch = meshes.to_device(make_batch(), meshes.batch_sharding(trainer.mesh))
    first = None
    for _ in range(40):
        state, metrics = trainer.step(state, batch)
        first = first or float(metrics['loss'])
    assert float(metrics['loss']) < 0.5 * first


def test_nothing_recompiles_after_the_first_step():
    trainer, params = make_trainer(settings())
    state = trainer.init(params)
    for i in range(3):
        batch = meshes.to_device(make_batch(i), meshes.batch_sharding(trainer.mesh))
        state, _ = trainer.step(state, batch)
    assert trainer.step._cache_size() == 1


def test_a_cross_encoder_trains_in_the_same_step():
    net = CrossEncoder(model().transformer, head='linear')
    rng = np.random.default_rng(0)
    rows = rng.integers(4, 64, (B * ORIGINALS, 6)).astype(np.int32)
    tokens, token_types = join_pairs(rows, rows[::-1], 0)
    batch = {k: make_batch()[k] for k in ('group', 'relevant', 'false_negative')}
    batch['passages'] = tokens.reshape(B, ORIGINALS, -1)
    batch['token_types'] = token_types.reshape(B, ORIGINALS, -1)
    params = net.init(jax.random.key(0), tokens[:1], token_types[:1])['params']
    config = settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0)
    config.optimizer.learning_rate = 1e-2
    trainer = train.make_trainer(
        config,
        config.optimizer,
        mesh=meshes.make_mesh(devices=jax.devices()[:1]),
        params=params,
        score_fn=steps.cross_encoder_scores(net),
        num_assistants=0,
    )
    state = trainer.init(params)
    on_device = meshes.to_device(batch, meshes.batch_sharding(trainer.mesh))
    state, first = trainer.step(state, on_device)
    for _ in range(40):
        state, metrics = trainer.step(state, on_device)
    assert first['loss'] == pytest.approx(np.log(ORIGINALS), abs=0.2)
    assert metrics['loss'] < 0.7 * first['loss']


def test_untied_towers_that_are_equal_share_the_gradient_of_a_tied_one():
    net = model()
    loss = steps.make_loss(settings(), steps.dual_encoder_scores(net, SCALE), K)
    _, params = make_trainer(settings())
    tied, found = jax.grad(loss, has_aux=True)(params, make_batch(), 0.0)
    towers = {'query': params, 'passage': params}
    untied, untied_found = jax.grad(loss, has_aux=True)(towers, make_batch(), 0.0)
    np.testing.assert_allclose(found['loss'], untied_found['loss'], rtol=1e-6)
    both = jax.tree.map(jnp.add, untied['query'], untied['passage'])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tied, both)
    sizes = [optax.tree.norm(untied[name]) for name in ('query', 'passage')]
    assert min(sizes) > 1e-3
