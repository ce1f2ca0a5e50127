"""What commands share: command lines, configs by name, the workdir's lock."""

import contextlib
import errno
import pathlib
import subprocess
import sys

import pytest

from jdkd import config as configs
from jdkd import main
from jdkd.commands import evaluate, export, setup, train
from jdkd.runtime import stages
from tests.helpers import processes, tiny

CONFIGS = setup._CONFIGS
DEFAULT = f'--config={main.DEFAULT}'


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (['train', '--rounds=1'], ['--mode=train', DEFAULT, '--rounds=1']),
        (['--mode', 'plan'], [DEFAULT, '--mode', 'plan']),
        (
            ['eval', '--config', 'eval', '--config.depth=9'],
            ['--mode=eval', '--config', f'{CONFIGS}/eval.py', '--config.depth=9'],
        ),
        (['--config=mta4dpr:beir=a:b'], [f'--config={CONFIGS}/mta4dpr.py:beir=a:b']),
        (['search', '--workdir', 'train'], ['--mode=search', DEFAULT, '--workdir', 'train']),
    ],
)
def test_command_lines_are_expanded(args, expected):
    assert main.expand(['jdkd', *args]) == ['jdkd', *expected]


def test_commands_that_do_not_exist():
    with pytest.raises(ValueError, match="'serch' is no command; use one of train, eval"):
        main.expand(['jdkd', 'serch'])
    with pytest.raises(ValueError, match="'train' says what to do; leave --mode out"):
        main.expand(['jdkd', 'train', '--mode=eval'])


def test_a_file_goes_before_a_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert setup.find_config('adam:tiny') == f'{CONFIGS}/adam.py:tiny'
    for name in ('nothing', 'configs/adam.py', 'a/adam', 'adam.py'):
        assert setup.find_config(name) == name
    (tmp_path / 'adam').write_text('def get_config(a=""): return {"a": a}')
    assert setup.find_config('adam:x') == 'adam:x'
    assert setup.read_config('adam:x') == {'a': 'x'} and setup.read_config('adam') == {'a': ''}
    assert setup.read_config('mta4dpr:tiny').rounds == 2
    with pytest.raises(FileNotFoundError, match="there is no config file 'nothing'"):
        setup.read_config('nothing:x')


def test_the_workdir_is_held_from_its_config_to_the_end(tmp_path):
    config = configs.resolve(setup.read_config('mta4dpr:tiny'))
    with setup.hold_workdir(tmp_path / 'w', config):
        assert configs.load(tmp_path / 'w') == config
        code = f'from jdkd.runtime import lock\nwith lock.hold({str(tmp_path / "w")!r}): pass'
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert 'is in use by process' in done.stderr
    other = configs.resolve(setup.read_config('mta4dpr'))
    with pytest.raises(ValueError, match='holds a run of another config'):
        with setup.hold_workdir(tmp_path / 'w', other):
            raise AssertionError
    with setup.hold_workdir(tmp_path / 'w', other, update=True):
        assert configs.load(tmp_path / 'w') == other


def test_what_is_no_run_is_not_taken_for_one(tmp_path):
    config = configs.resolve(setup.read_config('mta4dpr:tiny'))
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test/test_mine.py').write_text('')
    with pytest.raises(ValueError, match=r'holds test and no run \(it has no config.json\)'):
        with setup.hold_workdir(tmp_path, config):
            raise AssertionError
    (tmp_path / 'test').rename(tmp_path / 'tests')  # Of a name that no run uses.
    with setup.hold_workdir(tmp_path, config):
        stages.build_stage(tmp_path / 'collection', {}, lambda out: None)
        stages.build_stage(tmp_path / 'test', {}, lambda out: None)
    (tmp_path / 'config.json').unlink()
    with setup.hold_workdir(tmp_path, config):
        assert configs.load(tmp_path) == config


def _write_config(workdir, variant):
    config = configs.resolve(setup.read_config(variant))
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').unlink(missing_ok=True)
    configs.save(workdir, config)
    return config


