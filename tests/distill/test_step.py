"""The train step: equal on 1, 2 and 8 devices, each term as defined, and it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_steps
from scipy.special import log_softmax, softmax
from train_steps import DARK, ORIGINALS, B, K, L

from configs import common
from jdkd.data import packing
from jdkd.distill import assistants, losses, train
from jdkd.distill import step as steps
from jdkd.models.cross_encoder import CrossEncoder, join_pairs
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import mesh as meshes

ROWS = packing.Rows(lengths=1, parts=8)  # Of one length, so that all batches have one shape.
SCALE = 10.0


def model(dropout=0.0):
    return DualEncoder(dataclasses.replace(train_steps.MODEL, dropout=dropout))


def make_lists(seed=0):
    """Arrays of B lists; `texts` are the candidates' tokens."""
    rng = np.random.default_rng(seed)
    N = ORIGINALS + DARK

    def tokens(*shape):
        ids = rng.integers(4, 64, shape)
        lengths = rng.integers(3, shape[-1] + 1, shape[:-1])
        return np.where(np.arange(shape[-1]) < lengths[..., None], ids, 0).astype(np.int32)

    group = np.arange(B * ORIGINALS, dtype=np.int32).reshape(B, ORIGINALS)
    group[1, 2] = group[0, 0]  # Another query's positive stands in the list of query 1.
    return {
        'texts': tokens(B, N, L),
        'query': tokens(B, 6),
        'group': group,
        'relevant': group[:, :1],
        'false_negative': np.zeros((B, ORIGINALS), bool),
        'teacher': rng.normal(size=(B, N)).astype(np.float32) * 3,
        'assistants': rng.normal(size=(B, K, N)).astype(np.float32) * 3,
        'in_batch': rng.normal(size=(B, K, B * ORIGINALS)).astype(np.float32) * 9,
    }


def in_rows(lists, rows=ROWS):
    """The batch of some lists."""
    lists = dict(lists)
    texts = lists.pop('texts')
    lengths = (texts != 0).sum(-1)
    layout = packing.fit([lengths], rows)
    packed = packing.pack({'tokens': texts}, lengths, layout, pad_id=0)
    return lists | packed | {'lengths': lengths}


def make_batch(seed=0, rows=ROWS):
    return in_rows(make_lists(seed), rows)


TERMS = ('contrastive', 'teacher', 'assistant', 'dark', 'in_batch')
SUBSETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def settings(**loss):
    config = common.get_config()
    config.loss.update({'in_batch': 1.0} | loss)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1, total_steps=50)
    return config


@functools.cache
def fresh_params():
    return jax.jit(model().init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']


def make_trainer(config, num_devices=1, dropout=0.0):
    return train.make_trainer(
        config,
        config.optimizer,
        mesh=meshes.make_mesh(devices=jax.devices()[:num_devices]),
        model=model(dropout),
        params=fresh_params(),
        scale=SCALE,
        num_assistants=K,
        dropout=dropout,
    )


def test_one_two_and_eight_devices_agree_dropout_included_and_compile_once():
    states, metrics = [], []
    for num_devices in (1, 2, 8):
        trainer = make_trainer(settings(), num_devices, dropout=0.1)
        state = trainer.init(fresh_params())
        for i in range(3):
            batch = meshes.to_device(make_batch(i), meshes.batch_sharding(trainer.mesh))
            state, found = trainer.step(state, batch)
        assert trainer.step._cache_size() == 1
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(found))
    for other, found in zip(states[1:], metrics[1:], strict=True):
        assert found.keys() == metrics[0].keys()
        for name in found:
            np.testing.assert_allclose(found[name], metrics[0][name], rtol=1e-4, err_msg=name)
        np.testing.assert_array_equal(other.selected, states[0].selected)
        # The optimizer's first moments are the gradients of the three steps.
        for tree in ('params', 'opt_state'):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
                getattr(other, tree),
                getattr(states[0], tree),
            )


def free_scores(params, batch, key):
    """A student whose parameters are its scores: what the loss makes of them is all there is."""
    mask = losses.negatives_mask(batch['group'], batch['relevant'], batch['false_negative'])
    return params['lists'], params['in_batch'], jnp.arange(B) * ORIGINALS, mask


def scores(dtype=np.float32):
    rng = np.random.default_rng(5)
    lists = rng.normal(size=(B, ORIGINALS + DARK)) * 2
    return {
        'lists': lists.astype(dtype),
        'in_batch': (rng.normal(size=(B, B * ORIGINALS)) * 5).astype(dtype),
    }


