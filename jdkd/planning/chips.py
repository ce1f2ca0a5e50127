"""Published figures of accelerator chips, and TPU topologies to compile for."""

import dataclasses
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from jdkd.runtime.mesh import Device

LOCAL = 'local'


@dataclasses.dataclass(frozen=True)
class Chip:
    """The limits of a chip."""

    flops: float  # Peak operations per second of matrix products in bfloat16.
    memory: int  # Bytes of main memory.
    bandwidth: float  # Bytes per second of main memory.
    links: float  # Bytes per second that it sends to other chips of its slice, over all links.


# Keyed by the part of a topology before the colon. Compute and memory:
# docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. Links, one way: half of the bidirectional
# figures there; for v4 see
# https://cloud.google.com/blog/products/ai-machine-learning/introducing-cloud-tpu-v5p-and-ai-hypercomputer
CHIPS = {
    'v4': Chip(275e12, 32 << 30, 1200e9, 300e9),
    'v5e': Chip(197e12, 16 << 30, 819e9, 200e9),
    'v5p': Chip(459e12, 95 << 30, 2765e9, 600e9),
    'v6e': Chip(918e12, 32 << 30, 1600e9, 400e9),
}
# Keyed by JAX's device kind. GPUs (without sparsity): nvidia.com/data-center.
_BY_KIND = {
    'TPU v4': CHIPS['v4'],
    'TPU v5 lite': CHIPS['v5e'],
    'TPU v5': CHIPS['v5p'],
    'TPU v6 lite': CHIPS['v6e'],
    'NVIDIA H100 80GB HBM3': Chip(989e12, 80 * 10**9, 3350e9, 450e9),
    'NVIDIA H200': Chip(989e12, 141 * 10**9, 4800e9, 450e9),
}


def find_chip(topology: str, devices: Sequence[Device]) -> Chip | None:
    """The chip of a topology and its devices; None if its figures are unknown."""
    if topology == LOCAL:
        return _BY_KIND.get(devices[0].device_kind)
    return CHIPS.get(topology.partition(':')[0])


def find_devices(topology: str) -> list[Device]:
    """Devices to compile for, of a TPU topology such as `v5e:2x4` or of this process (`local`).

    Raises:
        RuntimeError: if the TPU compiler is not installed or does not know the topology.
    """
    if topology == LOCAL:
        return jax.devices()
    # Compiling needs neither the metadata server of a TPU VM nor exclusive use of libtpu.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    try:
        # As on a TPU VM, the two cores of a v4 chip are one device.
        options = {'chip_config_name': 'megacore'} if topology.startswith('v4:') else {}
        return list(topologies.get_topology_desc(topology, 'tpu', **options).devices)
    except Exception as e:
        raise RuntimeError(
            f"cannot compile for '{topology}' ({str(e).splitlines()[0]}); this needs the TPU "
            'compiler, pip install "jax[tpu]" (no TPU is needed), and a topology such as v5e:2x4, '
            f"or --topology={LOCAL} for this machine's devices."
        ) from e
