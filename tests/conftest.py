"""Settings of all tests: eight virtual CPU devices, one compilation cache, long tests first.

The devices let sharded steps be tested without accelerators.
"""

import os

import jaxtyping
import pytest

from tests.helpers import compilation

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
compilation.share_cache()
compilation.disable_optimisations()
# Checks array shapes at run time; must precede the first import of these packages.
CHECKED = ['jdkd.models']
CHECKED += [
    f'jdkd.distillation.{name}'
    for name in ('assistants', 'batch_scores', 'losses', 'objective', 'self_paced', 'step')
]
jaxtyping.install_import_hook(CHECKED, 'beartype.beartype')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts long tests first: what idle workers take over at the end is then short."""
    markers = 'e2e', 'processes', 'slow'
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in markers])
