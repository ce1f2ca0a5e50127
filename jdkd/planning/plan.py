"""Plans a run: the devices, hours, disk and memory that it needs, without any of them at hand."""

import dataclasses
import pathlib
from typing import Any

from absl import logging

from jdkd.config import Config
from jdkd.corpus import lengths
from jdkd.models.dual_encoder import embedding_width
from jdkd.planning import chips, corpus_size, disk, host, requests, workload
from jdkd.planning.corpus_size import CorpusSize
from jdkd.planning.roofline import bound_by
from jdkd.retrieval import approximate, vectors
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems import roles
from jdkd.systems.ranking import PART_QUERIES

FILE = 'plan.json'
_HOUR, _GB, _GIB = 3600, 1e9, 2**30


def make_plan(config: Config, topology: str, workdir: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles the step of every phase of a run for a topology and multiplies.

    Args:
        topology: For example `v5e:2x4`, or `local`; see `chips.find_devices`.
        workdir: Gets the plan as `plan.json`; None to write nothing.

    Returns:
        The JSON values that `format_plan` shows: `stages`, each with `memory`, `flops`, `traffic`,
        `collectives` and `seconds` of a step, and `steps` and `hours` of the run; `host_work`, see
        `host.plan`; the lower bounds `device_hours` and `chip_hours`, if the chip is known, and
        `host_hours` and `hours` in total; bytes of `disk`, of `transient` files and of `host`; and
        the `requests` to language models.

    Raises:
        RuntimeError: if there is no compiler for the topology.
        FileNotFoundError: if a model's config or the collection is missing.
    """
    devices = chips.find_devices(topology)
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.model, devices=devices)
    chip = chips.find_chip(topology, devices)
    models = disk.sketch_models(config)
    size = corpus_size.measure(config, workdir, mesh)
    config = lengths.fit(config, size.passage_sample, size.query_sample)
    if size.rounds is not None:
        config = config.replace(rounds=size.rounds)
    config = roles.fit_to_labels(config, lambda: size.labels)
    phases = []
    for phase in workload.list_phases(config, models, mesh, size):
        phases.append(_describe(phase, config, chip))
        logging.info('compiled: %s', phase.name)
    plan = {
        'topology': topology,
        'chips': mesh.size,
        'chip': chip and dataclasses.asdict(chip),
        'texts': dataclasses.asdict(size),
        'rounds': config.rounds,
        'stages': phases,
    }
    hours = [phase['hours'] for phase in phases]
    plan['host_work'] = host.plan(config, size, models, topology, devices)
    plan['host_hours'] = sum(work['hours'] for work in plan['host_work']['work'])
    if None not in hours:
        plan |= {'device_hours': sum(hours), 'chip_hours': mesh.size * sum(hours)}
        plan['hours'] = plan['device_hours'] + plan['host_hours']
    plan['disk'] = disk.estimate(config, size, size.passage_words(), models)
    plan['transient'] = disk.transient(config, size, size.passage_words())
    plan['host'] = _host_memory(config, size, models, plan['host_work']['cores'])
    plan['requests'] = [dataclasses.asdict(r) for r in requests.list_requests(config, size)]
    if workdir is not None:
        workdir.mkdir(parents=True, exist_ok=True)
        stages.write_json(workdir / FILE, plan)
    return plan


def _describe(phase: workload.Phase, config: Config, chip: chips.Chip | None) -> dict[str, Any]:
    step, count = phase.traced.step, phase.once + config.rounds * phase.per_round
    values = {
        'name': phase.name,
        'unit': phase.unit,
        'items_per_step': phase.items,
        'steps_once': phase.once,
        'steps_per_round': phase.per_round,
        'steps': count,
        'hours': None,
    }
    if isinstance(step, str):
        return values | {'too_large': step, 'advice': workload.advise(phase, config)}
    values |= dataclasses.asdict(step)
    if chip is not None:
        values['seconds'] = seconds = step.seconds(chip)
        values['utilisation_bound'] = step.utilisation(chip)
        values['hours_per_round'] = phase.per_round * seconds['bound'] / _HOUR
        values['hours'] = count * seconds['bound'] / _HOUR
        if step.memory['total'] > chip.memory > 0:
            values['advice'] = workload.advise(phase, config)
    return values


def _host_memory(
    config: Config, size: CorpusSize, models: dict[str, tuple[Any, Any]], cores: int
) -> dict[str, int]:
    """Approximate bytes of host memory of the largest stages, which follow one another.

    Memory-mapped files are left out: the operating system caches what fits.
    """
    width = max(embedding_width(model) for model, _ in models.values())
    shard = min(size.passages, config.index.shard)
    builders = min(approximate.BUILDERS, cores)
    part, retrievers = PART_QUERIES, len(set(roles.retrievers(config))) + 1
    lists = config.steps_per_round * config.batch_size
    candidates = 1 + config.candidates.hard_negatives
    dark = config.dark.reinforced + config.dark.noisy
    scores = 4 * (candidates + dark) * (2 + len(config.assistants))
    return {
        # See the docstring of corpus/building.py.
        'import': 300_000_000 + 70 * size.passages + 1000 * size.queries,
        # A part, its copy while it is rounded, and the lengths of all texts.
        'encoding': 8 * vectors.FILE_ROWS * width + 20 * size.passages,
        # Concurrent shards, as float32 and as codes.
        'index': builders * shard * (4 * width + width // 2),
        # One part of the train queries: rankings, and what is mined from them.
        'rankings': part * (24 * config.depth + 12 * retrievers * config.candidates.depth),
        'lists of a round': lists
        * int(
            scores
            + 4 * candidates
            + 2 * dark * config.train_passage_length
            + disk.slice_bytes(config, size.passage_words())
        ),
    }


def format_plan(plan: dict[str, Any]) -> str:
    """Formats a plan as text tables."""
    size, chip, phases = plan['texts'], plan['chip'], plan['stages']
    lines = [
        f'{plan["topology"]}, {plan["chips"]} chips; {size["passages"]:,} passages, '
        f'{size["train"]:,} train queries, {plan["rounds"]} rounds',
        '',
        'per step and device',
        _row('', 'parameters', 'optimizer', 'batch', 'temporaries', 'total', 'of memory')
        + _row('', 'TFLOP', 'GB', 'HBM GB', 'ms', 'bound by', 'used', width=12),
        *(_step_row(phase, chip) for phase in phases),
        '',
        'per run',
        _row('', 'per step', '', 'steps', 'a round', 'hours', 'a round'),
        *map(_run_row, phases),
    ]
    lines += _host_lines(plan)
    lines += _collective_lines(phases)
    for name, total in (('disk', sum), ('transient', max), ('host', max)):
        parts = ', '.join(f'{kind} {size / _GIB:.1f}' for kind, size in plan[name].items())
        lines.append(f'{name}, GiB: {total(plan[name].values()) / _GIB:.1f} ({parts})')
    lines += [str(requests.Requests(**counts)) for counts in plan['requests']]
    for phase in phases:
        if 'advice' in phase:
            lines.append(f'{phase["name"]} does not fit: {phase["advice"]}.')
    return '\n'.join(lines)


def _host_lines(plan: dict[str, Any]) -> list[str]:
    """The host's work, and the sum of hours."""
    host = plan['host_work']
    lines = ['', 'host', _row('', 'units', 'of', 'core-hours', 'on cores', 'hours', width=22)]
    for work in host['work']:
        cells = [f'{work["units"]:.3g}', work['unit'], _hours(work['core_seconds'] / _HOUR)]
        cells += [f'{work["shared"]:,}', _hours(work['hours'])]
        lines.append(_row(work['name'], *cells, width=22))
    lines += [
        f'{host["hosts"]} host(s) of {host["cores"]} cores; throughputs of {host["measured_on"]}',
        '',
    ]
    if 'hours' not in plan:
        return [*lines, f'host: {_hours(plan["host_hours"])} hours']
    return [
        *lines,
        f'{_hours(plan["hours"])} hours: devices {_hours(plan["device_hours"])} at least '
        f'({_hours(plan["chip_hours"])} chip-hours: every step at its bound), host '
        f'{_hours(plan["host_hours"])}; excludes downloads and compiling',
    ]


def _step_row(phase: dict[str, Any], chip: dict[str, Any] | None) -> str:
    if 'too_large' in phase:
        return _row(phase['name'], 'does not fit')
    sizes = [f'{size / 2**20:,.1f} MiB' for size in phase['memory'].values()]
    share = f'{100 * phase["memory"]["total"] / chip["memory"]:.1f}%' if chip else ''
    costs = [f'{phase["flops"] / 1e12:.3f}']
    costs += [f'{phase[kind] / _GB:.2f}' for kind in ('traffic', 'main_memory')]
    if chip:
        seconds, share_used = phase['seconds'], 100 * phase['utilisation_bound']
        costs += [f'{1000 * seconds["bound"]:.2f}', bound_by(seconds), f'{share_used:.0f}%']
    return _row(phase['name'], *sizes, share) + _row('', *costs, width=12)


def _run_row(phase: dict[str, Any]) -> str:
    return _row(
        phase['name'],
        f'{phase["items_per_step"]:,.0f}',
        phase['unit'],
        f'{phase["steps"]:,.0f}',
        f'{phase["steps_per_round"]:,.0f}',
        _hours(phase['hours']),
        _hours(phase.get('hours_per_round')),
    )


def _collective_lines(phases: list[dict[str, Any]]) -> list[str]:
    lines = []
    for phase in phases:
        collectives = phase.get('collectives', {}).items()
        sums = [f'{kind} {c["count"]} of {c["size"] / 1e6:,.1f} MB' for kind, c in collectives]
        if sums:
            lines.append(f'  {phase["name"]}: {", ".join(sums)}')
    return ['', 'communication per step', *lines, ''] if lines else ['']


def _row(name: str, *values: str, width: int = 14) -> str:
    return (f'{name:24}' if name or width != 12 else '') + ''.join(f'{v:>{width}}' for v in values)


def _hours(hours: float | None) -> str:
    return '' if hours is None else f'{hours:.3g}'
