"""Stages: complete or absent, built once, never overwritten."""

import hashlib
import json
import types

import jax
import pytest

import jdkd
from jdkd.runtime import libraries, lock, stages
from jdkd.runtime.parts import write_part, write_parts


def test_built_once_and_read_afterwards(tmp_path):
    calls = []

    def build(out):
        calls.append(out)
        (out / 'x.txt').write_text('12345')
        return {'answer': (1, 2)}

    for _ in range(2):
        manifest = stages.build_stage(tmp_path / 'a/b', {'n': 1}, build)
        assert manifest['result'] == {'answer': [1, 2]}
        sha256 = hashlib.sha256(b'12345').hexdigest()
        assert manifest['outputs'] == {'x.txt': {'size': 5, 'sha256': sha256}}
        assert manifest['version'] == jdkd.__version__
        assert manifest['libraries']['jax'] == jax.__version__
    assert len(calls) == 1
    assert not (tmp_path / 'a/b.tmp').exists()


def test_a_half_built_stage_is_built_again(tmp_path):
    def fails(out):
        (out / 'half').write_text('')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.build_stage(tmp_path / 'a', {}, fails)
    assert stages.read_manifest(tmp_path / 'a') is None
    stages.build_stage(tmp_path / 'a', {}, lambda out: (out / 'whole').write_text('') and None)
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['manifest.json', 'whole']


def test_a_resumable_stage_continues_at_the_first_missing_part(tmp_path):
    written = []

    def build(stop_at):
        def write(i, f):
            f.write(b'half')
            if i == stop_at:
                raise KeyboardInterrupt
            written.append(i)
            f.seek(0)
            f.write(b'part %d' % i)

        return lambda out: [p.name for p in write_parts(out, 'x-{}.bin', 4, write)]

    def stage(inputs, stop_at=None):
        return stages.build_stage(tmp_path / 'a', inputs, build(stop_at), resumable=True)

    with pytest.raises(KeyboardInterrupt):
        stage({'n': 1}, stop_at=2)
    names = [f'x-{i:05d}.bin' for i in range(4)]
    assert stage({'n': 1})['result'] == names and written == [0, 1, 2, 3]
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['manifest.json', *names]
    assert [(tmp_path / 'a' / name).read_bytes() for name in names] == [
        b'part %d' % i for i in range(4)
    ]


def test_leftovers_of_other_inputs_are_not_resumed(tmp_path):
    def fails(out):
        (out / 'half').write_text('')
        raise KeyboardInterrupt

    def build(out):
        return sorted(p.name for p in out.iterdir() if p.name == 'half')

    with pytest.raises(KeyboardInterrupt):
        stages.build_stage(tmp_path / 'a', {'n': 1}, fails, resumable=True)
    assert stages.build_stage(tmp_path / 'a', {'n': 2}, build, resumable=True)['result'] == []
    with pytest.raises(KeyboardInterrupt):
        stages.build_stage(tmp_path / 'b', {}, fails)
    assert stages.build_stage(tmp_path / 'b', {}, build, resumable=True)['result'] == []


def test_an_unfinished_build_begins_anew_where_what_it_began_with_differs(tmp_path):
    built, fails = [], True

    def build(out):
        built.append((out / 'half').exists())
        (out / 'half').touch()
        if fails:
            raise KeyboardInterrupt

    def stage(devices):
        options = {'resumable': True, 'begun_with': {'devices': devices}}
        return stages.build_stage(tmp_path / 'a', {'n': 1}, build, **options)

    for devices in (1, 1, 8):
        with pytest.raises(KeyboardInterrupt):
            stage(devices)
    fails = False
    manifest = stage(8)
    assert built == [False, True, False, True]
    assert stage(2) == manifest and len(built) == 4  # What is finished stays.


def test_other_inputs_are_refused_and_nothing_is_lost(tmp_path):
    stages.build_stage(
        tmp_path / 'a', {'n': 1, 'm': 1}, lambda out: (out / 'x').write_text('1') and 0
    )
    with pytest.raises(ValueError, match=r'built from other inputs \(n differ\)'):
        stages.build_stage(tmp_path / 'a', {'n': 2, 'm': 1}, lambda out: None)
    assert (tmp_path / 'a/x').read_text() == '1'


def test_update_replaces_a_stage_of_other_inputs(tmp_path, caplog):
    workdir = tmp_path / 'w'

    def made(n, update=False):
        with lock.hold(workdir, update=update):
            stages.build_stage(
                workdir / 'a', {'n': n}, lambda out: (out / 'x').write_text(str(n)) and 0
            )
        return (workdir / 'a/x').read_text()

    assert made(1) == '1'
    with pytest.raises(ValueError, match='add --update to replace it'):
        made(2)
    assert made(2, update=True) == '2' and made(2) == '2' and made(3, update=True) == '3'
    assert [(workdir / f'replaced/000{i}/a/x').read_text() for i in (1, 2)] == ['1', '2']
    assert 'a was built from other inputs (n differ); moved to' in caplog.text
    assert list(stages.read_seconds(workdir)) == ['a']


