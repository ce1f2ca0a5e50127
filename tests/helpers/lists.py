"""Batches of lists, and losses over them, for tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from jdkd import config as configs
from jdkd.configs import common
from jdkd.distillation import losses, objective
from jdkd.distillation.batch_scores import BatchScores
from jdkd.lists import packing
from jdkd.models.dual_encoder import DualEncoder
from tests.helpers import train_steps
from tests.helpers.train_steps import DARK, ORIGINALS, B, K, L

ROWS = packing.RowSpec(lengths=1, parts=8)  # Of one length, so that all batches have one shape.
SCALE = 10.0
WIDTH = train_steps.MODEL.hidden_size
# Of K assistants, in the order of `selected`.
SUBSETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def model(dropout=0.0):
    return DualEncoder(dataclasses.replace(train_steps.MODEL, dropout=dropout))


def kl(teacher, student, tau=1.0):
    """tau^2 KL, list by list, the slow way; `teacher` holds probabilities."""
    return tau**2 * (teacher * (np.log(teacher) - log_softmax(student / tau, axis=-1))).sum(-1)


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
        'query_target': rng.normal(size=(B, WIDTH)).astype(np.float32),
        'passage_target': rng.normal(size=(B, ORIGINALS, WIDTH)).astype(np.float32),
    }


def in_rows(lists, rows=ROWS):
    """The batch of some lists."""
    lists = dict(lists)
    texts = lists.pop('texts')
    lengths = (texts != 0).sum(-1)
    layout = packing.fit_layout([lengths], rows)
    packed = packing.pack({'tokens': texts}, lengths, layout, pad_id=0)
    return lists | packed | {'lengths': lengths}


def make_batch(seed=0, rows=ROWS):
    return in_rows(make_lists(seed), rows)


def settings(**loss):
    config = common.get_config()
    config.loss.update({'in_batch': 1.0} | loss)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1, total_steps=50)
    return config


def make_loss(config, score_fn, num_assistants):
    """`objective.make_loss` with `settings` that a test may have changed."""
    return objective.make_loss(configs.resolve(config), score_fn, num_assistants)


def make_objective(config, scale=SCALE, dropout=0.0, **kwargs):
    config = configs.resolve(config)
    return objective.Objective(config, config.optimizer, scale, dropout, **kwargs)


@functools.cache
def fresh_params():
    return jax.jit(model().init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']


def free_scores(params, batch, key):
    """A student whose parameters are its scores: what the loss makes of them is all there is."""
    mask = losses.negatives_mask(batch['group'], batch['relevant'], batch['false_negative'])
    labels = jnp.arange(B) * ORIGINALS
    embeddings = params.get('queries'), params.get('originals')
    return BatchScores(params['lists'], params['in_batch'], labels, mask, *embeddings)


def scores(dtype=np.float32):
    rng = np.random.default_rng(5)
    lists = rng.normal(size=(B, ORIGINALS + DARK)) * 2
    return {
        'lists': lists.astype(dtype),
        'in_batch': (rng.normal(size=(B, B * ORIGINALS)) * 5).astype(dtype),
    }
