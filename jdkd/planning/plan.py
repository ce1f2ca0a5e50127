"""`--mode plan`: what a run needs of devices, time, disk and memory, with none of them at hand."""

import dataclasses
import pathlib
from typing import Any

import ml_collections
from absl import logging

from jdkd.planning import chips, corpus_size, disk, workload
from jdkd.planning.roofline import TooLarge, bound_by
from jdkd.retrieval import index, vectors
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages as runtime_stages

FILE = 'plan.json'
_HOUR, _GB, _GIB = 3600, 1e9, 2**30


def plan(
    config: ml_collections.FrozenConfigDict, topology: str, workdir: pathlib.Path | None = None
) -> dict[str, Any]:
    """Compiles the step of every stage for a topology and multiplies.

    Args:
        config: The run's.
        topology: For example `v5e:2x4`, or `local`; see `chips.devices`.
        workdir: Gets the plan as `plan.json`; None for nowhere.

    Returns:
        What `table` shows, as JSON has it: `stages`, each with `memory`, `flops`, `traffic`,
        `collectives`, `seconds` of a step, and `steps` and `hours` of the run; `hours` in all and
        `chip_hours`, at the least, where the chip is known; `disk` and `host` bytes.

    Raises:
        RuntimeError: if the topology cannot be compiled for.
        FileNotFoundError: if a model's config or the collection is not there.
    """
    devices = chips.devices(topology)
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.model, devices=devices)
    chip = chips.of(topology, devices)
    models = disk.sketches(config)
    counted = corpus_size.of(config, workdir)
    found = {
        'topology': topology,
        'chips': mesh.size,
        'chip': chip and dataclasses.asdict(chip),
        'texts': dataclasses.asdict(counted),
        'rounds': config.rounds,
        'stages': [],
    }
    for stage in workload.stages(config, models, mesh, counted):
        found['stages'].append(_describe(stage, config, chip))
        logging.info('compiled: %s', stage.name)
    if chip is not None:
        hours = [stage['hours'] for stage in found['stages']]
        if None not in hours:
            found['hours'] = sum(hours)
            found['chip_hours'] = mesh.size * sum(hours)
    found['disk'] = disk.estimate(config, counted.on_disk(), models)
    found['host'] = _host(config, counted, models)
    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
        runtime_stages.write_json(workdir / FILE, found)
    return found


def _describe(stage: workload.Stage, config, chip: chips.Chip | None) -> dict[str, Any]:
    step, count = stage.traced.step, stage.steps(config.rounds)
    found = {
        'name': stage.name,
        'unit': stage.unit,
        'items_per_step': stage.items,
        'steps_once': stage.once,
        'steps_per_round': stage.per_round,
        'steps': count,
        'hours': None,
    }
    limit = chip.memory if chip else None
    if isinstance(step, TooLarge):
        return found | {'too_large': step.reason, 'advice': workload.advice(stage, config)}
    found |= dataclasses.asdict(step)
    if chip is not None:
        found['seconds'] = step.seconds(chip)
        found['utilisation_bound'] = step.utilisation(chip)
        found['hours_per_round'] = stage.per_round * found['seconds']['bound'] / _HOUR
        found['hours'] = count * found['seconds']['bound'] / _HOUR
    if limit and step.memory['total'] > limit:
        found['advice'] = workload.advice(stage, config)
    return found


