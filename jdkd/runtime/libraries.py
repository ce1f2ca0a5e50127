"""Versions of the libraries that decide the bits of results."""

import contextlib
import functools
import importlib.metadata
import platform
from collections.abc import Mapping

_NAMES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'tokenizers', 'bm25s', 'scann')


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of what decides the bits of results, as far as it is installed."""
    found = {'python': platform.python_version()}
    for name in _NAMES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def changes(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Says which versions differ from those before, which an old manifest does not have."""
    if before is None:
        return 'their versions were not recorded'
    changed = [f'{k} {v} instead of {before.get(k)}' for k, v in now.items() if v != before.get(k)]
    return ', '.join(changed) or 'the versions are the same'
