"""Ahead-of-time compilation for TPU topologies: what fits and what it costs, with no TPU."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import topologies

from jdkd import student
from jdkd.data import packing
from jdkd.runtime import mesh as meshes
from jdkd.systems.entries import read_model

# Bytes of memory of a chip, by the name before the colon (cloud.google.com/tpu/docs).
HBM = {'v4': 32 << 30, 'v5e': 16 << 30, 'v5p': 95 << 30, 'v6e': 32 << 30}


def topology_devices(name: str) -> list[jax.Device]:
    """Devices of a TPU topology such as `v5e:2x4`, to compile for.

    Raises:
        RuntimeError: if the TPU compiler is not installed or does not know the topology.
    """
    try:
        return list(topologies.get_topology_desc(platform='tpu', topology_name=name).devices)
    except Exception as e:
        raise RuntimeError(
            f"cannot compile for '{name}' ({str(e).splitlines()[0]}); this needs the TPU compiler, "
            'pip install "jax[tpu]" (no TPU is needed), and a topology such as v5e:2x4.'
        ) from e


def plan(config: ml_collections.FrozenConfigDict, topology: str) -> dict[str, Any]:
    """Compiles the student's train step for a topology.

    Args:
        config: The run's config.
        topology: For example `v5e:2x4`.

    Returns:
        Per chip: `parameters`, `arguments`, `outputs`, `temporaries`, `total` and `hbm` in bytes,
        `flops`, `bytes_accessed` of one step.
    """
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.model, devices=topology_devices(topology))
    model, params, _ = read_model(config.student, config.seed)
    trainer = student.make_trainer(config, mesh, model, params)
    batch = abstract_batch(config, trainer.rows, meshes.batch_sharding(mesh))
    compiled = trainer.step.lower(trainer.abstract, batch).compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        'topology': topology,
        'chips': mesh.size,
        'parameters': sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(trainer.abstract.params)
        ),
        'arguments': memory.argument_size_in_bytes,
        'outputs': memory.output_size_in_bytes - memory.alias_size_in_bytes,
        'temporaries': memory.temp_size_in_bytes,
        'total': memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        'hbm': HBM.get(topology.partition(':')[0]),
        'flops': cost['flops'],
        'bytes_accessed': cost['bytes accessed'],
    }


def draw_lengths(shape: tuple[int, ...], mean: float, longest: int, rng) -> np.ndarray:
    """Tokens of passages, spread as MS MARCO's are: a gamma distribution, cut off (ours)."""
    return rng.gamma(5, mean / 5, shape).astype(np.int32).clip(min(8, longest), longest)


def abstract_batch(config, rows: packing.Rows, sharding) -> dict[str, Any]:
    """Shapes of a training batch; see `distill.step`.

    Args:
        config: The run's; `rows.mean_tokens` says how long candidates are expected to be.
        rows: How they are put into rows.
        sharding: Of the arrays.
    """
    B, originals = config.batch_size, 1 + config.candidates.hard_negatives
    N, longest = originals, config.train_passage_length
    if config.loss.dark:
        N += config.dark.reinforced + config.dark.noisy
    lengths = np.full((1, B, N), longest)
    if config.rows.mean_tokens:
        rng = np.random.default_rng(0)
        lengths = draw_lengths((8, B, N), config.rows.mean_tokens, longest, rng)
    layout = packing.fit(lengths, rows)

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    tiles = tuple(array(rows.parts * count, size) for count, size in layout.tiles)
    batch = {
        'query_row': array(B),
        'query': array(B, config.student.query_length),
        'tokens': tiles,
        'where': array(B, N),
        'lengths': array(B, N),
        'group': array(B, originals),
        'relevant': array(B, 1),
        'false_negative': array(B, originals, dtype=jnp.bool_),
        'teacher': array(B, N, dtype=jnp.float32),
    }
    if layout.slots > 1:
        batch['segments'] = tiles
    if K := len(config.assistants):
        batch['assistants'] = array(B, K, N, dtype=jnp.float32)
        if config.loss.in_batch:
            batch['in_batch'] = array(B, K, B * originals, dtype=jnp.float32)
    return batch


def table(found: dict[str, Any]) -> str:
    """The plan as text."""
    mib = 2**20
    lines = [f'train step on {found["topology"]}, {found["chips"]} chips; per chip:']
    for name in ('parameters', 'arguments', 'outputs', 'temporaries', 'total'):
        lines.append(f'  {name:15}{found[name] / mib:12.1f} MiB')
    if found['hbm']:
        share = 100 * found['total'] / found['hbm']
        lines.append(f'  {"of memory":15}{share:12.1f} % of {found["hbm"] / 2**30:.0f} GiB')
    lines.append(f'  {"computation":15}{found["flops"] / 1e9:12.1f} GFLOP')
    lines.append(f'  {"traffic":15}{found["bytes_accessed"] / 1e9:12.2f} GB')
    return '\n'.join(lines)
