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
