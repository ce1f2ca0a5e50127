"""One cache of what XLA compiles, for all processes of the tests and for later runs."""

import os
import pathlib

CACHE = pathlib.Path(__file__).parents[2] / '.pytest_cache/xla'


def share_cache() -> None:
    """Names the cache to JAX; call it before anything imports JAX.

    Programs of tests run for moments, so that even the smallest ones are kept.
    """
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