def first_metrics(config, progress=0.0):
    """Metrics of the first batch, without an update."""
    loss = steps.make_loss(config, free_scores, K)
    return jax.device_get(jax.jit(loss)(scores(), make_batch(), progress)[1])


def kl(teacher, student, tau=1.0):
    """tau^2 KL, list by list, the slow way; `teacher` holds probabilities."""
    return tau**2 * (teacher * (np.log(teacher) - log_softmax(student / tau, axis=-1))).sum(-1)


def test_terms_equal_their_definitions():
    config, batch, student = settings(), make_batch(), scores()
    metrics = first_metrics(config)
    terms = [metrics[f'loss/{name}'] for name in TERMS]
    np.testing.assert_allclose(metrics['loss'], sum(terms), rtol=1e-6)
    originals = np.s_[:, :ORIGINALS]
    # Contrastive: own positive against all originals but copies of it, here in query 1's list.
    nce = []
    for i, row in enumerate(student['in_batch']):
        others = np.delete(row, [ORIGINALS + 2] if i == 0 else [])
        nce.append(-row[i * ORIGINALS] + np.log(np.exp(others).sum()))
    np.testing.assert_allclose(metrics['loss/contrastive'], np.mean(nce), rtol=1e-5)
    # Teacher.
    teacher_kl = kl(softmax(batch['teacher'][originals], axis=-1), student['lists'][originals])
    np.testing.assert_allclose(metrics['loss/teacher'], teacher_kl.mean(), rtol=1e-5)
    # The (fused) assistant that is nearest to the teacher over the batch.
    fused = np.stack(
        [softmax(batch['assistants'][..., :ORIGINALS], -1)[:, s].mean(1) for s in SUBSETS]
    )
    far = [kl(softmax(batch['teacher'][originals], -1), np.log(f)).mean() for f in fused]
    chosen = int(np.argmin(far))
    np.testing.assert_array_equal(metrics['selected'], B * np.eye(len(SUBSETS))[chosen])
    np.testing.assert_allclose(metrics['selected_distance'], far[chosen], rtol=1e-5)
    assistant_kl = kl(fused[chosen], student['lists'][originals])
    np.testing.assert_allclose(metrics['loss/assistant'], assistant_kl.mean(), rtol=1e-5)
    # Dark examples: the more confident half of the lists.
    p = softmax(batch['teacher'][originals], -1)[:, 0]
    keep = p >= np.sort(p)[3]
    fused = softmax(batch['assistants'], -1)[:, SUBSETS[chosen]].mean(axis=1)
    both = kl(softmax(batch['teacher'], -1), student['lists']) + kl(fused, student['lists'])
    np.testing.assert_allclose(metrics['loss/dark'], both[keep].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['kept_share'], keep.mean())
    # Over the batch: the same choice, its own temperature, every query's list the same passages.
    wide = config.loss.in_batch_temperature
    fused = softmax(batch['in_batch'] / wide, -1)[:, SUBSETS[chosen]].mean(axis=1)
    in_batch = kl(fused, student['in_batch'], wide)
    np.testing.assert_allclose(metrics['loss/in_batch'], in_batch.mean(), rtol=1e-5)


def test_lists_without_a_label_are_distilled_but_no_anchors_of_the_contrastive_term():
    labelled = np.arange(B) % 4 == 0
    config, batch, everything = settings(), make_batch(), first_metrics(settings())
    loss = steps.make_loss(config, free_scores, K)
    found = jax.device_get(loss(scores(), batch | {'labelled': labelled}, 0.0)[1])
    # As a batch of the labelled anchors, each against the originals of all lists.
    nce = -log_softmax(
        np.where(
            losses.negatives_mask(batch['group'], batch['relevant'], batch['false_negative']),
            scores()['in_batch'],
            -np.inf,
        ),
        axis=-1,
    )[np.arange(B), np.arange(B) * ORIGINALS]
    np.testing.assert_allclose(found['loss/contrastive'], nce[labelled].mean(), rtol=1e-5)
    for name in set(TERMS) - {'contrastive'}:
        np.testing.assert_allclose(found[f'loss/{name}'], everything[f'loss/{name}'], rtol=1e-6)
    np.testing.assert_allclose(found['loss'], sum(found[f'loss/{n}'] for n in TERMS), rtol=1e-6)
    assert found['labelled_share'] == 0.25
    first = np.argmax(scores()['lists'][:, :ORIGINALS], axis=1) == 0
    np.testing.assert_allclose(found['list_accuracy'], first[labelled].mean(), rtol=1e-6)
    same = jax.device_get(loss(scores(), batch | {'labelled': np.ones(B, bool)}, 0.0)[1])
    np.testing.assert_allclose(same['loss'], everything['loss'], rtol=1e-6)


