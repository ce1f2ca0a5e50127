"""Which steps a run takes, and how often: Algorithm 1 as multiplications."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from jdkd.models import dual_encoder
from jdkd.planning import tracing
from jdkd.planning.corpus_size import SAMPLE, Texts
from jdkd.planning.roofline import Traced
from jdkd.systems import roles


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step and how often a run takes it.

    Attributes:
        name: Of the stage.
        field: Of the config entry whose model it runs: `student` or `systems.<name>`.
        traced: The step.
        items: Queries, passages or pairs that a step takes.
        unit: What they are.
        once: Steps before or after the rounds.
        per_round: Steps of each round.
    """

    name: str
    field: str
    traced: Traced
    items: float
    unit: str
    once: float
    per_round: float

    def steps(self, rounds: int) -> float:
        """Of the whole run."""
        return self.once + rounds * self.per_round


def stages(
    config: ml_collections.FrozenConfigDict,
    models: Mapping[str, tuple[Any, Any]],
    mesh: Mesh,
    texts: Texts,
) -> Iterator[Stage]:
    """Every stage of a run that computes on devices.

    Queries count as passages where both are encoded: there are few of them.

    Args:
        config: Of the run.
        models: Module and shapes of the parameters of every encoder, by its field.
        mesh: To compile for.
        texts: Of the run.
    """
    encoders = roles.encoders(config)
    lists = config.steps_per_round * config.batch_size
    lists += min(config.candidates.eval_lists, texts.held_out)
    dark = lists * (config.dark.reinforced + config.dark.noisy)
    originals = lists * (1 + config.candidates.hard_negatives)
    encoded = {}
    for name, entry in roles.trained(config).items():
        field = f'systems.{name}'
        traced = tracing.train_from_labels(config, entry, *models[field], mesh, texts)
        size = entry.train.batch_size
        yield Stage(f'train {name}', field, traced, size, 'queries', entry.train.steps, 0)

    corpus = texts.passages + texts.queries
    for field, entry in encoders.items():
        name = field.removeprefix('systems.')
        model, params = models[field]
        scores = name in (*config.teacher.members, *config.assistants)
        if entry.kind == 'dual_encoder':
            lengths = texts.passage_lengths((SAMPLE,), entry.passage_length)
            longest, unit = entry.passage_length, 'passages'
            once, per_round = corpus, dark if scores else 0
            if field == 'student':
                per_round = corpus  # After each round; once before the first.
            params = dual_encoder.tower(params, 'passage')
        else:
            lengths, longest = tracing.pair_lengths(entry, model, texts, (SAMPLE,))
            unit, per_round = 'pairs', originals + dark
            # The first stage's rankings, which the teacher re-ranks for the report.
            once = min(config.depth, texts.passages) * (texts.held_out + texts.test)
        # Encoders of one architecture share a step, which is compiled once.
        key = (model, longest)
        if key not in encoded:
            encoded[key] = tracing.encode_texts(model, params, mesh, np.sort(lengths), longest)
        traced, size = encoded[key]
        verb = 'encode with' if unit == 'passages' else 'score with'
        yield Stage(f'{verb} {name}', field, traced, size, unit, once / size, per_round / size)

    traced = tracing.train_student(config, *models['student'], mesh, texts)
    size, count = config.batch_size, config.steps_per_round
    yield Stage('train student', 'student', traced, size, 'queries', 0, count)


def advice(stage: Stage, config: ml_collections.FrozenConfigDict) -> str:
    """What makes a step fit that does not."""
    field = stage.field
    if stage.name == 'train student':
        chunks = 2 * config.rows.chunks
        return (
            f'set rows.chunks={chunks}, {field}.remat=dots or full, a smaller batch_size, or '
            f'mesh.model={2 * config.mesh.model}'
        )
    if stage.name.startswith('train'):
        return (
            f'set {field}.remat=full, a smaller {field}.train.batch_size or '
            f'mesh.model={2 * config.mesh.model}'
        )
    return f'set {field}.dtype=bfloat16 or a shorter {field}.passage_length'
