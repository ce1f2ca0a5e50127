"""Several processes are as one: the same steps, the same run; and they end together."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jdkd.runtime import distributed
from jdkd.runtime import mesh as meshes
from tests.helpers import indexes, processes, tiny, train_steps

# What HEARTBEAT_SECONDS is in these tests.
SOON = 10


def run_jdkd(*args):
    """The command line, in a process that soon misses another one."""
    distributed.HEARTBEAT_SECONDS = SOON
    processes.jdkd(*args)


def hang(*flags):
    """The second process never comes to what the first waits for."""
    coordinator, count, index = (flag.partition('=')[2] for flag in flags)
    distributed.start(coordinator, int(count), int(index), hang_seconds=3)
    jax.devices()  # Which the processes exchange.
    if index == '1':
        time.sleep(600)
    with distributed.hang_watchdog('training') as report_progress:
        report_progress()
        multihost_utils.sync_global_devices('a step')


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith('/selected') or name == 'next_index':
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.processes
def test_train_steps_are_the_same_on_any_devices_and_processes(tmp_path):
    expected = train_steps.run(meshes.make_mesh(devices=jax.devices()[:1]))
    assert expected['2/loss'] != expected['1/loss'] and expected['next_index'] == 3
    check_equal(train_steps.run(meshes.make_mesh()), expected)
    check_equal(train_steps.run(meshes.make_mesh(model=2)), expected)
    both = processes.start_group(
        2, train_steps.main, f'--output={tmp_path}', log=tmp_path / 'log', devices=4
    )
    output = processes.finish(both)
    assert [p.returncode for p in both] == [0, 0], output
    for model in (1, 2):
        check_equal(dict(np.load(tmp_path / f'{model}.npz')), expected)


def test_rows_of_a_batch_without_several_processes_are_all():
    np.testing.assert_array_equal(meshes.local_rows(meshes.make_mesh(model=2), 8), np.arange(8))
    with pytest.raises(ValueError, match='a batch of 6 does not divide over the 4 devices'):
        meshes.local_rows(meshes.make_mesh(model=2), 6)


def test_flags_of_processes_come_together():
    with pytest.raises(ValueError, match='give all of --coordinator'):
        distributed.start('127.0.0.1:1', None, 0)
    with pytest.raises(ValueError, match='--process_index=2 is not below --num_processes=2'):
        distributed.start('127.0.0.1:1', 2, 2)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp('processes')
    tiny.write(path)
    return path


def start(home, workdir, count, *more, devices=1):
    args = (f'--config=tests/helpers/tiny.py:{home}', f'--workdir={workdir}', *more)
    log = workdir.with_suffix('.log')
    return processes.start_group(count, run_jdkd, *args, log=log, devices=devices)


def report(workdir):
    found = json.loads((workdir / 'report.json').read_text())
    del found['wall_seconds'], found['costs']['systems'], found['costs']['machine']
    return found


def wait_for(path, both):
    while not list(path.parent.glob(path.name)):
        assert all(p.poll() is None for p in both), processes.finish(both)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_of_two_processes_is_that_of_one_whatever_happens_to_them(home):
    """One is killed while it trains, one is frozen in a later round; then they come to the end."""
    (one,) = both = start(home, home / 'one', 1, devices=2)
    output = processes.finish(both)
    assert one.returncode == 0, output
    workdir = home / 'two'
    for step, what in ((2, signal.SIGKILL), (6, signal.SIGSTOP)):
        first, second = both = start(home, workdir, 2)
        wait_for(workdir / f'rounds/0{step // 4}/train.tmp/checkpoints/{step}*', both)
        second.send_signal(what)
        since = time.monotonic()
        first.wait(timeout=6 * SOON)
        assert first.returncode not in (0, None) and time.monotonic() - since < 3 * SOON
        second.kill()
        processes.finish(both)
    first, second = both = start(home, workdir, 2)
    output = processes.finish(both)
    assert (first.returncode, second.returncode) == (0, 0), output
    assert report(workdir) == report(home / 'one')
    assert not list(workdir.rglob('*.tmp*'))
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    steps = [(r['series'], r['step']) for r in map(json.loads, lines)]
    assert len(steps) == len(set(steps))


@pytest.mark.slow
@pytest.mark.processes
def test_an_index_of_two_processes_is_that_of_one(tmp_path):
    student = indexes.write_student(tmp_path / 'student')
    more = indexes.write(tmp_path / 'more.jsonl', indexes.passages(40, 45))
    corpus = indexes.write(tmp_path / 'corpus.jsonl', indexes.passages(0, 40))
    made = ('--mode=index', f'--student={student}', f'--collection={corpus}')
    for count in (1, 2):
        index = tmp_path / str(count)
        for args in ((*made, f'--output={index}'), ('add', index, more)):
            group = processes.start_group(count, run_jdkd, *args, log=tmp_path / 'log')
            output = processes.finish(group, timeout=90)
            assert [p.returncode for p in group] == [0] * count, output
        assert '45 passages' in ''.join(output)
    assert indexes.tree(tmp_path / '2') == indexes.tree(tmp_path / '1')


@pytest.mark.slow
@pytest.mark.processes
def test_a_signal_to_one_process_makes_all_save_at_the_same_step(home):
    more = ('--config.steps_per_round=1000', '--config.checkpoint_every=20')
    first, second = both = start(home, home / 'signalled', 2, *more)
    wait_for(home / 'signalled/rounds/00/train.tmp/checkpoints/20*', both)
    second.send_signal(signal.SIGTERM)
    output = processes.finish(both)
    assert (first.returncode, second.returncode) == (75, 75), output
    saved = [p.name for p in (home / 'signalled/rounds/00/train.tmp/checkpoints').iterdir()]
    assert len(saved) == 2 and all(name.isdigit() for name in saved)


@pytest.mark.slow
@pytest.mark.processes
def test_a_process_does_not_wait_for_ever_for_one_that_hangs(tmp_path):
    first, second = both = processes.start_group(2, hang, log=tmp_path / 'log')
    assert first.wait(timeout=300) == distributed.HUNG
    assert second.poll() is None
    second.kill()
    output, _ = processes.finish(both)
    assert 'training: no step has ended for 3 seconds (--hang_seconds)' in output
