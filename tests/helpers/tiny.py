"""The smallest config that goes through all of Algorithm 1, and what it is run on.

--config tests/helpers/tiny.py:HOME, where `write(HOME)` has been.
"""

import pathlib

from jdkd.configs import common


def write(home: pathlib.Path) -> None:
    """A model, and a collection with enough passages for an index of ScaNN's."""
    from jdkd.models.dual_encoder import DualEncoder
    from tests.helpers import toy

    toy.write_model(home / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    toy.write_collection(home / 'toy', passages=1100, splits=('train', 'dev', 'test'))


def open_run(config, workdir: pathlib.Path):
    """A run on one device, of a resolved config or one that `get_config` gives."""
    import jax

    from jdkd import config as configs
    from jdkd.corpus import importing
    from jdkd.run import Run
    from jdkd.runtime import mesh as meshes

    config = config if isinstance(config, configs.Config) else configs.resolve(config)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    return Run(config, workdir, mesh, importing.load_collection(config, workdir))


def get_config(home: str):
    c = common.get_config()
    c.collection.source = f'beir:{home}/toy'
    c.collection.label_share = 0.75  # One of four train queries has no label.
    lengths = {'query_length': 8, 'passage_length': 12}
    c.systems.bm25 = common.bm25()
    c.systems.dense = common.encoder(f'{home}/model', **lengths)
    c.systems.tuned = common.encoder(f'{home}/model', **lengths)
    c.systems.tuned.train.update(steps=4, batch_size=2, warmup_steps=1)
    c.teacher.members = ('bm25', 'tuned')
    c.assistants = ('dense', 'tuned', 'bm25')
    c.student = common.student(f'{home}/model', scale=20.0, **lengths)
    c.batch_size = 2
    c.align.update(to=('dense',), epochs=0.2, batch_size=48, warmup_steps=1)
    c.loss.embedding = 0.5
    c.candidates.hard_negatives = 2
    c.candidates.hardest, c.candidates.margin = 4, 0.1
    c.dark.reinforced = c.dark.noisy = 1
    c.steps_per_round = 4
    c.train_passage_length = 12
    c.loss.in_batch = 1.0
    c.optimizer.warmup_steps = 2
    c.depth, c.measures = 40, ('MRR@10', 'nDCG@10', 'R@40')
    c.log_every = 1
    c.checkpoint_every = 2
    return c
