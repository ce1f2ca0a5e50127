"""The train step: equal on 1 and 8 devices, in any rows and chunks, and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdkd.distillation import batch_scores
from jdkd.distillation import trainer as trainers
from jdkd.lists import packing
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import mesh as meshes
from jdkd.tokens.pairs import join_pairs
from tests.helpers.lists import (
    ROWS,
    SCALE,
    fresh_params,
    make_batch,
    make_loss,
    make_objective,
    model,
    settings,
)
from tests.helpers.train_steps import ORIGINALS, B, K

pytestmark = pytest.mark.slow


def make_trainer(config, num_devices=1, dropout=0.0, dims=()):
    return trainers.make_trainer(
        make_objective(config, num_assistants=K, dropout=dropout, dims=dims),
        mesh=meshes.make_mesh(devices=jax.devices()[:num_devices]),
        model=model(dropout),
        params=fresh_params(),
    )


@pytest.mark.parametrize('dims', [(), (8, 4)])
def test_one_and_eight_devices_agree_dropout_included_and_compile_once(dims):
    states, metrics = [], []
    for num_devices in (1, 8):
        trainer = make_trainer(settings(embedding=1.0), num_devices, 0.1, dims)
        state = first = trainer.init(fresh_params())
        for i in range(3):
            batch = meshes.to_device(make_batch(i), meshes.batch_sharding(trainer.mesh))
            state, found = trainer.step(state, batch)
        assert trainer.step._cache_size() == 1
        # Each state takes the memory of the one before.
        assert all(x.is_deleted() for x in jax.tree.leaves((first.params, first.opt_state)))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(found))
    (alone, other), (expected, found) = states, metrics
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(other.selected, alone.selected)
    # The optimizer's first moments are the gradients of the three steps.
    for tree in ('params', 'opt_state'):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
            getattr(other, tree),
            getattr(alone, tree),
        )


def test_dropout_draws_by_the_seed_of_the_config():
    losses = {}
    for dropout, seed in ((0.0, 0), (0.0, 1), (0.5, 0), (0.5, 1)):
        config = settings()
        config.seed = seed
        trainer = make_trainer(config, dropout=dropout)
        batch = meshes.to_device(make_batch(), meshes.batch_sharding(trainer.mesh))
        _, metrics = trainer.step(trainer.init(fresh_params()), batch)
        losses[dropout, seed] = float(metrics['loss'])
    assert losses[0.0, 0] == losses[0.0, 1]
    assert len(set(losses.values())) == 3


def test_losses_and_gradients_are_float32_where_the_model_computes_in_bfloat16():
    config = settings(distance='margin_mse')
    half = DualEncoder(dataclasses.replace(model().transformer, dtype='bfloat16'))
    score_fn = batch_scores.dual_encoder_scores(half, SCALE)
    for fusion in ('subsets', 'rrf'):
        config.selection.fusion = fusion
        loss = jax.grad(make_loss(config, score_fn, K), has_aux=True)
        grads, metrics = jax.eval_shape(loss, fresh_params(), make_batch(), 0.0)
        assert {x.dtype for x in jax.tree.leaves((grads, metrics))} == {np.dtype(np.float32)}


def test_scores_are_multiplied_in_full_float32_on_accelerators_too():
    batch = make_batch()
    batch['pool_embedding'] = np.zeros((B, 2, model().transformer.hidden_size), np.float32)
    half = DualEncoder(dataclasses.replace(model().transformer, dtype='bfloat16'))
    score_fn = batch_scores.dual_encoder_scores(half, SCALE)
    traced = jax.make_jaxpr(score_fn)(fresh_params(), batch, None)
    products = [e for e in traced.eqns if e.primitive.name == 'dot_general']
    # Of lists, of the batch and of the pool.
    full = [e for e in products if e.params['precision'] == (jax.lax.Precision.HIGHEST,) * 2]
    assert len(full) == 3
    assert all(e.outvars[0].aval.shape[0] == B for e in full)


def test_scores_of_a_dual_encoder_are_scaled_inner_products():
    batch, net = make_batch(), jax.jit(lambda tokens: model().apply({'params': params}, tokens))
    params = fresh_params()
    found = jax.jit(batch_scores.dual_encoder_scores(model(), SCALE))(params, batch, None)
    lists, in_batch, labels, mask = found[:4]
    queries = np.array(net(batch['query']))
    passages = np.array(net(batch['tokens'][0]))[batch['slots']]
    expected = SCALE * np.einsum('bd,bnd->bn', queries, passages)
    np.testing.assert_allclose(lists, expected, rtol=1e-4, atol=1e-5)
    originals = passages[:, :ORIGINALS].reshape(B * ORIGINALS, -1)
    np.testing.assert_allclose(in_batch, SCALE * queries @ originals.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, np.arange(B) * ORIGINALS)
    np.testing.assert_allclose(found.queries, queries, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.originals, passages[:, :ORIGINALS], rtol=1e-5, atol=1e-6)
    # Another query's list holds my positive: no negative.
    assert not mask[0, ORIGINALS + 2] and mask[1, ORIGINALS + 2]
    assert mask[jnp.arange(B), labels].all()


def test_a_cross_encoder_trains_in_the_same_step():
    net = CrossEncoder(model().transformer, head='linear')
    rng = np.random.default_rng(0)
    rows = rng.integers(4, 64, (B * ORIGINALS, 6)).astype(np.int32)
    tokens, token_types = join_pairs(rows, rows[::-1], 0)
    batch = {k: make_batch()[k] for k in ('group', 'relevant', 'false_negative')}
    texts = {'tokens': tokens, 'token_types': token_types}
    texts = {name: x.reshape(B, ORIGINALS, -1) for name, x in texts.items()}
    batch['lengths'] = np.full((B, ORIGINALS), tokens.shape[1])
    layout = packing.fit_layout([batch['lengths']], ROWS)
    batch |= packing.pack(texts, batch['lengths'], layout, pad_id=0)
    params = jax.jit(net.init)(jax.random.key(0), tokens[:1], token_types[:1])['params']
    config = settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0)
    config.optimizer.learning_rate = 1e-2
    trainer = trainers.make_trainer(
        make_objective(config, 1.0),
        mesh=meshes.make_mesh(devices=jax.devices()[:1]),
        model=net,
        params=params,
    )
    state = trainer.init(params)
    on_device = meshes.to_device(batch, meshes.batch_sharding(trainer.mesh))
    state, first = trainer.step(state, on_device)
    for _ in range(40):
        state, metrics = trainer.step(state, on_device)
    assert first['loss'] == pytest.approx(np.log(ORIGINALS), abs=0.2)
    assert metrics['loss'] < 0.7 * first['loss']


@pytest.mark.parametrize(
    ('rows', 'pooling'),
    [
        (packing.RowSpec(lengths=2, parts=2, chunks=4), 'mean'),
        (packing.RowSpec(shared=24, texts=4), 'cls'),
        (packing.RowSpec(shared=24, texts=4), 'max'),
        (packing.RowSpec(shared=16, texts=3, parts=4, chunks=2), 'mean'),
    ],
    ids=str,
)
def test_losses_and_gradients_are_the_same_in_any_rows(rows, pooling):
    net, params = dataclasses.replace(model(), pooling=pooling), fresh_params()

    def found(rows):
        loss = make_loss(settings(), batch_scores.make_score_fn(net, SCALE, rows), K)
        return jax.jit(jax.grad(loss, has_aux=True))(params, make_batch(rows=rows), 0.0)

    (expected, metrics), (grads, others) = found(packing.RowSpec(lengths=1)), found(rows)
    assert others.pop('real_token_share') > metrics.pop('real_token_share')
    for name, value in others.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)


def test_chunks_drop_out_what_the_whole_does():
    rows, params = packing.RowSpec(lengths=2, parts=2, chunks=4), fresh_params()
    batch, key = make_batch(rows=rows), jax.random.key(1)

    def loss(chunks):
        in_chunks = dataclasses.replace(rows, chunks=chunks)
        return make_loss(settings(), batch_scores.make_score_fn(model(0.2), SCALE, in_chunks), K)

    def gradients(chunks):
        return jax.jit(jax.grad(loss(chunks), has_aux=True))(params, batch, 0.0, key)

    (expected, metrics), (grads, others) = gradients(1), gradients(4)
    kept, _ = jax.jit(loss(1))(params, batch, 0.0)
    assert abs(metrics['loss'] - kept) > 1e-3
    np.testing.assert_allclose(others['loss'], metrics['loss'], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)


def test_a_batch_of_4096_queries_in_chunks_has_the_gradients_of_the_whole():
    big, rng = 4096, np.random.default_rng(0)
    tokens = rng.integers(4, 64, (big, 2, 8)).astype(np.int32)
    group = np.arange(2 * big, dtype=np.int32).reshape(big, 2)
    batch = {
        'query': tokens[:, 0, :6],
        'tokens': (tokens.reshape(2 * big, 8),),
        'slots': group,
        'lengths': np.full((big, 2), 8),
        'group': group,
        'relevant': group[:, :1],
        'false_negative': np.zeros((big, 2), bool),
    }
    config = settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0)

    def step(chunks):
        score_fn = batch_scores.make_score_fn(model(), SCALE, packing.RowSpec(chunks=chunks))
        gradient = jax.grad(make_loss(config, score_fn, 0), has_aux=True)
        return jax.jit(gradient).lower(fresh_params(), batch, 0.0).compile()

    whole, halved, cached = (step(chunks) for chunks in (1, 2, 32))
    (expected, _), (grads, _) = (f(fresh_params(), batch, 0.0) for f in (whole, cached))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected
    )
    before, *after = (f.memory_analysis().temp_size_in_bytes for f in (whole, halved, cached))
    assert max(after) < before


def test_untied_towers_that_are_equal_share_the_gradient_of_a_tied_one():
    net = model()
    loss = make_loss(settings(), batch_scores.dual_encoder_scores(net, SCALE), K)
    params = fresh_params()
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    tied, found = gradient(params, make_batch(), 0.0)
    towers = {'query': params, 'passage': params}
    untied, untied_found = gradient(towers, make_batch(), 0.0)
    np.testing.assert_allclose(found['loss'], untied_found['loss'], rtol=1e-6)
    both = jax.tree.map(jnp.add, untied['query'], untied['passage'])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tied, both)
    sizes = [optax.tree.norm(untied[name]) for name in ('query', 'passage')]
    assert min(sizes) > 1e-3
