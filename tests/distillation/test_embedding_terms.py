"""The embedding term of the loss, and terms at several widths of the embeddings."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jdkd import config as configs
from jdkd.configs import common
from jdkd.distillation import batch_scores, objective
from tests.helpers.lists import (
    SCALE,
    SUBSETS,
    WIDTH,
    free_scores,
    fresh_params,
    kl,
    make_batch,
    make_loss,
    model,
    scores,
    settings,
)
from tests.helpers.train_steps import ORIGINALS, B, K


def test_embeddings_are_drawn_to_their_targets():
    batch, rng = make_batch(), np.random.default_rng(1)
    student = scores() | {
        'queries': rng.normal(size=(B, WIDTH)).astype(np.float32),
        'originals': rng.normal(size=(B, ORIGINALS, WIDTH)).astype(np.float32),
    }
    others = dict.fromkeys(['contrastive', 'teacher', 'assistant', 'dark', 'in_batch'], 0.0)
    loss = make_loss(settings(**others, embedding=0.5), free_scores, K)
    gradient, found = jax.grad(loss, has_aux=True)(student, batch, 0.0)
    errors = [
        student['queries'][:, None] - batch['query_target'][:, None],
        student['originals'] - batch['passage_target'],
    ]
    distances = (np.concatenate(errors, axis=1) ** 2).sum(-1)
    np.testing.assert_allclose(found['loss'], 0.5 * distances.mean(), rtol=1e-5)
    # A query counts as much as an original.
    np.testing.assert_allclose(gradient['queries'], errors[0][:, 0] / distances.size, rtol=1e-5)
    np.testing.assert_allclose(gradient['originals'], errors[1] / distances.size, rtol=1e-5)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize('normalize', [True, False])
def test_terms_are_means_over_the_widths(normalize):
    config, batch, params, dims = settings(embedding=0.5), make_batch(), fresh_params(), (8, 3)
    net = dataclasses.replace(model(), normalize=normalize)

    def found(*dims):
        score_fn = batch_scores.dual_encoder_scores(net, SCALE, dims=dims)
        loss = make_loss(config, score_fn, K)
        return jax.device_get(
            jax.jit(lambda p: (loss(p, batch, 0.0)[1], score_fn(p, batch, None)))(params)
        )

    plain, whole = found()
    metrics, scored = found(*dims, WIDTH)  # The full width counts once.
    assert len(scored.prefixes) == 2 and not whole.prefixes
    chosen = list(SUBSETS[int(np.argmax(plain['selected']))])
    wide = config.loss.in_batch_temperature
    fused = softmax(batch['in_batch'] / wide, -1)[:, chosen].mean(axis=1)
    terms = {'contrastive': [], 'in_batch': [], 'embedding': []}
    for dim in (WIDTH, *dims):

        def cut(x, dim=dim):
            return unit(x[..., :dim]) if normalize and dim < WIDTH else x[..., :dim]

        queries, originals = cut(whole.queries), cut(whole.originals)
        logits = SCALE * queries @ originals.reshape(B * ORIGINALS, -1).T
        masked = np.where(whole.mask, logits, -np.inf)
        log_p = log_softmax(masked, axis=-1)[np.arange(B), whole.labels]
        terms['contrastive'].append(-log_p.mean())
        terms['in_batch'].append(kl(fused, logits, wide).mean())
        errors = np.concatenate(
            [
                (queries - cut(batch['query_target']))[:, None],
                originals - cut(batch['passage_target']),
            ],
            axis=1,
        )
        terms['embedding'].append(0.5 * (errors**2).sum(-1).mean())
    for name, by_width in terms.items():
        np.testing.assert_allclose(plain[f'loss/{name}'], by_width[0], rtol=1e-4)
        np.testing.assert_allclose(metrics[f'loss/{name}'], np.mean(by_width), rtol=1e-4)
    for name in ('teacher', 'assistant', 'dark'):
        np.testing.assert_allclose(metrics[f'loss/{name}'], plain[f'loss/{name}'], rtol=1e-6)


@pytest.mark.slow
def test_alignment_needs_neither_judgements_nor_scores():
    batch = make_batch()
    for name in ('relevant', 'false_negative', 'teacher', 'assistants', 'in_batch'):
        del batch[name]
    config = common.get_config()
    config.student.dims, config.student.freeze, config.student.dropout = (8, 3), 'passage', 0.25
    training = objective.Objective.of_embeddings(configs.resolve(config), steps=7)
    assert (training.dims, training.frozen, training.dropout) == ((8, 3), 'passage', 0.25)
    score_fn = batch_scores.dual_encoder_scores(model(), SCALE)
    loss = objective.make_loss(training.config, score_fn, training.num_assistants)
    found = loss(fresh_params(), batch, 0.0)[1]
    # However few its steps are, the rate rises and falls.
    assert (training.optimizer.warmup_steps, training.optimizer.total_steps) == (3, 7)
    assert 'list_accuracy' not in found and found['loss'] == found['loss/embedding'] > 0
