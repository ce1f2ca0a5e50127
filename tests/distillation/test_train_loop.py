"""What a training writes about its steps, keeps of them, and does when it is stopped."""

import contextlib
import itertools
import types

import numpy as np
import pytest

from jdkd.distillation import train_loop
from jdkd.runtime import metrics


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


class FakeCheckpoints:
    """Keeps states in memory: whatever directory is asked for."""

    latest, saved, kept, waited = None, [], None, False

    def __init__(self, directory):
        assert directory.name == train_loop.CHECKPOINTS

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def latest_step(self):
        return FakeCheckpoints.latest

    def restore(self, step, abstract, batches):
        return {'restored': step, 'abstract': abstract, 'batches': batches}

    def save(self, step, state, batches):
        FakeCheckpoints.latest = step
        FakeCheckpoints.saved.append(step)

    def wait(self):
        FakeCheckpoints.waited = True

    def keep_only(self, step):
        FakeCheckpoints.kept = step


class Loop:
    """A training of six steps whose trainer counts, and what it came to."""

    def __init__(self, monkeypatch, tmp_path):
        self.alive, self.started, self.stop_after, self.bad = 0, 0, None, None
        self.states, self.closed, self.tmp_path = [], 0, tmp_path
        for name, value in {'latest': None, 'saved': [], 'kept': None, 'waited': False}.items():
            monkeypatch.setattr(FakeCheckpoints, name, value)
        monkeypatch.setattr(train_loop, 'Checkpoints', FakeCheckpoints)
        monkeypatch.setattr(metrics.MetricsWriter, 'close', self.close)
        monkeypatch.setattr(train_loop.meshes, 'batch_sharding', lambda mesh: 'sharding')
        monkeypatch.setattr(train_loop.meshes, 'to_device', lambda batch, sharding: batch)
        watch = contextlib.nullcontext(self.report)
        monkeypatch.setattr(train_loop.distributed, 'hang_watchdog', lambda desc: watch)
        monkeypatch.setattr(train_loop.distributed, 'stop_requested', self.is_stopping)
        monkeypatch.setattr(train_loop.interrupts, 'exit_after_saving', self.exit)
        monkeypatch.setattr(train_loop.nonfinite, 'find_lists', self.find_lists)
        self.trainer = types.SimpleNamespace(mesh=None, abstract='abstract', step=self.step)

    def close(self):
        self.closed += 1

    def report(self):
        self.alive += 1

    def is_stopping(self, signalled):
        return self.stop_after == len(self.states)

    def exit(self):
        assert self.closed == 1
        raise SystemExit

    def find_lists(self, trainer, params, host_batch, done, bad):
        self.blamed = params, done, bad
        return [1]

    def step(self, state, batch):
        self.states.append(state)
        loss = np.float32('nan') if len(self.states) == self.bad else np.float32(len(self.states))
        return types.SimpleNamespace(params=len(self.states)), {'loss': loss}

    def start(self):
        self.started += 1
        return 'first state'

    def run(self, first=10, on_batch=lambda: None):
        run = types.SimpleNamespace(
            workdir=self.tmp_path,
            config=types.SimpleNamespace(log_every=1, checkpoint_every=4),
            train=types.SimpleNamespace(ids=['a', 'b', 'c']),
        )
        batch = {'group': np.zeros((2, 3)), 'query_row': np.array([2, 1])}
        return train_loop.train_loop(
            run,
            'student',
            self.tmp_path,
            self.trainer,
            self.start,
            (on_batch() or batch for _ in itertools.count()),
            steps=range(first, 16),
            planned_steps=20,
            total_steps=40,
            desc='round 1',
        )

    def lines(self):
        return [line['step'] for line in metrics.read_series(self.tmp_path, 'student')]


@pytest.fixture
def loop(monkeypatch, tmp_path):
    return Loop(monkeypatch, tmp_path)


def test_checkpoints_come_every_so_many_steps_and_at_the_end(loop):
    state = loop.run()
    assert loop.started == 1 and loop.states[0] == 'first state' and state.params == 6
    assert FakeCheckpoints.saved == [12, 16] and FakeCheckpoints.kept == 16
    assert loop.lines() == [11, 12, 13, 14, 15, 16]
    assert loop.alive == 6  # Once a step.
    assert loop.closed == 1


def test_waiting_for_batches_is_counted(loop, clock, monkeypatch):
    waited = []

    def wait():
        clock.seconds += 0.25

    def finish_step(log, metrics, batch_size):
        log.step += 1
        waited.append(log.waited)

    monkeypatch.setattr(train_loop._StepLog, 'finish_step', finish_step)
    loop.run(on_batch=wait)
    assert waited[-1] == 6 * 0.25


def test_training_resumes_from_its_last_checkpoint(loop):
    FakeCheckpoints.latest = 12
    loop.run()
    assert not loop.started and len(loop.states) == 4
    restored = loop.states[0]
    assert (restored['restored'], restored['abstract']) == (12, 'abstract')
    assert next(restored['batches'])['group'].shape == (2, 3)
    assert loop.lines() == [13, 14, 15, 16] and FakeCheckpoints.saved == [16]


def test_whoever_stops_it_gets_a_checkpoint_first(loop):
    loop.stop_after = 3
    with pytest.raises(SystemExit):
        loop.run()
    assert FakeCheckpoints.saved == [12, 13] and FakeCheckpoints.waited
    assert FakeCheckpoints.kept is None and loop.lines() == [11, 12, 13]


@pytest.mark.parametrize(
    ('bad', 'saved', 'left'),
    [(2, [], 'No checkpoint was made yet.'), (3, [12], 'The checkpoint of step 12 is kept.')],
)
def test_a_step_that_is_not_finite_is_named_and_never_saved(loop, bad, saved, left):
    loop.bad = bad
    with pytest.raises(FloatingPointError) as caught:
        loop.run()
    said = str(caught.value)
    assert said.startswith(f'step {10 + bad} (round 1): loss is not finite')
    assert "the list of query 'b' alone" in said and said.endswith(left)
    assert loop.closed == 1
    assert FakeCheckpoints.saved == saved and loop.blamed[1:] == ((9 + bad) / 40, ['loss'])
