"""Bounds the time and memory of one compiled step on a chip, by the roofline model."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jdkd.models.config import TransformerConfig
from jdkd.planning import compiled as counts
from jdkd.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Step:
    """Costs of a compiled step on one chip."""

    memory: Mapping[str, int]  # Bytes of parameters, optimizer, batch, temporaries and total.
    flops: float  # Operations that the compiler counts, with every trip of loops.
    traffic: float  # Bytes that the compiler counts: traffic within the chip too, loops once.
    main_memory: float  # Approximate bytes read from and written to main memory.
    collectives: Mapping[str, counts.Collective]  # By kind.
    model_flops: float  # Operations that the real tokens need, not recomputation and padding.
    compile_seconds: float  # On this machine.

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Least seconds of `computation`, `memory` and `links`, and the `bound` of the step.

        Computation and memory traffic overlap; communication is assumed not to.
        """
        links = sum(collective.sent for collective in self.collectives.values()) / chip.links
        computation, memory = self.flops / chip.flops, self.main_memory / chip.bandwidth
        bound = max(computation, memory) + links
        return {'computation': computation, 'memory': memory, 'links': links, 'bound': bound}

    def utilisation(self, chip: Chip) -> float:
        """Upper bound on model FLOPs utilisation: the real tokens' share of the chip's peak."""
        return self.model_flops / (self.seconds(chip)['bound'] * chip.flops)


def bound_by(seconds: Mapping[str, float]) -> str:
    """The largest of a step's least seconds: `computation`, `memory` or `links`."""
    return max(('computation', 'memory', 'links'), key=seconds.__getitem__)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A step traced for a topology; it compiles when `compiled` or `step` is first read."""

    computation: jax.stages.Traced
    params: Any  # Shapes and shardings, as of the optimizer state.
    optimizer: Any
    model_flops: float  # Operations that the real tokens need, on all devices.
    devices: int  # Number of devices that it is traced for.

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        return self.computation.lower().compile()

    @functools.cached_property
    def step(self) -> Step | str:
        """Costs of the compiled step; the compiler's error if it does not fit into memory."""
        started = time.monotonic()
        try:
            compiled = self.compiled
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            return str(error).splitlines()[0]
        seconds, text = time.monotonic() - started, compiled.as_text() or ''
        memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
        if memory is None:
            raise RuntimeError('this compiler reports no memory of a step')
        main_memory = counts.main_memory(text)
        if cost is None:  # Of GPUs that are not there.
            flops = counts.product_flops(self.computation.jaxpr) / self.devices
            traffic = main_memory
        else:
            repeated = counts.repeated_flops(text, self.computation.jaxpr)
            flops, traffic = cost['flops'] + repeated / self.devices, cost['bytes accessed']
        kept = {'parameters': _array_bytes(self.params), 'optimizer': _array_bytes(self.optimizer)}
        temporaries = memory.temp_size_in_bytes
        temporaries += memory.output_size_in_bytes - memory.alias_size_in_bytes
        sizes = kept | {
            'batch': memory.argument_size_in_bytes - sum(kept.values()),
            'temporaries': temporaries,
            'total': memory.argument_size_in_bytes + temporaries,
        }
        collectives = counts.collectives(text, self.devices)
        if self.devices > 1 and jax.tree.leaves(self.optimizer) and not collectives:
            raise RuntimeError(
                f'no communication is found in a train step of {self.devices} devices, which sums '
                "gradients: the compiler's text is not what jdkd reads; use a version of JAX that "
                'pyproject.toml names, or report it.'
            )
        return Step(
            sizes,
            flops,
            traffic,
            main_memory,
            collectives,
            self.model_flops / self.devices,
            seconds,
        )


def _array_bytes(tree: Any) -> int:
    """Bytes of arrays on each device, from their shapes and shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def forward_flops(config: TransformerConfig, lengths: np.ndarray) -> float:
    """Operations of an encoder's forward pass over texts of these lengths.

    A multiplication and an addition count as two. Norms, activations, the softmax and everything
    after the last layer are left out, about one percent.
    """
    D, hidden = config.hidden_size, config.intermediate_size
    tokens, squares = float(np.sum(lengths)), float(np.sum(np.square(lengths, dtype=np.float64)))
    dense = 4 * D * D + (3 if config.gated else 2) * D * hidden
    return config.num_layers * (2 * dense * tokens + 4 * D * squares)
