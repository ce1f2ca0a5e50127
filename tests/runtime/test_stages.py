"""Stages: whole or absent, built once, never overwritten."""

import json
import time

import pytest

from jdkd.runtime import stages


def test_built_once_and_read_afterwards(tmp_path):
    calls = []

    def build(out):
        calls.append(out)
        (out / 'x.txt').write_text('12345')
        return {'answer': (1, 2)}

    for _ in range(2):
        manifest = stages.stage(tmp_path / 'a/b', {'n': 1}, build)
        assert manifest['result'] == {'answer': [1, 2]}
        assert manifest['outputs'] == {'x.txt': 5}
    assert len(calls) == 1
    assert not (tmp_path / 'a/b.tmp').exists()


def test_a_half_built_stage_is_built_again(tmp_path):
    def fails(out):
        (out / 'half').write_text('')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.stage(tmp_path / 'a', {}, fails)
    assert stages.read_manifest(tmp_path / 'a') is None
    stages.stage(tmp_path / 'a', {}, lambda out: (out / 'whole').write_text('') and None)
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['manifest.json', 'whole']


def test_a_resumable_stage_goes_on_at_the_first_part_that_is_missing(tmp_path):
    written = []

    def build(stop_at):
        def write(i, f):
            f.write(b'half')
            if i == stop_at:
                raise KeyboardInterrupt
            written.append(i)
            f.seek(0)
            f.write(b'part %d' % i)

        return lambda out: [p.name for p in stages.parts(out, 'x-{}.bin', 4, write)]

    def stage(inputs, stop_at=None):
        return stages.stage(tmp_path / 'a', inputs, build(stop_at), resumable=True)

    with pytest.raises(KeyboardInterrupt):
        stage({'n': 1}, stop_at=2)
    names = [f'x-{i:05d}.bin' for i in range(4)]
    assert stage({'n': 1})['result'] == names and written == [0, 1, 2, 3]
    assert sorted(p.name for p in (tmp_path / 'a').iterdir()) == ['manifest.json', *names]
    assert [(tmp_path / 'a' / name).read_bytes() for name in names] == [
        b'part %d' % i for i in range(4)
    ]


def test_what_was_left_of_other_inputs_is_not_gone_on_with(tmp_path):
    def fails(out):
        (out / 'half').write_text('')
        raise KeyboardInterrupt

    def build(out):
        return sorted(p.name for p in out.iterdir() if p.name == 'half')

    with pytest.raises(KeyboardInterrupt):
        stages.stage(tmp_path / 'a', {'n': 1}, fails, resumable=True)
    assert stages.stage(tmp_path / 'a', {'n': 2}, build, resumable=True)['result'] == []
    with pytest.raises(KeyboardInterrupt):
        stages.stage(tmp_path / 'b', {}, fails)
    assert stages.stage(tmp_path / 'b', {}, build, resumable=True)['result'] == []


def test_other_inputs_are_refused_and_nothing_is_lost(tmp_path):
    stages.stage(tmp_path / 'a', {'n': 1, 'm': 1}, lambda out: (out / 'x').write_text('1') and 0)
    with pytest.raises(ValueError, match=r'built from other inputs \(n differ\)'):
        stages.stage(tmp_path / 'a', {'n': 2, 'm': 1}, lambda out: None)
    assert (tmp_path / 'a/x').read_text() == '1'


def test_digest_is_of_the_inputs(tmp_path):
    one = stages.stage(tmp_path / 'a', {'n': 1}, lambda out: None)
    same = stages.stage(tmp_path / 'b', {'n': 1}, lambda out: None)
    other = stages.stage(tmp_path / 'c', {'n': 2}, lambda out: None)
    assert one['digest'] == same['digest'] != other['digest']


def test_seconds_of_a_stage_leave_out_those_inside(tmp_path):
    def inner(out):
        time.sleep(0.3)

    def outer(out):
        stages.stage(tmp_path / 'inner', {}, inner)
        time.sleep(0.1)

    stages.stage(tmp_path / 'outer', {}, outer)
    found = stages.seconds(tmp_path)
    assert found['inner'] >= 0.3 and 0.1 <= found['outer'] < 0.3


def test_json_is_replaced_whole(tmp_path):
    stages.write_json(tmp_path / 'a.json', {'x': (1, None)})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'x': [1, None]}
    with pytest.raises(TypeError):
        stages.write_json(tmp_path / 'a.json', {'x': object()})
    assert stages.read_json(tmp_path / 'a.json') == {'x': [1, None]}
