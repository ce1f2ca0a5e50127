"""Published figures of accelerator chips, and topologies of TPUs and GPUs to compile for."""

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
    # GPUs (SXM but for the L4; without sparsity): nvidia.com/data-center. Links: NVLink, one way;
    # the L4's is PCIe 4.0.
    'h100': Chip(989e12, 80 * 10**9, 3350e9, 450e9),
    'h200': Chip(989e12, 141 * 10**9, 4800e9, 450e9),
    'a100': Chip(312e12, 80 * 10**9, 2039e9, 300e9),
    'l4': Chip(121e12, 24 * 10**9, 300e9, 32e9),
}
# Keyed by JAX's device kind.
_BY_KIND = {
    'TPU v4': CHIPS['v4'],
    'TPU v5 lite': CHIPS['v5e'],
    'TPU v5': CHIPS['v5p'],
    'TPU v6 lite': CHIPS['v6e'],
    'NVIDIA H100 80GB HBM3': CHIPS['h100'],
    'NVIDIA H200': CHIPS['h200'],
    'NVIDIA A100-SXM4-80GB': CHIPS['a100'],
    'NVIDIA L4': CHIPS['l4'],
}


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA's GPU compiler asks of a device; see `_target`."""

    kind: str  # JAX's device kind.
    capability: tuple[int, int]
    cores: int  # Streaming multiprocessors.
    fpus: int  # Of a core.
    threads: int  # Of a core.
    clock: float  # GHz, boosted.
    cache: int  # MiB of L2.
    shared: int  # KiB of shared memory of a core, of which a block may have 1 less.


# Data sheets, and the table of compute capabilities in NVIDIA's CUDA C++ Programming Guide.
_GPUS = {
    'h100': _Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 2048, 1.98, 50, 228),
    'h200': _Gpu('NVIDIA H200', (9, 0), 132, 128, 2048, 1.98, 50, 228),
    'a100': _Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 2048, 1.41, 40, 164),
    'l4': _Gpu('NVIDIA L4', (8, 9), 58, 128, 1536, 2.04, 48, 100),
}
# Without a device nothing can be tried out, and some products have no default tiles.
_GPU_FLAGS = ' --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false'


def find_chip(topology: str, devices: Sequence[Device]) -> Chip | None:
    """The chip of a topology and its devices; None if its figures are unknown."""
    if topology == LOCAL:
        return _BY_KIND.get(devices[0].device_kind)
    return CHIPS.get(topology.partition(':')[0])


def find_devices(topology: str) -> list[Device]:
    """Devices to compile for: of a TPU topology such as `v5e:2x4`, GPUs of one host such as
    `h100:8`, or those of this process (`local`).

    Call it before anything is compiled: for GPUs it sets flags of XLA.

    Raises:
        RuntimeError: if the compiler is not installed or does not know the topology.
    """
    if topology == LOCAL:
        return jax.devices()
    name, _, count = topology.partition(':')
    if name in _GPUS:
        return _find_gpus(name, count)
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


def _find_gpus(name: str, count: str) -> list[Device]:
    os.environ['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'  # There need be no driver.
    os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + _GPU_FLAGS
    try:
        description = topologies.get_topology_desc(
            '', 'cuda', target_config=_target(name), topology=f'1x1x{int(count)}'
        )
    except Exception as e:
        raise RuntimeError(
            f"cannot compile for '{name}:{count}' ({str(e).splitlines()[0]}); this needs the GPU "
            'compiler, pip install "jdkd[plan-gpu]" (no GPU is needed), and a number of GPUs of '
            'one host, such as h100:8.'
        ) from e
    return list(description.devices)


def _target(name: str) -> str:
    """A GPU as XLA's GpuTargetConfigProto, in text format."""
    gpu, chip = _GPUS[name], CHIPS[name]
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {(gpu.shared - 1) * 1024}
  shared_memory_per_core: {gpu.shared * 1024}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {gpu.cache << 20}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {chip.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{gpu.kind}"
"""