@pytest.mark.parametrize('command', [export.export, evaluate.evaluate])
def test_the_config_is_read_under_the_lock(tmp_path, monkeypatch, command):
    """Another process may have replaced it with --update before this one gets the lock."""
    _write_config(tmp_path / 'w', 'mta4dpr:tiny')
    hold, opened = setup.lock.hold, []

    @contextlib.contextmanager
    def wait_for_another(workdir, **kwargs):
        opened.append(_write_config(workdir, 'adam:tiny'))
        with hold(workdir, **kwargs):
            yield

    def open_run(config, workdir, collect):
        opened.append(config)
        assert setup.lock.current()
        raise FloatingPointError('seen')

    monkeypatch.setattr(setup.lock, 'hold', wait_for_another)
    monkeypatch.setattr(setup, 'open_run', open_run)
    with pytest.raises(FloatingPointError, match='seen'):
        command(tmp_path / 'w', *(['student'] if command is export.export else []))
    assert len(opened) == 2 and opened[0] == opened[1]
    for name in ('none', 'none/at/all'):
        with pytest.raises(FileNotFoundError, match='holds no run'):
            command(tmp_path / name, 'student')
    assert not (tmp_path / 'none').exists()


def test_training_takes_the_lock_once(tmp_path, monkeypatch):
    """From saving the config to the end of work, without a gap in which another could start."""
    hold, events = setup.lock.hold, []

    @contextlib.contextmanager
    def log_hold(workdir, **kwargs):
        with hold(workdir, **kwargs):
            events.append('taken')
            yield
        events.append('dropped')

    def log(name):
        def call(*args):
            assert setup.lock.current().workdir == tmp_path / 'w'
            assert (tmp_path / 'w/config.json').exists()
            events.append(name)

        return call

    monkeypatch.setattr(setup.lock, 'hold', log_hold)
    monkeypatch.setattr(train.validation, 'before_start', lambda *args: events.append('checked'))
    monkeypatch.setattr(train, 'open_run', log('opened'))
    monkeypatch.setattr(train.validation, 'before_work', log('checked'))
    monkeypatch.setattr(train.iterate, 'train', log('trained'))
    train.train(configs.resolve(setup.read_config('mta4dpr:tiny')), tmp_path / 'w')
    assert events == ['checked', 'taken', 'opened', 'checked', 'trained', 'dropped']


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match='the disk is full .* resumes from the finished work in'):
        with setup.hold_workdir(tmp_path / 'w', exit_on_signals=False):
            raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(RuntimeError, match='other'):
        with setup.hold_workdir(tmp_path / 'w'):
            raise RuntimeError('other')


@pytest.mark.parametrize('url', ['gs://bucket/run', 'S3://bucket/run', 'file:///mine/run'])
@pytest.mark.parametrize(('mode', 'flag'), [('plan', 'workdir'), ('export', 'output')])
def test_a_bucket_is_no_directory(url, mode, flag):
    args = [f'--mode={mode}', f'--config={setup.find_config("mta4dpr:tiny")}', f'--{flag}={url}']
    done = processes.run_jdkd(*args)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('jdkd: ')]
    assert f"--{flag}='{url}' is no local directory" in line and 'the --workdir of a run' in line
    with pytest.raises(ValueError, match='workdir=.* is no local directory'):
        with setup.hold_workdir(pathlib.Path(url)):
            pass
    assert not (processes.ROOT / f'{url.partition(":")[0]}:').exists()


def test_a_run_with_few_labels_fine_tunes_for_fewer_steps(tmp_path):
    tiny.write(tmp_path)
    config = tiny.get_config(str(tmp_path))
    config.systems.tuned.train.update(steps=1000, warmup_steps=100)
    run = setup.open_run(configs.resolve(config), tmp_path / 'w')
    labelled = int(run.train.is_labelled.sum())
    assert 0 < labelled < len(run.train)
    train = run.config.systems['tuned'].train
    assert train.steps == train.total_steps == 10 * labelled // 2 < 1000
