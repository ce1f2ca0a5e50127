"""Compares a plan for this machine with measured steps and a finished run.

python -m jdkd.main --config configs/mta4dpr.py --workdir runs/mta4dpr
python -m benchmarks.planned --workdir=runs/mta4dpr

Compiles every step as `--mode plan --topology=local` does, and runs it on arrays of ones. On a CPU,
memory is the growth of the process, and peak rates are those of a large matrix product and of
adding one to a large array; GPUs and TPUs have published peaks, and their memory is not measured.
The plan's disk is compared with the files of the workdir: it counts one checkpoint more, during
replacement, and no compression.
"""

import collections
import ctypes
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import measure
from jdkd.commands import setup
from jdkd.planning import chips, corpus_size, disk, workload
from jdkd.planning.chips import Chip
from jdkd.planning.roofline import Traced, bound_by
from jdkd.runtime import mesh as meshes

_WORKDIR = flags.DEFINE_string('workdir', None, 'Of a finished run.', required=True)
_TURNS = flags.DEFINE_integer('turns', 3, 'Timed runs of each step, of which the fastest counts.')
# What the estimate of the disk calls the files of a workdir, the first that fits.
_KINDS = {
    'checkpoints': ('**/checkpoints/**/*', 'student/**/*'),
    'tokens': ('tokens/**/*',),
    'embeddings': ('systems/*/embeddings-*/*',),
    'indexes': ('systems/*/index/**/*',),
    'rankings': ('systems/*/*ranking-*/*',),
    'candidates, scores and datasets': (
        'rounds/*/candidates/**/*',
        'rounds/*/scores/**/*',
        'rounds/*/dataset/**/*',
    ),
}


def fastest(fn, *args) -> float:
    """Seconds."""
    jax.block_until_ready(fn(*args))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(fn(*args))
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measured_chip(dtype: str) -> Chip:
    """The peaks of this machine's first device."""
    square, line = jnp.ones((2048, 2048), dtype), jnp.ones(1 << 26, jnp.float32)
    product, add = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    return Chip(
        flops=2 * 2048**3 / fastest(product, square),
        memory=0,
        bandwidth=2 * line.nbytes / fastest(add, line),
        links=float('inf'),
    )


def ones(traced: Traced):
    """Arguments of a step, where it wants them."""
    args, _ = traced.compiled.input_shardings
    infos = traced.computation.args_info[0]
    return jax.tree.map(lambda x, place: jnp.ones(x.shape, x.dtype, device=place), infos, args)


def took(name: str, traced: Traced) -> dict[str, float | None]:
    """Seconds of a step, and MiB that it held at the most beside its arguments."""
    seconds: list[float] = []
    found: dict[str, Any] = {}
    for turn in range(_TURNS.value + 1):
        args = jax.block_until_ready(ones(traced))
        if not turn:
            ctypes.CDLL(None).malloc_trim(0)  # So that nothing fits into what was freed before.
            with measure.peak(found, name):
                jax.block_until_ready(traced.compiled(*args))
            continue
        started = time.perf_counter()
        jax.block_until_ready(traced.compiled(*args))
        seconds.append(time.perf_counter() - started)
    held = found[name]['peak_anonymous_mib'] - found[name]['before_anonymous_mib']
    held = held if jax.default_backend() == 'cpu' else None
    return {'temporaries_mib': held, 'seconds': round(min(seconds), 4)}


def files(workdir: pathlib.Path) -> dict[str, int]:
    """Bytes of a workdir's files by kind."""
    seen, sizes = set(), collections.Counter()
    for kind, patterns in _KINDS.items():
        for path in {path for pattern in patterns for path in workdir.glob(pattern)} - seen:
            seen.add(path)
            sizes[kind] += path.stat().st_size if path.is_file() else 0
    return dict(sizes)


def main(_):
    workdir = pathlib.Path(_WORKDIR.value)
    config = setup.load_config(workdir)
    devices = chips.find_devices(chips.LOCAL)
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.model, devices=devices)
    chip = chips.find_chip(chips.LOCAL, devices) or measured_chip(config.student.dtype)
    models, size = disk.sketch_models(config), corpus_size.measure(config, workdir, mesh)
    found = {}
    for phase in workload.list_phases(config, models, mesh, size):
        step = phase.traced.step
        if isinstance(step, str):
            raise MemoryError(f'{phase.name}: {step}')
        bound = step.seconds(chip)
        found[phase.name] = {
            'planned': {
                'temporaries_mib': round(step.memory['temporaries'] / 2**20, 1),
                'seconds': round(bound['bound'], 4),
                'bound_by': bound_by(bound),
            },
            'measured': took(phase.name, phase.traced),
        }
    planned = disk.estimate(config, size, size.passage_words(), models)
    there = files(workdir)
    measure.write(
        'planned',
        {
            'chip': {'flops': chip.flops, 'bandwidth': chip.bandwidth},
            'stages': found,
            'disk_mib': {
                kind: {
                    'planned': round(planned[kind] / 2**20, 1),
                    'measured': round(there[kind] / 2**20, 1),
                }
                for kind in planned
            },
        },
    )


if __name__ == '__main__':
    app.run(main)
