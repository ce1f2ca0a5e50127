"""Runs that are killed, stopped, damaged, updated or out of disk end like undisturbed ones."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from jdkd.runtime import stages
from tests import kills
from tests.helpers import shared, tiny
from tests.kills import Kill

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """With a finished run in `alone`."""

    def build(home):
        tiny.write(home)
        jdkd(home, home / 'alone')

    return shared.build_once(tmp_path_factory, 'kills', build)


@pytest.fixture
def workdir(home, tmp_path):
    shutil.copytree(home / 'alone', tmp_path / 'w')
    return tmp_path / 'w'


def jdkd(home, workdir, *more, code=0, kill=None):
    """Runs the command; returns what it logged."""
    log = workdir.with_suffix('.log')
    found = kills.run(kills.command(home, workdir, *more), log, kill)
    assert found == code, log.read_text()[-3000:]
    return log.read_text()


def built(log):
    """The stages that were built, and not read."""
    return re.findall(r'(?:building|resuming) \S+/w/(\S+)', log)


def test_kills_in_every_stage_and_at_random_times(home, tmp_path):
    # Every second of them: all are tried by `python -m tests.kills`.
    moments = [Kill(path=path, count=count) for path, count in kills.MOMENTS[::2]]
    expected = kills.outcome(home / 'alone')
    hit, ends = kills.survive(home, tmp_path / 'w', moments, expected)
    assert ends == 1 and hit.total() == len(moments)
    assert len(hit) >= 10


DAMAGES = [
    (kills.flip, 'collection/passages.arrow', ''),
    (kills.truncate, 'collection/qrels.arrow', ''),
    (kills.flip, 'tokens/passages-*/ids.npy', 'rounds/01/train'),
    (kills.flip, 'systems/dense/embeddings-train/vectors-00000.npy', 'rounds/01/scores'),
    (kills.flip, 'systems/bm25/index/bm25s/data.csc.index.npy', ''),
    (kills.flip, 'rounds/00/scores/train.*.npy', ''),
    (kills.truncate, 'rounds/00/scores/manifest.json', ''),
    (kills.flip, 'rounds/01/candidates/train.npz', ''),
    (kills.flip, 'rounds/00/dataset/candidate_lists/1.0.0/*train.array_record*', ''),
    (kills.flip, 'rounds/00/train/checkpoints/4/state/**/d/*', ''),
    (kills.flip, 'rounds/00/train/manifest.json', ''),
    (pathlib.Path.unlink, 'rounds/01/train/checkpoints/8/iterator/*', ''),
    (pathlib.Path.unlink, 'test/manifest.json', ''),
]


@pytest.mark.parametrize(
    ('damage', 'pattern', 'user'), DAMAGES, ids=[f'{d.__name__}-{p}' for d, p, _ in DAMAGES]
)
def test_damage_is_named_and_mended(home, workdir, damage, pattern, user):
    path = max(workdir.glob(pattern), key=lambda p: p.stat().st_size)
    stage = next(p for p in path.parents if (p / 'manifest.json').exists())
    if user:  # Else nothing would look at it.
        shutil.rmtree(workdir / user)
    damage(path)
    kept = path.read_bytes() if path.exists() else None
    log = jdkd(home, workdir)
    named = rf'{re.escape(str(path))} .*; moved to {re.escape(str(workdir))}/replaced/0001/'
    assert re.search(named, log) and 'not bit for bit' not in log
    again = [str(stage.relative_to(workdir)), user]
    assert sorted(built(log)) == sorted(filter(None, again))
    moved = workdir / 'replaced/0001' / path.relative_to(workdir)
    assert (moved.read_bytes() if moved.exists() else None) == kept
    found, expected = kills.outcome(workdir), kills.outcome(home / 'alone')
    for ended in (found, expected):  # Whose lines a round that is trained again writes last.
        ended['metrics'].sort(key=json.dumps)
    assert found == expected


def test_a_query_without_a_label_is_distilled(home):
    found = kills.outcome(home / 'alone')
    assert found['report']['collection']['unlabelled'] == 1
    r = found['report']['rounds'][0]
    assert {'positive', 'stand_in'} < r['score_histogram']['counts'].keys()
    shares = [line['labelled_share'] for line in found['metrics'] if 'labelled_share' in line]
    assert len(shares) == 8 and 0 < sum(shares) < 8
    labelled = stages.read_json(home / 'alone/systems/tuned/dataset/manifest.json')
    assert labelled['inputs']['lists'] == 8
    with np.load(home / 'alone/systems/tuned/dataset/lists.npz') as lists:
        from_labels = set(lists['query_row'])
    with np.load(home / 'alone/rounds/00/candidates/train.npz') as lists:
        query, passages = lists['query'], lists['passages']
    (row,) = set(query) - from_labels
    stand_in = np.load(home / 'alone/rounds/00/stand_ins/train.npy')
    assert set(passages[query == row, 0]) == set(stand_in)
    assert stand_in not in passages[query == row, 1:]


def test_a_damaged_checkpoint_is_not_gone_on_with(home, tmp_path):
    often = '--config.checkpoint_every=1'
    moment = Kill(path='rounds/00/train.tmp/checkpoints/4', count=1)
    jdkd(home, tmp_path / 'w', often, kill=moment, code=-signal.SIGKILL)
    saved = tmp_path / 'w/rounds/00/train.tmp/checkpoints'
    kills.flip(max((saved / '3').rglob('d/*'), key=lambda p: p.stat().st_size))
    log = jdkd(home, tmp_path / 'w', often)
    assert re.search(r'checkpoints/3/state/\S+ has changed .* without that checkpoint', log)
    assert re.search(r'restored step 2 of \S+/rounds/00', log)
    found, expected = kills.outcome(tmp_path / 'w'), kills.outcome(home / 'alone')
    assert all(found[name] == expected[name] for name in ('parameters', 'metrics', 'run'))


def test_a_damaged_part_is_made_again(home, tmp_path):
    moment = Kill(path='systems/bm25/index.tmp/data.npy', count=2)
    jdkd(home, tmp_path / 'w', kill=moment, code=-signal.SIGKILL)
    kills.flip(tmp_path / 'w/systems/bm25/index.tmp/counts-00000.npz')
    log = jdkd(home, tmp_path / 'w')
    assert re.search(r'counts-00000.npz has changed .*; rebuilding it', log)
    assert kills.outcome(tmp_path / 'w') == kills.outcome(home / 'alone')


def test_damage_found_without_the_lock_or_in_the_config_is_an_error(home, workdir):
    search = ['--mode', 'search']
    kills.flip(workdir / 'student/model.safetensors')  # No stage: it is made anew each time.
    kills.flip(workdir / 'rounds/01/train/manifest.json')
    log = jdkd(home, workdir, *search, code=1)
    assert (
        'train/manifest.json is damaged' in log
        and 'the command that made it, such as jdkd train' in log
    )
    assert 'Traceback' not in log and not (workdir / 'replaced').exists()
    kills.flip(workdir / 'config.json')
    for args in ([], search):
        log = jdkd(home, workdir, *args, code=1)
        assert 'config.json is damaged' in log and 'Traceback' not in log
    (workdir / 'config.json').unlink()
    jdkd(home, workdir)
    expected = kills.outcome(home / 'alone')
    assert kills.outcome(workdir)['parameters'] == expected['parameters']


def test_an_update_makes_anew_what_the_changed_fields_decide(home, tmp_path):
    changed = '--config.loss.teacher=0.5'
    workdir = tmp_path / 'w'
    moment = Kill(path='rounds/01/train.tmp/checkpoints/8', count=9)
    jdkd(home, workdir, kill=moment, code=-signal.SIGKILL)
    log = jdkd(home, workdir, changed, code=1)
    assert 'loss.teacher is 1.0 there and 0.5 here' in log and '--update' in log
    log = jdkd(home, workdir, changed, '--update')
    assert 'loss.teacher is 1.0 there and 0.5 here); moved to' in log
    assert 'rounds/00/train was built from other inputs (loss differ); moved to' in log
    assert 'rounds/01/train.tmp was begun from other inputs; moved to' in log
    assert not {'runs', 'candidates', 'scores', 'dataset', 'teacher_eval'} & {
        stage.removeprefix('rounds/00/') for stage in built(log)
    }
    assert json.loads((workdir / 'replaced/0001/config.json').read_text())['loss']['teacher'] == 1
    jdkd(home, tmp_path / 'fresh', changed)
    found, fresh = kills.outcome(workdir), kills.outcome(tmp_path / 'fresh')
    assert found == fresh
    assert found['parameters'] != kills.outcome(home / 'alone')['parameters']
    assert built(jdkd(home, workdir, changed)) == []


@pytest.mark.parametrize(
    ('changed', 'first', 'never'),
    [
        ('measures=RR@10,MRR@10,R@20', 'rounds/00/teacher_eval', r'rank|runs|scores|/train|tokens'),
        ('dark.noisy=2', 'rounds/00/candidates', r'systems|tokens|runs'),
        ('candidates.false_negatives=keep', 'rounds/00/dataset', r'candidates|scores|ranking'),
        # What superseded students left is deleted, and made anew.
        ('index.reorder=300', 'rounds/00/runs', r'bm25|tokens|tuned/(emb|index|train)|dense/emb'),
    ],
)
def test_an_update_leaves_the_rest_alone(home, workdir, changed, first, never):
    stop = Kill(path='rounds/00/train.tmp', count=1)
    code = 0 if changed.startswith('measures') else -signal.SIGKILL
    log = jdkd(home, workdir, f'--config.{changed}', '--update', kill=stop, code=code)
    assert first in built(log)
    assert not [stage for stage in built(log) if re.search(never, stage)]


def test_a_workdir_of_a_newer_version_is_refused(home, workdir):
    path = workdir / 'config.json'
    now, later = stages.FORMAT, stages.FORMAT + 1
    path.write_text(path.read_text().replace(f'"format": {now}', f'"format": {later}'))
    for args in ([], ['--update'], ['--mode', 'search']):
        log = jdkd(home, workdir, *args, code=1)
        assert f'of a newer jdkd (format {later}; this one reads {now}); upgrade' in log


def test_sigterm_in_training_saves_and_says_how_to_go_on(home, tmp_path):
    more = '--config.rounds=1 --config.steps_per_round=150 --config.checkpoint_every=1000'.split()
    workdir = tmp_path / 'w'
    log = tmp_path / 'w.log'
    process = kills.start(kills.command(home, workdir, *more), log)
    metrics = workdir / 'metrics.jsonl'
    while not (metrics.exists() and '"student", "step": 5,' in metrics.read_text()):
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.01)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.wait()
    assert process.returncode == 75 and time.monotonic() - begun < 10
    assert 'the checkpoint is saved. Run the same command to resume' in log.read_text()
    (saved,) = (workdir / 'rounds/00/train.tmp/checkpoints').iterdir()
    assert 5 <= int(saved.name) < 150
    assert f'restored step {saved.name}' in jdkd(home, workdir, *more)
    jdkd(home, tmp_path / 'alone', *more)
    assert kills.outcome(workdir) == kills.outcome(tmp_path / 'alone')


@pytest.mark.parametrize(('told', 'code'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_other_stages_end_at_once(home, tmp_path, told, code):
    moment = Kill(path='systems/dense/index.tmp', count=3, signal=told)
    log = jdkd(home, tmp_path / 'w', kill=moment, code=code)
    assert 'finished work is kept. Run the same command to resume' in log
    assert not (tmp_path / 'w/rounds/00/runs').exists()


@pytest.fixture
def small_disk(tmp_path):
    """Of 100 KiB, to be enlarged."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting a small disk takes root')
    yield disk
    subprocess.run(['umount', '-l', str(disk)], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost(home, small_disk):
    # One that has begun: a new one would be refused for the room that it will need.
    (small_disk / 'w/tokens').mkdir(parents=True)
    shutil.copy(home / 'alone/config.json', small_disk / 'w')
    for size in itertools.count(200, 1000):
        subprocess.run(['mount', '-o', f'remount,size={size}k', str(small_disk)], check=True)
        log = small_disk.parent / 'w.log'
        code = kills.run(kills.command(home, small_disk / 'w'), log)
        if not code:
            break
        assert code == 1, log.read_text()[-3000:]
        message = r'jdkd: the disk is full .*run the same command again'
        assert re.search(message, log.read_text())
    assert size > 1000
    assert kills.outcome(small_disk / 'w') == kills.outcome(home / 'alone')


def test_a_workdir_that_cannot_be_written_is_said_at_start(home, tmp_path):
    (tmp_path / 'file').write_text('')
    for workdir in (tmp_path / 'file', tmp_path / 'file/w'):
        log = kills.run(kills.command(home, workdir), tmp_path / 'log')
        log = (tmp_path / 'log').read_text()
        assert (
            f'{workdir} cannot be created or written' in log and 'choose another directory' in log
        )
        assert 'Traceback' not in log
