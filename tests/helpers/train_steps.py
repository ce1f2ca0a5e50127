"""Train steps with every term of the loss, on one process or several."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jdkd import config as configs
from jdkd.configs import common
from jdkd.distillation.objective import Objective
from jdkd.distillation.trainer import make_trainer
from jdkd.lists import loader
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig
from jdkd.runtime import distributed
from jdkd.runtime import mesh as meshes
from jdkd.tokens.store import TokenStore

B, ORIGINALS, DARK, K, L, LISTS = 8, 4, 2, 3, 12, 40
MODEL = TransformerConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_positions=16,
    dropout=0.1,
)


def records():
    rng = np.random.default_rng(0)
    passages = rng.permutation(LISTS * ORIGINALS).reshape(LISTS, ORIGINALS).astype(np.int32)
    arrays = {
        'query_row': np.arange(LISTS, dtype=np.int32),
        'passages': passages,
        'group': passages,
        'relevant': passages[:, :1],
        'dark': rng.integers(4, 64, (LISTS, DARK, L)).astype(np.int32),
        'false_negative': rng.random((LISTS, ORIGINALS)) < 0.1,
        'teacher': rng.normal(size=(LISTS, ORIGINALS + DARK)).astype(np.float32) * 3,
        'assistants': rng.normal(size=(LISTS, K, ORIGINALS + DARK)).astype(np.float32) * 3,
    }
    return [{name: values[i] for name, values in arrays.items()} for i in range(LISTS)]


def tokens(count, length, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 64, (count, length))
    real = np.arange(length) < rng.integers(3, length + 1, (count, 1))
    return TokenStore.from_rows(np.where(real, ids, 0).astype(np.uint16), 0)


def scorer(seed):
    """Of every query with every passage, at random."""
    table = np.random.default_rng(seed).normal(size=(LISTS, LISTS * ORIGINALS)) * 9
    return lambda queries, passages: table[np.ix_(queries, passages)].astype(np.float32)


def run(mesh) -> dict[str, np.ndarray]:
    """Metrics of three steps, and parameters, moments and the iterator's position after them."""
    config = common.get_config()
    config.loss.update({'in_batch': 1.0})
    config.rows.update(lengths=2, parts=8)  # So that dropout draws the same on any devices.
    config.optimizer.update(learning_rate=1e-3, warmup_steps=1, total_steps=50)
    plain = DualEncoder(dataclasses.replace(MODEL, dropout=0.0))
    params = jax.jit(plain.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    config = configs.resolve(config)
    training = Objective(config, config.optimizer, 10.0, num_assistants=K, dropout=0.1)
    trainer = make_trainer(training, mesh=mesh, model=DualEncoder(MODEL), params=params)
    to_tokens = loader.DualEncoderTokens(
        tokens(LISTS, 6, 1), tokens(LISTS * ORIGINALS, L, 2), length=L, sep_id=2
    )
    lists, order = records(), loader.BatchOrder(B, [0, 0])
    stacked = {name: np.stack([r[name] for r in lists]) for name in ('passages', 'dark')}
    to_rows = loader.make_row_packer(to_tokens, stacked, order, trainer.rows, mesh, steps=3)
    scorers = [scorer(s) for s in range(K)]
    extras = [loader.in_batch(stacked['passages'], scorers, [1.0] * K)]
    batches = loader.batches(lists, to_rows, order, mesh, extras)
    state, found = trainer.init(params), {}
    for i in range(3):
        batch = meshes.to_device(next(batches), meshes.batch_sharding(mesh))
        state, metrics = trainer.step(state, batch)
        found |= {f'{i}/{name}': value for name, value in jax.device_get(metrics).items()}
    assert trainer.step._cache_size() == 1
    # The optimizer's first moments are the gradients of the three steps.
    whole = meshes.to_local({'params': state.params, 'opt_state': state.opt_state}, mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole):
        found[meshes.path_name(path)] = jax.device_get(leaf)
    return found | {'next_index': np.int32(batches.get_state()['next_index'])}


def main(*flags: str) -> None:
    """In one of several processes: writes MODEL.npz for each width of the model axis."""
    output, coordinator, count, index = (flag.partition('=')[2] for flag in flags)
    distributed.start(coordinator, int(count), int(index))
    for model in (1, 2):
        found = run(meshes.make_mesh(model=model))
        if distributed.is_primary():
            np.savez(pathlib.Path(output) / f'{model}.npz', **found)
    distributed.barrier('the end')
