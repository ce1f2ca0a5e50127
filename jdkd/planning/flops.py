"""Operations that a model needs, and those of a compiled step that its compiler does not count."""

import math

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jdkd.models.config import TransformerConfig


def forward(config: TransformerConfig, lengths: np.ndarray) -> float:
    """Operations that an encoder needs for texts of these lengths.

    A multiplication and an addition are two. Norms, activations, the softmax and what comes after
    the last layer are left out: a percent.
    """
    D, hidden = config.hidden_size, config.intermediate_size
    tokens, squares = float(np.sum(lengths)), float(np.sum(np.square(lengths, dtype=np.float64)))
    dense = 4 * D * D + (3 if config.gated else 2) * D * hidden
    return config.num_layers * (2 * dense * tokens + 4 * D * squares)


def repeated(jaxpr: ClosedJaxpr) -> float:
    """Operations of matrix products in loops, on all devices, beyond the first time round.

    XLA counts what stands in a loop once.
    """
    return _products(jaxpr.jaxpr, True) - _products(jaxpr.jaxpr, False)


def _products(jaxpr: Jaxpr, loops: bool) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        if kind == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            shape = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif kind == 'pallas_call':
            total += params['cost_estimate'].flops if params['cost_estimate'] else 0
        else:
            inner = [_products(found, loops) for found in _inner(params)]
            if kind == 'cond':  # One of its branches is taken.
                total += max(inner)
            elif kind == 'scan':
                total += sum(inner) * (params['length'] if loops else 1)
            else:  # What stands in a shard_map is of one shard.
                total += sum(inner) * (params['mesh'].size if kind == 'shard_map' else 1)
    return total


def _inner(params):
    for value in params.values():
        for found in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(found, ClosedJaxpr):
                yield found.jaxpr
            elif isinstance(found, Jaxpr):
                yield found
