"""What a training writes about its steps."""

import types

import numpy as np
import pytest

from jdkd.distillation import train_loop


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set forward."""
    now = types.SimpleNamespace(seconds=100.0)
    time = types.SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(train_loop, 'time', time)
    return now


def test_lines_of_metrics_are_about_the_steps_since_the_last_line(clock):
    lines = {}
    writer = types.SimpleNamespace(write=lines.__setitem__)
    log = train_loop._StepLog(writer, 3, 8, 2, ['a', 'b'], 'train')
    for step in range(4, 9):
        clock.seconds += 0.5
        log.waited += 0.125 * step
        log.finish_step(
            {
                'loss': np.float32(step),
                'selected': np.array([step, 0.0]),
                'selected_so_far': np.array([3.0, 1.0]),
            },
            batch_size=16,
        )
    assert log.step == 8
    # Every second step, counted from the start of all training, and the last one.
    assert list(lines) == [4, 6, 8]
    for step, (loss, waited) in zip(lines, [(4, 0.5), (6, 0.6875), (8, 0.9375)], strict=True):
        assert lines[step] == {
            'loss': loss,
            'selected/a': 0.75,
            'selected/b': 0.25,
            'lists_per_second': 32.0,
            'wait_seconds': waited,
        }


def test_the_last_step_has_a_line_in_any_case(clock):
    lines = {}
    writer = types.SimpleNamespace(write=lines.__setitem__)
    log = train_loop._StepLog(writer, 0, 3, 50, (), 'train')
    for _ in range(3):
        clock.seconds += 1.0
        log.finish_step({'loss': np.float32(1)}, batch_size=4)
    assert lines == {3: {'loss': 1.0, 'lists_per_second': 4.0, 'wait_seconds': 0.0}}
