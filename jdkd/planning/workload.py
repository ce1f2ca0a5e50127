"""Lists the phases of a run that compute on devices, and how many steps each takes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jdkd.config import Config
from jdkd.models import dual_encoder
from jdkd.planning import disk, requests, tracing
from jdkd.planning.corpus_size import SAMPLE, CorpusSize
from jdkd.planning.roofline import Traced
from jdkd.retrieval import approximate, exact
from jdkd.systems import roles


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run that repeats one step."""

    name: str  # Such as `train student`.
    field: str  # Config field of the model that it runs: `student` or `systems.<name>`.
    traced: Traced  # The step.
    items: float  # Number of queries, passages or pairs that a step takes.
    unit: str  # `queries`, `passages`, `texts` or `pairs`.
    once: float  # Steps before or after the rounds.
    per_round: float  # Steps of each round.


def list_phases(
    config: Config, models: Mapping[str, tuple[Any, Any]], mesh: Mesh, size: CorpusSize
) -> Iterator[Phase]:
    """Yields every phase of a run that computes on devices; `models` come from `sketch_models`.

    Queries count as passages where both are encoded: there are few of them.
    """
    encoders = roles.encoders(config)
    twins = 1 + config.twin  # Whose step is no dearer than the student's.
    lists = disk.count_lists(config, size)
    dark = lists * (config.dark.reinforced + config.dark.noisy)
    for name, spec in roles.trained(config).items():
        field = f'systems.{name}'
        traced = tracing.train_from_labels(config, spec, *models[field], mesh, size)
        items, steps = spec.train.batch_size, spec.train.steps
        yield Phase(f'train {name}', field, traced, items, 'queries', steps, 0)

    encode_steps = {}
    corpus = size.passages + size.queries
    for field, spec in encoders.items():
        name = field.removeprefix('systems.')
        model, params = models[field]
        scores_lists = name in (*config.teacher.members, *config.assistants)
        if spec.kind == 'dual_encoder':
            lengths = size.passage_lengths((SAMPLE,), spec.passage_length)
            longest, unit, verb, once = spec.passage_length, 'passages', 'encode', corpus
            # The student embeds the corpus before the first round and after each, and once
            # more where it is aligned first.
            once *= 1 + (field == 'student' and bool(config.align.epochs))
            cuts = [s.passage_length for n, s in roles.cut_targets(config) if n == name]
            for length in cuts:
                once += size.passages * np.minimum(lengths, length).sum() / lengths.sum()
            per_round = corpus * twins if field == 'student' else dark if scores_lists else 0
            params = dual_encoder.tower(params, 'passage')
        else:
            lengths, longest = tracing.pair_lengths(spec, model, size, (SAMPLE,))
            unit, verb = 'pairs', 'score'
            counts = requests.lists_to_score(config, size, name)
            once, per_round = (
                sum(count * length for count, length in part)
                for part in (counts.once, counts.per_round)
            )
        # Encoders of one architecture share one compiled step.
        key = (model, longest)
        if key not in encode_steps:
            encode_steps[key] = tracing.encode_texts(model, params, mesh, np.sort(lengths), longest)
        traced, items = encode_steps[key]
        yield Phase(
            f'{verb} with {name}', field, traced, items, unit, once / items, per_round / items
        )

    platform = mesh.devices.flat[0].platform
    if config.rounds and approximate.for_mining(config.index, platform).kind == 'exact':
        # Every dense system ranks once, the student before the first round and after each.
        dense = roles.dense_rankers(config)
        widths = [dual_encoder.embedding_width(models[field][0]) for field in dense]
        traced, items = tracing.search_passages(config, max(widths), mesh, size), exact.QUERY_BLOCK
        steps = size.train / items
        once, per_round = len(widths) * steps, twins * steps
        yield Phase('search', 'index', traced, items, 'queries', once, per_round)

    if config.align.epochs:
        traced, texts = tracing.align_student(config, *models['student'], mesh, size)
        items = texts.batch_size * (1 + texts.per_query)
        yield Phase('align student', 'student', traced, items, 'texts', texts.steps, 0)
    if not config.rounds:
        return
    traced = tracing.train_student(config, *models['student'], mesh, size)
    items, steps = config.batch_size, twins * config.steps_per_round
    yield Phase('train student', 'student', traced, items, 'queries', 0, steps)


def advise(phase: Phase, config: Config) -> str:
    """Names config changes that make a step fit into memory."""
    field, ways = phase.field, 2 * config.mesh.model
    if phase.name == 'train student':
        return (
            f'set rows.chunks={2 * config.rows.chunks}, {field}.remat=dots or full, a smaller '
            f'batch_size, or mesh.model={ways}'
        )
    if phase.name == 'align student':
        return f'set {field}.remat=dots or full, a smaller align.batch_size, or mesh.model={ways}'
    if phase.name == 'search':
        return 'set index.store=bfloat16, use more devices, or set index.mining=scann'
    if phase.name.startswith('train'):
        return f'set {field}.remat=full, a smaller {field}.train.batch_size or mesh.model={ways}'
    return f'set {field}.dtype=bfloat16 or a shorter {field}.passage_length'