def test_a_batch_without_any_label_has_no_contrastive_term():
    batch = make_batch() | {'labelled': np.zeros(B, bool)}
    loss = steps.make_loss(settings(), free_scores, K)
    gradient, found = jax.grad(loss, has_aux=True)(scores(), batch, 0.0)
    assert found['loss/contrastive'] == 0 and found['list_accuracy'] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient['lists']).max() > 0
    alone = {'teacher': 0.0, 'assistant': 0.0, 'dark': 0.0, 'in_batch': 0.0}
    loss = steps.make_loss(settings(**alone), free_scores, K)
    gradient = jax.grad(lambda *args: loss(*args)[0])(scores(), batch, 0.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_margins_instead_of_distributions():
    batch, student = make_batch(), scores()['lists'].astype(np.float64)
    metrics = first_metrics(settings(distance='margin_mse', temperature=2.0))

    def margins(x):
        return x[:, :1] - x[:, 1:]

    def mse(teacher, n):
        return ((margins(student[:, :n]) - margins(teacher[:, :n])) ** 2).mean(axis=1)

    np.testing.assert_allclose(
        metrics['loss/teacher'], mse(batch['teacher'], ORIGINALS).mean(), rtol=1e-5
    )
    # A fused assistant's logits are those of its mean distribution, in its members' units.
    chosen = list(SUBSETS[int(np.argmax(metrics['selected']))])

    def fused(n):
        return 2 * np.log(softmax(batch['assistants'][:, chosen, :n] / 2, -1).mean(axis=1))

    np.testing.assert_allclose(
        metrics['loss/assistant'], mse(fused(ORIGINALS), ORIGINALS).mean(), rtol=1e-5
    )
    p = batch['teacher'][:, :ORIGINALS] / 2
    p = softmax(p, -1)[:, 0]
    keep = p >= np.sort(p)[3]
    N = ORIGINALS + DARK
    both = mse(batch['teacher'], N) + mse(fused(N), N)
    np.testing.assert_allclose(metrics['loss/dark'], both[keep].mean(), rtol=1e-5)


def test_assistants_fused_by_ranks_teach_lists_and_batch():
    config = settings(contrastive=0.0, teacher=0.0, dark=0.0)
    config.selection.fusion = 'rrf'
    batch = make_batch()
    # The only choice near the teacher is the one of all three, by construction.
    fuse = jax.jit(assistants.reciprocal_ranks)
    thirds = np.full((K, 1, 1), 1 / K, np.float32)
    everyone = fuse(np.swapaxes(batch['assistants'][..., :ORIGINALS], 0, 1), thirds)
    batch['teacher'][:, :ORIGINALS] = everyone
    loss = jax.jit(steps.make_loss(config, free_scores, K))
    metrics = loss(scores(), batch, 0.0)[1]
    np.testing.assert_array_equal(metrics['selected'], B * np.eye(len(SUBSETS))[-1])
    np.testing.assert_allclose(metrics['selected_distance'], 0, atol=1e-6)
    expected = kl(softmax(np.array(everyone), -1), scores()['lists'][:, :ORIGINALS])
    np.testing.assert_allclose(metrics['loss/assistant'], expected.mean(), rtol=1e-5)
    wide = config.loss.in_batch_temperature
    everyone = fuse(np.swapaxes(batch['in_batch'], 0, 1), thirds)
    expected = kl(softmax(np.array(everyone) / wide, -1), scores()['in_batch'], wide)
    np.testing.assert_allclose(metrics['loss/in_batch'], expected.mean(), rtol=1e-5)


def test_schedules_follow_the_progress_without_compiling_again():
    plain = first_metrics(settings())
    fading = ((0.0, 1.0), (0.5, 0.0))
    config = settings(teacher=fading, in_batch_temperature=((0.0, 16.0), (1.0, 4.0)))
    config.self_paced.share = 0.75
    loss = jax.jit(steps.make_loss(config, free_scores, K))
    found = [loss(scores(), make_batch(), jnp.float32(p))[1] for p in (0.0, 0.25, 0.75)]
    assert loss._cache_size() == 1
    for metrics, weight in zip(found, (1.0, 0.5, 0.0), strict=True):
        assert metrics['loss/teacher'] == pytest.approx(weight * plain['loss/teacher'], rel=1e-5)
        assert metrics['schedule/teacher'] == pytest.approx(weight)
        assert metrics['kept_share'] == 7 / 8  # never fewer than the share
    temperatures = [float(m['schedule/in_batch_temperature']) for m in found]
    assert temperatures == pytest.approx([16, 13, 7])
    assert found[0]['loss/in_batch'] == pytest.approx(plain['loss/in_batch'], rel=1e-5)
    assert found[2]['loss/in_batch'] != pytest.approx(plain['loss/in_batch'], rel=1e-2)
    assert not [name for name in plain if name.startswith('schedule/')]


def shapes(config, score_fn=free_scores, params=None):
    """Metrics' shapes of a loss, traced and not compiled."""
    loss = steps.make_loss(config, score_fn, K)
    return jax.eval_shape(loss, params or scores(), make_batch(), 0.0)[1]


@pytest.mark.parametrize('name', TERMS)
def test_each_term_can_be_switched_off(name):
    assert f'loss/{name}' in shapes(settings())
    assert f'loss/{name}' not in shapes(settings(**{name: 0.0}))
    # A schedule may begin at 0.
    assert f'loss/{name}' in shapes(settings(**{name: ((0.0, 0.0), (1.0, 1.0))}))


def test_the_contrastive_term_alone_selects_nothing():
    alone = shapes(settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0))
    assert set(alone) == {'loss/contrastive', 'loss', 'list_accuracy', 'real_token_share'}