@pytest.mark.parametrize(
    ('damage', 'named'),
    [
        (lambda a: (a / 'x').write_text('124'), 'x has changed'),
        (lambda a: (a / 'x').write_text('12'), 'x has 2 bytes (it was written with 3 bytes)'),
        (lambda a: (a / 'b/y').unlink(), 'b/y is missing'),
        (lambda a: (a / 'manifest.json').write_text('{'), 'manifest.json is damaged'),
        (lambda a: (a / 'manifest.json').unlink(), 'manifest.json is missing'),
        (
            lambda a: (a / 'manifest.json').write_text(
                (a / 'manifest.json').read_text().replace('"result": 7', '"result": 6')
            ),
            'manifest.json is damaged',
        ),
    ],
)
def test_a_damaged_stage_is_named_kept_and_rebuilt(tmp_path, caplog, damage, named):
    workdir = tmp_path / 'w'

    def build(out):
        (out / 'b').mkdir()
        (out / 'b/y').write_text('')
        (out / 'x').write_text('123')
        return 7

    def made():
        with lock.hold(workdir):
            return stages.build_stage(workdir / 'a', {}, build)

    whole = made()
    damage(workdir / 'a')
    with pytest.raises(stages.DamagedError, match='the command that made it'):  # Without the lock.
        stages.build_stage(workdir / 'a', {}, build)
    again = made()
    assert named in caplog.text and 'not bit for bit' not in caplog.text
    assert {**again, 'seconds': 0} == {**whole, 'seconds': 0}
    assert (workdir / 'replaced/0001/a').is_dir() and (workdir / 'a/x').read_text() == '123'
    with lock.hold(workdir):
        assert stages.read_manifest(workdir / 'a')['result'] == 7


def test_a_stage_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stages, 'FORMAT', stages.FORMAT + 1)
        stages.build_stage(tmp_path / 'a', {}, lambda out: None)
    with lock.hold(tmp_path, update=True):
        with pytest.raises(ValueError, match='made by a newer jdkd .* upgrade jdkd'):
            stages.build_stage(tmp_path / 'a', {}, lambda out: None)


def test_a_rebuild_with_other_outputs_is_a_warning_that_names_other_libraries(
    tmp_path, caplog, monkeypatch
):
    for text in '12':
        monkeypatch.setattr(libraries, 'versions', lambda v=text: {'jax': v, 'numpy': '2'})
        with lock.hold(tmp_path):
            stages.build_stage(
                tmp_path / 'a', {}, lambda out, t=text: (out / 'x').write_text(t) and 0
            )
            (tmp_path / 'a/x').unlink()
    assert 'a is not bit for bit what it was before the damage' in caplog.text
    assert 'with other libraries (jax 2 instead of 1).' in caplog.text


@pytest.mark.parametrize('damage', ['flip', 'unsealed'])
def test_a_damaged_part_is_rebuilt(tmp_path, caplog, damage):
    written = []

    def build(stop):
        def write(path):
            path.mkdir()
            (path / 'x').write_text('123')
            written.append(path)

        def build_parts(out):
            write_part(out / 'shard', write)
            if stop:
                raise KeyboardInterrupt

        return build_parts

    with pytest.raises(KeyboardInterrupt):
        stages.build_stage(tmp_path / 'a', {}, build(True), resumable=True)
    if damage == 'flip':
        (tmp_path / 'a.tmp/shard/x').write_text('124')
    else:
        (tmp_path / 'a.tmp/shard/.checksums').unlink()
    manifest = stages.build_stage(tmp_path / 'a', {}, build(False), resumable=True)
    assert len(written) == 2 and 'rebuilding it' in caplog.text
    assert list(manifest['outputs']) == ['shard/x']
    assert sorted(p.name for p in (tmp_path / 'a/shard').iterdir()) == ['x']


def test_digest_is_of_the_inputs(tmp_path):
    one = stages.build_stage(tmp_path / 'a', {'n': 1}, lambda out: None)
    same = stages.build_stage(tmp_path / 'b', {'n': 1}, lambda out: None)
    other = stages.build_stage(tmp_path / 'c', {'n': 2}, lambda out: None)
    assert one['digest'] == same['digest'] != other['digest']


def test_seconds_of_a_stage_leave_out_those_inside(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stages, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))

    def inner(out):
        now[0] += 3

    def outer(out):
        stages.build_stage(tmp_path / 'inner', {}, inner)
        now[0] += 1

    stages.build_stage(tmp_path / 'outer', {}, outer)
    assert stages.read_seconds(tmp_path) == {'inner': 3.0, 'outer': 1.0}


def test_json_is_replaced_whole(tmp_path):
    stages.write_json(tmp_path / 'a.json', {'x': (1, None)})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'x': [1, None]}
    with pytest.raises(TypeError):
        stages.write_json(tmp_path / 'a.json', {'x': object()})
    assert stages.read_json(tmp_path / 'a.json') == {'x': [1, None]}


def test_a_deleted_stage_is_built_again_and_its_seconds_stay(tmp_path, monkeypatch):
    stage, calls = tmp_path / 'a', []

    def build(out):
        calls.append(out)
        (out / 'x').write_text('1')

    manifest = stages.build_stage(stage, {}, build, resumable=True)
    monkeypatch.setattr(stages.shutil, 'rmtree', lambda path: (path / 'x').unlink())  # Killed.
    stages.delete(stage)
    assert not stage.exists() and stages.read_manifest(stage) is None
    assert (tmp_path / 'a.tmp').exists()
    assert stages.read_seconds(tmp_path) == {'a': manifest['seconds']}
    monkeypatch.undo()
    again = stages.build_stage(stage, {}, build, resumable=True)
    assert len(calls) == 2 and again['outputs'] == manifest['outputs']
    stages.delete(stage)
    stages.delete(stage)
    assert [p.name for p in tmp_path.iterdir()] == ['a.deleted.json']
