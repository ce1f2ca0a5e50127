"""Builds the train step that benchmarks time, on texts as long as MS MARCO's passages."""

import dataclasses
import statistics
import time

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from jdkd.commands.setup import resolve_training
from jdkd.configs import common
from jdkd.distillation.objective import Objective
from jdkd.distillation.trainer import make_trainer
from jdkd.lists import packing
from jdkd.models import pretrained
from jdkd.models.dual_encoder import DualEncoder
from jdkd.planning.corpus_size import draw_lengths
from jdkd.runtime import mesh as meshes

WEIGHTS = flags.DEFINE_string(
    'weights', 'sentence-transformers/all-MiniLM-L6-v2', "Directory, or name on the hub; a BERT's."
)
LISTS = flags.DEFINE_integer('lists', 8, 'Queries of a train step.')
CANDIDATES = flags.DEFINE_integer('candidates', 8, 'Passages of each.')
MEAN = flags.DEFINE_float('mean', 75.0, 'Tokens of a passage.')
LONGEST = flags.DEFINE_integer('longest', 144, 'Tokens of a passage.')
QUERY = flags.DEFINE_integer('query', 16, 'Tokens of a query.')
TURNS = flags.DEFINE_integer('turns', 5, 'Timed turns of each side.')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of matrix products.')
SCALE = 20.0


def texts(rng, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids `[*shape, longest]` of passages, and their lengths."""
    lengths = draw_lengths(rng, shape, MEAN.value, LONGEST.value).astype(np.int32)
    ids = rng.integers(1000, 9000, (*shape, LONGEST.value)).astype(np.int32)
    return np.where(np.arange(LONGEST.value) < lengths[..., None], ids, 0), lengths


@dataclasses.dataclass(frozen=True)
class Batch:
    query: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray
    teacher: np.ndarray

    @property
    def real_tokens(self) -> int:
        return int(self.lengths.sum()) + self.query.size


def train_batches(count: int) -> list[Batch]:
    rng, shape = np.random.default_rng(0), (LISTS.value, CANDIDATES.value)
    return [
        Batch(
            rng.integers(1000, 9000, (LISTS.value, QUERY.value)).astype(np.int32),
            *texts(rng, *shape),
            rng.normal(size=shape).astype(np.float32),
        )
        for _ in range(count)
    ]


def prepared(path, batches, mesh: Mesh, **rows):
    """`run(i)` takes a train step on batch i; and the share of real tokens in its rows."""
    source = pretrained.read_pretrained(path)
    model = DualEncoder(dataclasses.replace(source.config, dtype=DTYPE.value))
    config = common.get_config()
    config.update_from_flattened_dict({'loss.assistant': 0.0, 'loss.dark': 0.0})
    config.update_from_flattened_dict({'optimizer.learning_rate': 1e-5})
    config.update_from_flattened_dict({f'rows.{name}': value for name, value in rows.items()})
    resolved = resolve_training(config)
    params = {'transformer': source.params}
    training = Objective(resolved, resolved.optimizer, SCALE, dropout=0.0)
    trainer = make_trainer(training, mesh=mesh, model=model, params=params)
    layout = packing.fit_layout([b.lengths for b in batches], trainer.rows)
    group = np.arange(batches[0].lengths.size, dtype=np.int32).reshape(batches[0].lengths.shape)
    on_device = [
        meshes.to_device(
            {
                'query': b.query,
                **packing.pack({'tokens': b.tokens}, b.lengths, layout, pad_id=0),
                'lengths': b.lengths,
                'group': group,
                'relevant': group[:, :1],
                'false_negative': np.zeros(group.shape, bool),
                'teacher': b.teacher,
            },
            meshes.batch_sharding(trainer.mesh),
        )
        for b in batches
    ]
    state = [trainer.init(params)]

    def run(i):
        state[0], metrics = trainer.step(state[0], on_device[i])
        jax.block_until_ready(metrics)

    return run, float(np.mean([b.lengths.sum() for b in batches])) / layout.num_tokens


def timed(sides: dict, calls: int) -> dict[str, float]:
    """Median seconds of a call of each side, in turns; `side(i)` is call i."""
    seconds = {name: [] for name in sides}
    for turn in range(TURNS.value + 2):
        for name, run in sides.items():
            start = time.perf_counter()
            run(turn % calls)
            if turn >= 2:  # The first ones compile and warm up.
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}
