"""One compiled step: what it takes of a chip's memory and, by the roofline, of its time."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from jdkd.planning import flops, hlo
from jdkd.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step, on one chip.

    Attributes:
        memory: Bytes of its `parameters`, `optimizer`, `batch`, `temporaries` and `total`.
        flops: That the compiler counts, and those of loops as often as they go round.
        traffic: Bytes that the compiler counts, within the chip too, and in loops once.
        main_memory: Bytes that its main memory reads and writes, about.
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


def bound_by(seconds: Mapping[str, float]) -> str:
    """What most of a step's least seconds are: `computation`, `memory` or `links`."""
    return max(('computation', 'memory', 'links'), key=seconds.__getitem__)


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """A step that the compiler found no memory for.

    Attributes:
        reason: Its first line.
    """

    reason: str


@dataclasses.dataclass(frozen=True)
class Traced:
    """A step that was traced for a topology; it is compiled when that is first asked for.

    Attributes:
        computation: Of `jax.jit(...).trace(...)`.
        params: Shapes and shardings of its parameters.
        optimizer: The same of its optimizer's state.
        model_flops: On all devices.
        devices: That it is traced for.
    """

    computation: jax.stages.Traced
    params: Any
    optimizer: Any
    model_flops: float
    devices: int

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        return self.computation.lower().compile()

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
        seconds, text = time.monotonic() - started, compiled.as_text()
        found, cost = compiled.memory_analysis(), compiled.cost_analysis()
        held = {'parameters': size(self.params), 'optimizer': size(self.optimizer)}
        new = found.output_size_in_bytes - found.alias_size_in_bytes
        memory = held | {
            'batch': found.argument_size_in_bytes - sum(held.values()),
            'temporaries': found.temp_size_in_bytes + new,
            'total': found.argument_size_in_bytes + found.temp_size_in_bytes + new,
        }
        repeated = flops.repeated(self.computation.jaxpr) if hlo.loops(text) else 0.0
        return Step(
            memory,
            cost['flops'] + repeated / self.devices,
            cost['bytes accessed'],
            hlo.main_memory(text),
            hlo.collectives(text, self.devices),
            self.model_flops / self.devices,
            seconds,
        )


def size(tree: Any) -> int:
    """Bytes of arrays on each device, from their shapes and shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
