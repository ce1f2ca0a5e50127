"""Less compiling: one cache for all test processes and later runs, and few optimisations."""

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


def disable_optimisations() -> None:
    """Makes this process compile fast: what a test compiles runs for moments.

    Child processes are not affected.
    """
    import jax  # Which reads the variables of `share_cache` when it is imported.

    jax.config.update('jax_disable_most_optimizations', True)
