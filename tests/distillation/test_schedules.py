"""Schedules: what they say, and which are none."""

import jax.numpy as jnp
import pytest

from jdkd.distillation import schedules

KNOTS = ((0.25, 1.0), (0.75, 3.0))


@pytest.mark.parametrize(
    ('progress', 'expected'), [(0, 1.0), (0.25, 1.0), (0.5, 2.0), (0.7, 2.8), (1, 3.0)]
)
def test_knots_are_joined_by_lines_and_held_at_the_ends(progress, expected):
    assert schedules.value(KNOTS, jnp.array(progress)) == pytest.approx(expected)


def test_a_number_stays_a_number_that_the_compiler_knows():
    assert schedules.value(0.5, jnp.array(0.3)) == 0.5
    assert isinstance(schedules.value(2, jnp.array(0.3)), int)


@pytest.mark.parametrize('schedule', [0, 1, 0.5, ((0.0, 1.0),), ((0, 1), (1, 0)), KNOTS])
def test_schedules(schedule):
    schedules.check('loss.teacher', schedule, low=0)


@pytest.mark.parametrize(
    ('schedule', 'message'),
    [
        ('linear', "loss.teacher='linear' is no schedule; give a number, or "),
        (True, 'is no schedule'),
        (None, 'is no schedule'),
        ((), 'is no schedule'),
        ((0.0, 1.0), 'is no schedule'),
        (((0.0, 1.0, 2.0),), 'is no schedule'),
        (((0.0, 'a'),), 'is no schedule'),
        (((0.5, 1.0), (0.5, 0.0)), 'progress of its knots must rise, within 0 and 1'),
        (((0.0, 1.0), (100, 0.0)), 'progress of its knots must rise, within 0 and 1'),
        (-1.0, '-1.0 must be at least 0'),
        (((0.0, 1.0), (1.0, -0.5)), '-0.5 must be at least 0'),
        (float('nan'), 'nan must be at least 0'),
    ],
)
def test_what_is_no_schedule(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedules.check('loss.teacher', schedule, low=0)


def test_a_range_is_said():
    with pytest.raises(ValueError, match='1.5 must be within 0.001 and 1'):
        schedules.check('self_paced.share', 1.5, low=1e-3, high=1)
