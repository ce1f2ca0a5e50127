"""Loss weights, temperatures and kept shares that may change in the course of training."""

from collections.abc import Sequence
from typing import TypeGuard

import jax
import jax.numpy as jnp

# A number, or (progress, value) knots: linear between knots, constant before and after.
Schedule = float | Sequence[tuple[float, float]]
# The schedules in `config.loss`.
WEIGHTS = ('contrastive', 'teacher', 'assistant', 'dark', 'in_batch', 'embedding', 'pool')
TEMPERATURES = ('temperature', 'in_batch_temperature')


def value(schedule: Schedule, progress: float | jax.Array) -> float | jax.Array:
    """The value of a schedule at a progress in [0, 1]; a number stays one, known to the compiler.

    >>> import jax.numpy as jnp
    >>> float(value(((0.0, 1.0), (0.5, 0.0)), jnp.array(0.25)))
    0.5
    """
    if is_constant(schedule):
        return schedule
    at, values = jnp.array(schedule, jnp.float32).T
    return jnp.interp(progress, at, values)


def is_constant(schedule: Schedule) -> TypeGuard[float]:
    """Whether a schedule is a number; a loss term with the weight 0 is not even computed."""
    return isinstance(schedule, int | float)


def check(name: str, schedule: Schedule, *, low: float, high: float = float('inf')) -> None:
    """Raises a ValueError if a config field is no schedule, or has a value out of its range."""

    def is_knot(x):
        return isinstance(x, Sequence) and len(x) == 2 and all(map(_is_number, x))

    knots = ((0.0, schedule),) if _is_number(schedule) else schedule
    if not (isinstance(knots, Sequence) and knots and all(map(is_knot, knots))):
        raise ValueError(
            f'{name}={schedule!r} is no schedule; give a number, or (progress, value) knots such '
            'as ((0.0, 1.0), (1.0, 0.5)).'
        )
    at = [progress for progress, _ in knots]
    if not all(0 <= progress <= 1 for progress in at) or sorted(set(at)) != at:
        raise ValueError(
            f'{name}={schedule!r}: the progress of its knots must rise, within 0 and 1.'
        )
    for _, knot_value in knots:
        if not low <= knot_value <= high:
            span = f'at least {low:g}' if high == float('inf') else f'within {low:g} and {high:g}'
            raise ValueError(f'{name}={schedule!r}: {knot_value} must be {span}.')


def _is_number(x: object) -> TypeGuard[float]:
    return isinstance(x, int | float) and not isinstance(x, bool)