def test_losses_and_gradients_are_float32_where_the_model_computes_in_bfloat16():
    config = settings(distance='margin_mse')
    half = DualEncoder(dataclasses.replace(model().transformer, dtype='bfloat16'))
    score_fn = steps.dual_encoder_scores(half, SCALE)
    for fusion in ('subsets', 'rrf'):
        config.selection.fusion = fusion
        loss = jax.grad(steps.make_loss(config, score_fn, K), has_aux=True)
        grads, metrics = jax.eval_shape(loss, fresh_params(), make_batch(), 0.0)
        assert {x.dtype for x in jax.tree.leaves((grads, metrics))} == {np.dtype(np.float32)}


def test_bfloat16_scores_give_the_losses_of_the_same_numbers_in_float32():
    loss = jax.jit(steps.make_loss(settings(), free_scores, K))
    rounded = scores(jnp.bfloat16)
    half = loss(rounded, make_batch(), 0.0)[1]
    full = loss(jax.tree.map(np.float32, rounded), make_batch(), 0.0)[1]
    for name, value in half.items():
        assert value.dtype == jnp.float32, name
        np.testing.assert_allclose(value, full[name], rtol=1e-6, err_msg=name)


def test_scores_of_a_dual_encoder_are_scaled_inner_products():
    batch, net = make_batch(), jax.jit(lambda tokens: model().apply({'params': params}, tokens))
    params = fresh_params()
    lists, in_batch, labels, mask = jax.jit(steps.dual_encoder_scores(model(), SCALE))(
        params, batch, None
    )
    queries = np.array(net(batch['query']))
    passages = np.array(net(batch['tokens'][0]))[batch['where']]
    expected = SCALE * np.einsum('bd,bnd->bn', queries, passages)
    np.testing.assert_allclose(lists, expected, rtol=1e-4, atol=1e-5)
    originals = passages[:, :ORIGINALS].reshape(B * ORIGINALS, -1)
    np.testing.assert_allclose(in_batch, SCALE * queries @ originals.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, np.arange(B) * ORIGINALS)
    # Another query's list holds my positive: no negative.
    assert not mask[0, ORIGINALS + 2] and mask[1, ORIGINALS + 2]
    assert mask[jnp.arange(B), labels].all()


def test_following_the_gradient_leads_to_the_teachers_distribution():
    config = settings(contrastive=0.0, assistant=0.0, in_batch=0.0)
    config.self_paced.share = 1.0
    gradient = jax.jit(jax.grad(steps.make_loss(config, free_scores, K), has_aux=True))
    params, batch = scores(), make_batch()
    for _ in range(300):
        grads, _ = gradient(params, batch, 0.0)
        params = jax.tree.map(lambda p, g: p - 20 * g, params, grads)
    np.testing.assert_allclose(
        softmax(params['lists'], -1), softmax(batch['teacher'], -1), atol=1e-2
    )


