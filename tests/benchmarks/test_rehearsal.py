"""The rehearsal: whose work a stage is, what is counted where, and a small one."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import rehearsal
from jdkd.planning import host
from tests.helpers import processes

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ('stage', 'kind'),
    [
        ('collection', 'import'),
        ('tokens/passages-0123-144', 'tokenise'),
        ('systems/bm25/index', 'index with BM25'),
        ('systems/bm25/ranking-train', 'search with BM25'),
        ('systems/student_00/index', 'index with ScaNN'),
        ('systems/e5/ranking-dev', 'search with ScaNN'),
        ('systems/e5/embeddings-passages', 'write embeddings'),
        ('systems/teacher/reranking-test', 'read lists'),
        ('rounds/01/runs', 'mine'),
        ('rounds/01/candidates', 'draw lists'),
        ('rounds/00/fitted', 'read lists'),
        ('rounds/00/dataset', 'write records'),
        ('rounds/00/teacher_eval', 'measure'),
        ('rounds/00/hard_queries', 'find hard queries'),
        ('rounds/00/train', 'devices'),
        ('systems/ranker/train', 'devices'),
        ('align', 'devices'),
        ('costs', 'other'),
    ],
)
def test_the_kind_of_work_of_a_stage(stage, kind):
    workdir = pathlib.Path('/w')
    assert rehearsal.kind_of(workdir, workdir / stage, {}, None, False) == kind


def test_work_within_work_counts_once(monkeypatch):
    # Seconds, core-seconds, bytes read and written, at the start and at each change of work.
    times = iter([(0, 0, 0, 0), (1, 1, 5, 0), (3, 2, 5, 7), (7, 4, 6, 7), (8, 5, 6, 8)])
    monkeypatch.setattr(rehearsal.Meter, '_now', lambda self: next(times))
    monkeypatch.setattr(rehearsal.Meter, '_watch', lambda self: None)
    meter = rehearsal.Meter()

    with meter.within('outer'):
        meter.wrap(lambda: None, lambda: 'inner')()
    used = {kind: (u.seconds, u.core_seconds, u.read, u.written) for kind, u in meter.kinds.items()}
    assert used == {'other': (1, 1, 5, 0), 'outer': (3, 2, 0, 8), 'inner': (4, 2, 1, 0)}


@pytest.mark.slow
@pytest.mark.processes
def test_a_small_rehearsal_of_two_processes(tmp_path):
    command = [sys.executable, '-m', 'benchmarks.rehearsal', '--passages=1200', '--queries=64']
    command += ['--lists=1', f'--directory={tmp_path}', '--result=']
    file = tmp_path / 'host.json'
    done = subprocess.run(
        [*command, f'--throughputs={file}'],
        cwd=ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    used = [json.loads((tmp_path / f'rehearsal/used-{i}.json').read_text()) for i in range(2)]
    # Process 0 alone imports; both tokenise and draw lists.
    assert 'import' in used[0]['kinds'] and 'import' not in used[1]['kinds']
    assert all({'tokenise', 'draw lists', 'devices'} <= u['kinds'].keys() for u in used)
    rates, machine = host.read_rates(str(file))
    assert machine.endswith(' cores') and rates.keys() == host.WORK.keys()
    measured = json.loads(file.read_text())['core_seconds']
    assert measured.keys() == host.WORK.keys() and all(rate > 0 for rate in measured.values())
    assert all(f'| {kind} |' in done.stdout for kind in host.WORK)
    assert 'host hours at full size: ' in done.stdout
