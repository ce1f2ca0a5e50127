"""Each term of the loss, as it is defined, of scores that are the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jdkd import config as configs
from jdkd.config import EncoderSpec, FineTuningConfig
from jdkd.distillation import assistants, losses, objective, step
from tests.helpers.lists import SUBSETS, free_scores, kl, make_batch, make_loss, scores, settings
from tests.helpers.train_steps import DARK, ORIGINALS, B, K

TERMS = ('contrastive', 'teacher', 'assistant', 'dark', 'in_batch')


def first_metrics(config, progress=0.0):
    """Metrics of the first batch, without an update."""
    loss = make_loss(config, free_scores, K)
    return jax.device_get(jax.jit(loss)(scores(), make_batch(), progress)[1])


def test_the_pool_term_is_the_divergence_over_the_passages_that_are_there():
    rng = np.random.default_rng(0)
    pool, teacher = rng.normal(size=(2, B, 5)).astype(np.float32)
    there = np.ones((B, 5), bool)
    there[0, 3:] = False

    def with_pool(params, batch, key):
        return free_scores(params, batch, key)._replace(pool=params['pool'])

    loss = make_loss(settings(pool=0.5, temperature=2.0), with_pool, K)
    batch = make_batch() | {'pool_teacher': teacher, 'pool_there': there}
    metrics = loss(scores() | {'pool': pool}, batch, 0.0)[1]
    expected = [
        kl(softmax(t[w] / 2.0), s[w], tau=2.0) for t, s, w in zip(teacher, pool, there, strict=True)
    ]
    np.testing.assert_allclose(metrics['loss/pool'], 0.5 * np.mean(expected), rtol=1e-5)


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


@pytest.mark.parametrize('distance', ['kl', 'footrule', 'rbo'])
@pytest.mark.parametrize('per', ['batch', 'query'])
def test_what_is_distilled_is_what_is_selected(distance, per):
    config, batch, student = settings(), make_batch(), scores()
    config.selection.update(distance=distance, per=per)
    metrics = first_metrics(config)
    teacher = batch['teacher'][:, :ORIGINALS]
    p = softmax(batch['assistants'][..., :ORIGINALS], -1)
    fused = np.stack([p[:, s].mean(1) for s in SUBSETS])

    def far(choice, i):
        if distance == 'kl':
            return kl(softmax(teacher[i]), np.log(choice))
        orders = [list(np.argsort(-x, kind='stable')) for x in (choice, teacher[i])]
        if distance == 'footrule':
            return sum(abs(orders[0].index(j) - orders[1].index(j)) for j in range(ORIGINALS))
        weights = 0.9 ** np.arange(ORIGINALS)
        shared = [len({*orders[0][:d]} & {*orders[1][:d]}) / d for d in range(1, ORIGINALS + 1)]
        return 1 - (weights * shared).sum() / weights.sum()

    table = np.array([[far(choice[i], i) for i in range(B)] for choice in fused])
    nearest = (table if per == 'query' else table.mean(1, keepdims=True)).argmin(0)
    best = np.broadcast_to(nearest, B)
    np.testing.assert_array_equal(
        metrics['selected'], np.bincount(best, minlength=len(SUBSETS)).astype(np.float32)
    )
    chosen = fused[best, np.arange(B)]
    expected = kl(chosen, student['lists'][:, :ORIGINALS]).mean()
    np.testing.assert_allclose(metrics['loss/assistant'], expected, rtol=1e-5)
    assert len(set(best)) > 1 or per == 'batch'


def test_the_share_of_kept_lists_grows_with_training_and_may_be_soft():
    confidence = softmax(make_batch()['teacher'][:, :ORIGINALS], -1)[:, 0]
    config = settings()
    for progress, lowest in ((0.0, 3), (0.5, 1), (1.0, 0)):  # Shares of 0.5, 0.75 and 1 of 8 lists.
        found = first_metrics(config, progress)
        np.testing.assert_allclose(found['threshold'], np.sort(confidence)[lowest], rtol=1e-6)
        assert found['kept_share'] == 1 - lowest / B
    config.self_paced.weighting = 'linear'
    found, batch = first_metrics(config), make_batch()
    weights = np.maximum(0, 1 - (1 - confidence) / (1 - found['threshold']))
    chosen = list(SUBSETS[int(np.argmax(found['selected']))])
    fused = softmax(batch['assistants'], -1)[:, chosen].mean(axis=1)
    lists = scores()['lists']
    both = kl(softmax(batch['teacher'], -1), lists) + kl(fused, lists)
    expected = (weights * both).sum() / max(weights.sum(), 1)
    np.testing.assert_allclose(found['loss/dark'], expected, rtol=1e-5)
    everything = first_metrics(config, 1.0)['loss/dark']
    np.testing.assert_allclose(everything, both.mean(), rtol=1e-5)


@pytest.mark.slow
def test_no_gradient_reaches_teacher_or_assistants():
    loss, names = (
        make_loss(settings(), free_scores, K),
        ('teacher', 'assistants', 'in_batch'),
    )
    batch = make_batch()

    def of_others(others):
        return loss(scores(), batch | others, 0.0)[0]

    gradients = jax.grad(of_others)({name: batch[name] for name in names})
    assert not any(np.any(gradients[name]) for name in names)


@pytest.mark.slow
def test_lists_without_a_label_are_distilled_but_no_anchors_of_the_contrastive_term():
    labelled = np.arange(B) % 4 == 0
    config, batch, everything = settings(), make_batch(), first_metrics(settings())
    loss = make_loss(config, free_scores, K)
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
    np.testing.assert_allclose(found['loss/contrastive'], nce[labelled].sum() / B, rtol=1e-5)
    for name in set(TERMS) - {'contrastive'}:
        np.testing.assert_allclose(found[f'loss/{name}'], everything[f'loss/{name}'], rtol=1e-6)
    np.testing.assert_allclose(found['loss'], sum(found[f'loss/{n}'] for n in TERMS), rtol=1e-6)
    assert found['labelled_share'] == 0.25
    first = np.argmax(scores()['lists'][:, :ORIGINALS], axis=1) == 0
    np.testing.assert_allclose(found['list_accuracy'], first[labelled].mean(), rtol=1e-6)
    same = jax.device_get(loss(scores(), batch | {'labelled': np.ones(B, bool)}, 0.0)[1])
    np.testing.assert_allclose(same['loss'], everything['loss'], rtol=1e-6)


@pytest.mark.slow
def test_a_batch_without_any_label_has_no_contrastive_term():
    batch = make_batch() | {'labelled': np.zeros(B, bool)}
    loss = make_loss(settings(), free_scores, K)
    gradient, found = jax.grad(loss, has_aux=True)(scores(), batch, 0.0)
    assert found['loss/contrastive'] == 0 and found['list_accuracy'] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient['lists']).max() > 0
    alone = {'teacher': 0.0, 'assistant': 0.0, 'dark': 0.0, 'in_batch': 0.0}
    loss = make_loss(settings(**alone), free_scores, K)
    gradient = jax.grad(lambda *args: loss(*args)[0])(scores(), batch, 0.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_training_from_labels_has_the_contrastive_term_alone():
    spec = EncoderSpec(train=FineTuningConfig(steps=3, scale=7.0), dropout=0.25)
    training = objective.Objective.of_labels(configs.resolve(settings(contrastive=0.5)), spec)
    assert (training.scale, training.dropout, training.optimizer) == (7.0, 0.25, spec.train)
    assert training.config.loss.contrastive == 1
    # Even beside scores of a teacher and a pool.
    loss = objective.make_loss(training.config, free_scores, K)
    found = jax.eval_shape(loss, scores(), make_batch(), 0.0)[1]
    assert {name for name in found if name.startswith('loss')} == {'loss', 'loss/contrastive'}


def test_the_students_objective_is_that_of_its_config():
    config = configs.resolve(settings())
    student = config.student.replace(scale=3.0, dropout=0.25, dims=(4,))
    found = objective.Objective.of_student(config.replace(student=student, assistants=('a', 'b')))
    assert (found.scale, found.dropout, found.dims, found.num_assistants) == (3.0, 0.25, (4,), 2)
    assert found.optimizer == config.optimizer
    aligned = objective.Objective.of_embeddings(config.replace(student=student), steps=6)
    assert (aligned.scale, aligned.dropout, aligned.dims) == (1.0, 0.25, (4,))
    with pytest.raises(ValueError, match='student.scale is None; set it'):
        objective.Objective.of_student(config.replace(student=student.replace(scale=None)))


@pytest.mark.parametrize(
    ('fields', 'warmup'), [({}, 3), ({'total_steps': 4}, 2), ({'cycle_steps': 2}, 1)]
)
def test_the_warm_up_of_alignment_leaves_half_of_its_steps(fields, warmup):
    config = configs.resolve(settings())
    config = config.replace(align=config.align.replace(warmup_steps=20, **fields))
    optimizer = objective.Objective.of_embeddings(config, steps=6).optimizer
    assert (optimizer.total_steps, optimizer.warmup_steps) == (fields.get('total_steps', 6), warmup)
    step.learning_rate(optimizer)  # optax would refuse longer ones.


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
    loss = jax.jit(make_loss(config, free_scores, K))
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
    loss = jax.jit(make_loss(config, free_scores, K))
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
    loss = make_loss(config, score_fn, K)
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


def test_bfloat16_scores_give_the_losses_of_the_same_numbers_in_float32():
    loss = jax.jit(make_loss(settings(), free_scores, K))
    rounded = scores(jnp.bfloat16)
    half = loss(rounded, make_batch(), 0.0)[1]
    full = loss(jax.tree.map(np.float32, rounded), make_batch(), 0.0)[1]
    for name, value in half.items():
        assert value.dtype == jnp.float32, name
        np.testing.assert_allclose(value, full[name], rtol=1e-6, err_msg=name)


def test_following_the_gradient_leads_to_the_teachers_distribution():
    config = settings(contrastive=0.0, assistant=0.0, in_batch=0.0)
    config.self_paced.share = 1.0
    gradient = jax.jit(jax.grad(make_loss(config, free_scores, K), has_aux=True))
    params, batch = scores(), make_batch()
    for _ in range(300):
        grads, _ = gradient(params, batch, 0.0)
        params = jax.tree.map(lambda p, g: p - 20 * g, params, grads)
    np.testing.assert_allclose(
        softmax(params['lists'], -1), softmax(batch['teacher'], -1), atol=1e-2
    )
