"""jdkd distils dense passage retrievers in JAX.

`jdkd.load` opens a retriever, `jdkd.open_index` an index of passages, `jdkd.distill` trains a
student, `jdkd.losses` are the pure losses; each is imported on first use, so `import jdkd` stays
light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jdkd.version import __version__

if TYPE_CHECKING:
    from jdkd.commands.train import Distilled, distill
    from jdkd.distillation import losses
    from jdkd.indexing.index import Found, Index, open_index
    from jdkd.retriever import Hit, Retriever, load


__all__ = [
    '__version__',
    'Distilled',
    'Found',
    'Hit',
    'Index',
    'Retriever',
    'distill',
    'load',
    'losses',
    'open_index',
]

_MODULES = {
    'Distilled': 'jdkd.commands.train',
    'distill': 'jdkd.commands.train',
    'Found': 'jdkd.indexing.index',
    'Index': 'jdkd.indexing.index',
    'open_index': 'jdkd.indexing.index',
    'Hit': 'jdkd.retriever',
    'Retriever': 'jdkd.retriever',
    'load': 'jdkd.retriever',
}


def __getattr__(name: str) -> Any:
    if name == 'losses':
        return importlib.import_module('jdkd.distillation.losses')
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'jdkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
