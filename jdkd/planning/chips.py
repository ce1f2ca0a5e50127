"""Chips by what their makers publish of them, and topologies of TPUs to compile for."""

import dataclasses
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

LOCAL = 'local'


@dataclasses.dataclass(frozen=True)
class Chip:
    """What bounds a step.

    Attributes:
        flops: Operations a second at most, of matrix products in bfloat16.
        memory: Bytes.
        bandwidth: Of that memory, bytes a second.
        links: Bytes a second that a chip sends to others of its slice, over all its links.
    """

    flops: float
    memory: int
    bandwidth: float
    links: float


# By the name of a topology before the colon. Compute and memory: docs.cloud.google.com/tpu/docs/v4,
# /v5e, /v5p and /v6e. Links, one way: half of what is there called bidirectional; of v4
# https://cloud.google.com/blog/products/ai-machine-learning/introducing-cloud-tpu-v5p-and-ai-hypercomputer
CHIPS = {
    'v4': Chip(275e12, 32 << 30, 1200e9, 300e9),
    'v5e': Chip(197e12, 16 << 30, 819e9, 200e9),
    'v5p': Chip(459e12, 95 << 30, 2765e9, 600e9),
    'v6e': Chip(918e12, 32 << 30, 1600e9, 400e9),
}
# This process' devices, by what JAX calls them. GPUs (without sparsity): nvidia.com/data-center.
_LOCAL = {
    'TPU v4': CHIPS['v4'],
    'TPU v5 lite': CHIPS['v5e'],
    'TPU v5': CHIPS['v5p'],
    'TPU v6 lite': CHIPS['v6e'],
    'NVIDIA H100 80GB HBM3': Chip(989e12, 80 * 10**9, 3350e9, 450e9),
    'NVIDIA H200': Chip(989e12, 141 * 10**9, 4800e9, 450e9),
}


def of(topology: str, devices: Sequence[jax.Device]) -> Chip | None:
    """What bounds each device of a topology, which is a chip; None if that is not known.

    Args:
        topology: See `devices`.
        devices: Its devices.
    """
    if topology == LOCAL:
        return _LOCAL.get(devices[0].device_kind)
    return CHIPS.get(topology.partition(':')[0])


def devices(topology: str) -> list[jax.Device]:
    """Devices of a TPU topology such as `v5e:2x4`, to compile for, or this process' (`local`).

    Raises:
        RuntimeError: if the TPU compiler is not installed or does not know the topology.
    """
    if topology == LOCAL:
        return jax.devices()
    # It asks neither whether this machine is a TPU VM, nor for a TPU of its own.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    try:
        # As on a TPU VM: the two cores of a v4 chip are one device.
        more = {'chip_config_name': 'megacore'} if topology.startswith('v4:') else {}
        found = topologies.get_topology_desc(platform='tpu', topology_name=topology, **more)
        return list(found.devices)
    except Exception as e:
        raise RuntimeError(
            f"cannot compile for '{topology}' ({str(e).splitlines()[0]}); this needs the TPU "
            'compiler, pip install "jax[tpu]" (no TPU is needed), and a topology such as v5e:2x4, '
            f"or --topology={LOCAL} for this machine's devices."
        ) from e