def test_a_cross_encoder_trains_in_the_same_step():
    net = CrossEncoder(model().transformer, head='linear')
    rng = np.random.default_rng(0)
    rows = rng.integers(4, 64, (B * ORIGINALS, 6)).astype(np.int32)
    tokens, token_types = join_pairs(rows, rows[::-1], 0)
    batch = {k: make_batch()[k] for k in ('group', 'relevant', 'false_negative')}
    texts = {'tokens': tokens, 'token_types': token_types}
    texts = {name: x.reshape(B, ORIGINALS, -1) for name, x in texts.items()}
    batch['lengths'] = np.full((B, ORIGINALS), tokens.shape[1])
    layout = packing.fit([batch['lengths']], ROWS)
    batch |= packing.pack(texts, batch['lengths'], layout, pad_id=0)
    params = jax.jit(net.init)(jax.random.key(0), tokens[:1], token_types[:1])['params']
    config = settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0)
    config.optimizer.learning_rate = 1e-2
    trainer = train.make_trainer(
        config,
        config.optimizer,
        mesh=meshes.make_mesh(devices=jax.devices()[:1]),
        model=net,
        params=params,
        scale=1.0,
        num_assistants=0,
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
        (packing.Rows(lengths=2, parts=2, chunks=4), 'mean'),
        (packing.Rows(shared=24, texts=4), 'cls'),
        (packing.Rows(shared=24, texts=4), 'max'),
        (packing.Rows(shared=16, texts=3, parts=4, chunks=2), 'mean'),
    ],
    ids=str,
)
def test_losses_and_gradients_are_the_same_in_any_rows(rows, pooling):
    net, params = dataclasses.replace(model(), pooling=pooling), fresh_params()

    def found(rows):
        loss = steps.make_loss(settings(), steps.scores(net, SCALE, rows), K)
        return jax.jit(jax.grad(loss, has_aux=True))(params, make_batch(rows=rows), 0.0)

    (expected, metrics), (grads, others) = found(packing.Rows(lengths=1)), found(rows)
    assert others.pop('real_token_share') > metrics.pop('real_token_share')
    for name, value in others.items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)


def test_a_batch_of_4096_queries_in_chunks_has_the_gradients_of_the_whole():
    big, rng = 4096, np.random.default_rng(0)
    tokens = rng.integers(4, 64, (big, 2, 8)).astype(np.int32)
    group = np.arange(2 * big, dtype=np.int32).reshape(big, 2)
    batch = {
        'query': tokens[:, 0, :6],
        'tokens': (tokens.reshape(2 * big, 8),),
        'where': group,
        'lengths': np.full((big, 2), 8),
        'group': group,
        'relevant': group[:, :1],
        'false_negative': np.zeros((big, 2), bool),
    }
    config = settings(teacher=0.0, assistant=0.0, dark=0.0, in_batch=0.0)

    def step(chunks):
        score_fn = steps.scores(model(), SCALE, packing.Rows(chunks=chunks))
        gradient = jax.grad(steps.make_loss(config, score_fn, 0), has_aux=True)
        return jax.jit(gradient).lower(fresh_params(), batch, 0.0).compile()

    whole, cached = step(1), step(32)
    (expected, _), (grads, _) = (f(fresh_params(), batch, 0.0) for f in (whole, cached))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected
    )
    before, after = (f.memory_analysis().temp_size_in_bytes for f in (whole, cached))
    assert after < before


def test_untied_towers_that_are_equal_share_the_gradient_of_a_tied_one():
    net = model()
    loss = steps.make_loss(settings(), steps.dual_encoder_scores(net, SCALE), K)
    params = net.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    tied, found = jax.grad(loss, has_aux=True)(params, make_batch(), 0.0)
    towers = {'query': params, 'passage': params}
    untied, untied_found = jax.grad(loss, has_aux=True)(towers, make_batch(), 0.0)
    np.testing.assert_allclose(found['loss'], untied_found['loss'], rtol=1e-6)
    both = jax.tree.map(jnp.add, untied['query'], untied['passage'])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tied, both)
    sizes = [optax.tree.norm(untied[name]) for name in ('query', 'passage')]
    assert min(sizes) > 1e-3