def _host(config, counted: corpus_size.Texts, models) -> dict[str, int]:
    """Bytes of a host's memory, about, of what holds the most; stages follow one another.

    The rest is mapped: the operating system keeps of it what it has room for.
    """
    width = max(disk.width(model) for model, _ in models.values())
    shard = min(counted.passages, config.index.shard)
    lists = config.steps_per_round * config.batch_size
    candidates = 1 + config.candidates.hard_negatives
    dark = config.dark.reinforced + config.dark.noisy
    scored = 4 * (candidates + dark) * (2 + len(config.assistants))
    return {
        # As the docstring of data/store.py has it, while a collection is imported.
        'import': 300_000_000 + 70 * counted.passages + 1000 * counted.queries,
        # A part, and its copy where it is rounded, beside the lengths of all texts.
        'encoding': 8 * vectors.PART * width + 20 * counted.passages,
        # Shards side by side, as float32 and as codes.
        'index': index.BUILDERS * shard * (4 * width + width // 2),
        'lists of a round': lists
        * (scored + 4 * candidates + 2 * dark * config.train_passage_length),
    }


def table(found: dict[str, Any]) -> str:
    """The plan as text."""
    counted, chip = found['texts'], found['chip']
    lines = [
        f'{found["topology"]}, {found["chips"]} chips; {counted["passages"]:,} passages, '
        f'{counted["train"]:,} train queries, {found["rounds"]} rounds',
        '',
        'of one step, on each device',
        _row('', 'parameters', 'optimizer', 'batch', 'temporaries', 'total', 'of memory')
        + _row('', 'TFLOP', 'GB', 'HBM GB', 'ms', 'bound by', 'used', width=12),
    ]
    for stage in found['stages']:
        lines.append(_step_row(stage, chip))
    lines += ['', 'of the run', _row('', 'per step', '', 'steps', 'a round', 'hours', 'a round')]
    for stage in found['stages']:
        lines.append(
            _row(
                stage['name'],
                f'{stage["items_per_step"]:,.0f}',
                stage['unit'],
                f'{stage["steps"]:,.0f}',
                f'{stage["steps_per_round"]:,.0f}',
                _hours(stage['hours']),
                _hours(stage.get('hours_per_round')),
            )
        )
    if 'hours' in found:
        lines += [
            '',
            f'{_hours(found["hours"])} hours, {_hours(found["chip_hours"])} chip-hours, at the '
            'least: every step at its bound, devices never waiting; tokenising, BM25, searching '
            'and reading are not counted',
        ]
    lines += _collectives(found)
    for name in ('disk', 'host'):
        parts = ', '.join(f'{k} {v / _GIB:.1f}' for k, v in found[name].items())
        whole = sum(found[name].values()) if name == 'disk' else max(found[name].values())
        lines.append(f'{name}, GiB: {whole / _GIB:.1f} ({parts})')
    for stage in found['stages']:
        if 'advice' in stage:
            lines.append(f'{stage["name"]} does not fit: {stage["advice"]}.')
    return '\n'.join(lines)


def _step_row(stage: dict[str, Any], chip: dict[str, Any] | None) -> str:
    if 'too_large' in stage:
        return _row(stage['name'], 'does not fit')
    memory = stage['memory']
    sizes = [f'{memory[name] / 2**20:,.1f} MiB' for name in memory]
    share = f'{100 * memory["total"] / chip["memory"]:.1f}%' if chip else ''
    found = _row(stage['name'], *sizes, share)
    more = [f'{stage["flops"] / 1e12:.3f}', f'{stage["traffic"] / _GB:.2f}']
    more.append(f'{stage["main_memory"] / _GB:.2f}')
    if chip:
        seconds = stage['seconds']
        more += [
            f'{1000 * seconds["bound"]:.2f}',
            bound_by(seconds),
            f'{100 * stage["utilisation_bound"]:.0f}%',
        ]
    return found + _row('', *more, width=12)


def _collectives(found: dict[str, Any]) -> list[str]:
    lines = []
    for stage in found['stages']:
        kinds = stage.get('collectives') or {}
        if kinds:
            said = ', '.join(
                f'{kind} {c["count"]} of {c["size"] / 1e6:,.1f} MB' for kind, c in kinds.items()
            )
            lines.append(f'  {stage["name"]}: {said}')
    return ['', 'communication of one step', *lines, ''] if lines else ['']


def _row(name: str, *values: str, width: int = 14) -> str:
    return (f'{name:24}' if name or width == 14 else '') + ''.join(f'{v:>{width}}' for v in values)


def _hours(hours: float | None) -> str:
    return '' if hours is None else f'{hours:.3g}'
