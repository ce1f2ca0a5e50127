"""One compiled step: what it takes of a chip's memory and, by the roofline, of its time."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jdkd.models.config import TransformerConfig
from jdkd.planning import hlo
from jdkd.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step, on one chip.

    Attributes:
        memory: Bytes of its `parameters`, `optimizer`, `batch`, `temporaries` and `total`.
        flops: That the compiler counts.
        traffic: Bytes that the compiler counts, within the chip too.
        main_memory: Bytes of these that its main memory reads and writes, about.
        collectives: By kind.
        model_flops: That the real tokens need; what is computed again and on padding is not.
        compile_seconds: On this machine.
    """

    memory: Mapping[str, int]
    flops: float
    traffic: float
    main_memory: float
    collectives: Mapping[str, hlo.Collective]
    model_flops: float
    compile_seconds: float

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Least seconds of computation, memory and links; and of the step, their `bound`.

        Computation and memory traffic overlap; communication is taken not to.
        """
        links = sum(found.sent for found in self.collectives.values()) / chip.links
        found = {
            'computation': self.flops / chip.flops,
            'memory': self.main_memory / chip.bandwidth,
            'links': links,
        }
        return found | {'bound': max(found['computation'], found['memory']) + links}

    def utilisation(self, chip: Chip) -> float:
        """Share of the chip's peak that the real tokens can have at most."""
        return self.model_flops / (self.seconds(chip)['bound'] * chip.flops)


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A step that the compiler found no memory for.

    Attributes:
        reason: Its first line.
    """

    reason: str


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A step that was lowered for a topology; it is compiled when it is first asked for.

    Attributes:
        computation: Of `jax.jit(...).lower(...)`.
        params: Shapes and shardings of its parameters.
        optimizer: The same of its optimizer's state.
        model_flops: On all devices.
        devices: That it is lowered for.
    """

    computation: Any
    params: Any
    optimizer: Any
    model_flops: float
    devices: int

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        return self.computation.compile()

    @functools.cached_property
    def step(self) -> Step | TooLarge:
        """What it takes."""
        started = time.monotonic()
        try:
            compiled = self.compiled
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            return TooLarge(str(error).splitlines()[0])
        text = compiled.as_text()
        found, cost = compiled.memory_analysis(), compiled.cost_analysis()
        held = {'parameters': size(self.params), 'optimizer': size(self.optimizer)}
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        memory = held | {
            'batch': found.argument_size_in_bytes - sum(held.values()),
            'temporaries': found.temp_size_in_bytes + new,
            'total': found.argument_size_in_bytes + found.temp_size_in_bytes + new,
        }
        return Step(
            memory,
            cost['flops'],
            cost['bytes accessed'],
            min(cost['bytes accessed'], hlo.main_memory(text)),
            hlo.collectives(text, self.devices),
            self.model_flops / self.devices,
            time.monotonic() - started,
        )


def size(tree: Any) -> int:
    """Bytes of arrays on each device, from their shapes and shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def forward_flops(config: TransformerConfig, lengths: np.ndarray) -> float:
    """Operations that an encoder needs for texts of these lengths.

    A multiplication and an addition are two. Norms, activations, the softmax and what comes after
    the last layer are left out: a percent.
    """
    D, hidden = config.hidden_size, config.intermediate_size
    tokens, squares = float(np.sum(lengths)), float(np.sum(np.square(lengths, dtype=np.float64)))
    dense = 4 * D * D + (3 if config.gated else 2) * D * hidden
    return config.num_layers * (2 * dense * tokens + 4 * D * squares)
