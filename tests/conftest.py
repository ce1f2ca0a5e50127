"""Eight virtual CPU devices, so that sharded steps are tested without accelerators."""

import os

from tests.helpers import compilation

os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
compilation.share_cache()
