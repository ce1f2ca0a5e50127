"""Processes agree on decisions, errors and the step at which they stop."""

import json
import os
import socket
import time

import jax
import orbax.checkpoint as ocp
import pytest

from jdkd.runtime import distributed, stages
from tests.helpers import processes


def see(workdir, *flags):
    """In one of two processes: prints a JSON line of what it saw."""
    coordinator, count, index = (flag.partition('=')[2] for flag in flags)
    distributed.start(coordinator, int(count), int(index))
    jax.devices()
    seen = {}

    def decide():
        # Barriers and stages inside run as on a single process.
        stages.build_stage(workdir / 'stage', {}, lambda out: None)
        return [distributed.process_count(), 'é']

    def fail():
        raise LookupError('no such thing')

    seen['before'] = distributed.process_count(), distributed.is_primary()
    seen['decided'] = distributed.from_primary(decide, 'a decision', writes=[workdir / 'stage'])
    seen['after'] = distributed.process_count()
    seen['long'] = len(distributed.from_primary(lambda: 'é' * 2**22, 'a long decision'))
    client = ocp.multihost.get_jax_distributed_client()
    distributed.barrier('all have read it')
    seen['kept'] = [key for key, _ in client.key_value_dir_get('jdkd/decisions/')]
    try:
        distributed.from_primary(fail, 'a failure')
    except Exception as error:
        seen['error'] = f'{type(error).__name__}: {error}'
    for step in range(1000):
        distributed.barrier('a step')
        if distributed.stop_requested(index == '1' and step == 2):
            break
    seen['stopped'] = step
    print('SEEN', json.dumps(seen), flush=True)
    distributed.barrier('the end')


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_agree(tmp_path):
    both = processes.start_group(2, see, tmp_path, log=tmp_path / 'log')
    outputs = processes.finish(both, timeout=300)
    assert [process.returncode for process in both] == [0, 0], outputs
    first, second = (
        json.loads(line.removeprefix('SEEN '))
        for output in outputs
        for line in output.splitlines()
        if line.startswith('SEEN ')
    )
    assert first['before'] == [2, True] and second['before'] == [2, False]
    assert first['decided'] == second['decided'] == [1, 'é']
    assert first['after'] == second['after'] == 2
    assert first['long'] == second['long'] == 2**22
    assert first['kept'] == second['kept'] == ['jdkd/decisions/1']  # Those before are read.
    assert first['error'] == 'LookupError: no such thing'
    assert second['error'] == 'RuntimeError: process 0 failed: no such thing'
    assert first['stopped'] == second['stopped'] > 2


def test_a_single_process_waits_for_nobody(tmp_path):
    assert distributed.process_count() == 1 and distributed.is_primary()
    decision = object()  # Not JSON: nothing is sent.
    assert distributed.from_primary(lambda: decision, 'x', writes=[tmp_path / 'no']) is decision
    distributed.barrier('x')
    assert distributed.stop_requested(True) and not distributed.stop_requested(False)
    with distributed.hang_watchdog('x') as report_progress:
        report_progress()


def test_a_file_that_no_other_process_sees_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, '_NFS_SECONDS', 0.2)
    distributed.await_files([tmp_path])
    with pytest.raises(TimeoutError, match='no was written by another process, but process 0 does'):
        distributed.await_files([tmp_path / 'no'])


def test_long_waits_are_logged(caplog, monkeypatch):
    monkeypatch.setattr(distributed, '_LOG_SECONDS', 0.01)
    with distributed.log_waiting('waiting for x'):
        time.sleep(0.1)
    assert 'process 0: waiting for x for 0 minutes' in caplog.text
    lines = len(caplog.records)
    time.sleep(0.05)
    assert len(caplog.records) == lines


@pytest.mark.parametrize('progress', [True, False])
def test_the_watchdog_exits_without_progress(monkeypatch, progress):
    exits = []
    monkeypatch.setattr(distributed, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, '_hang_seconds', 0.5)
    monkeypatch.setattr(distributed, 'exit_now', lambda message, code: exits.append(code))
    with distributed.hang_watchdog('training') as report_progress:
        for _ in range(20):
            time.sleep(0.05)
            if progress:
                report_progress()
    assert set(exits) == (set() if progress else {distributed.HUNG})


def test_an_exit_names_the_process(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(distributed.os, '_exit', codes.append)
    distributed.exit_now('no disk', 3)
    monkeypatch.setattr(distributed, 'process_count', lambda: 2)
    distributed.exit_now('no disk')
    assert capsys.readouterr().err == 'jdkd: no disk\njdkd: process 0: no disk\n'
    assert codes == [3, 1]


SLURM = {'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'node[01-02]', 'SLURM_NTASKS': '2'}
OPEN_MPI = {'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '2'}


@pytest.mark.parametrize(
    ('environment', 'cluster'),
    [
        ({}, None),
        (SLURM, 'slurm'),
        (SLURM | {'SLURM_NTASKS': '1'}, None),
        # The script of sbatch itself is no task of a step.
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0'}, None),
        (OPEN_MPI, 'ompi'),
        (OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ],
)
def test_what_has_started_several_processes(environment, cluster):
    assert distributed.find_cluster(environment) == cluster


@pytest.mark.parametrize(
    ('tasks', 'visible', 'devices'),
    [
        ('1(x2)', '0,1,2,3', [0, 1, 2, 3]),
        ('1', '5', [0]),
        ('4(x2)', '0,1,2,3', None),
        ('1,4', '0', None),
        ('1(x2)', '', None),
    ],
)
def test_the_only_task_of_a_node_has_all_its_gpus(tasks, visible, devices):
    environment = {'SLURM_STEP_TASKS_PER_NODE': tasks, 'CUDA_VISIBLE_DEVICES': visible}
    assert distributed._devices_of_slurm_task(environment) == devices


def join_slurm_step(port, index):
    """In one of two tasks of a Slurm step on this machine."""
    os.environ |= {
        **{'SLURM_JOB_ID': '1', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2'},
        **{'SLURM_PROCID': index, 'SLURM_LOCALID': index, 'SLURM_STEP_NUM_NODES': '1'},
        'JAX_COORDINATOR_PORT': port,
    }
    distributed.start(None, None, None)
    told = distributed.from_primary(lambda: 'by process 0', 'a decision')
    print('SEEN', distributed.process_index(), distributed.process_count(), told, flush=True)
    distributed.barrier('the end')


@pytest.mark.slow
@pytest.mark.processes
def test_the_tasks_of_a_slurm_step_find_each_other(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    both = [
        processes.Process(join_slurm_step, port, str(i), stdout=tmp_path / f'{i}') for i in (0, 1)
    ]
    outputs = processes.finish(both, timeout=120)
    assert [process.returncode for process in both] == [0, 0], outputs
    for i, output in enumerate(outputs):
        assert f'SEEN {i} 2 by process 0' in output
