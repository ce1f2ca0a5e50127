"""Runs in a bucket: what is uploaded and when, what another machine finds, and damage."""

import contextlib
import functools
import json
import logging
import time

import pytest

from jdkd.runtime import bucket, lease, lock, stages
from jdkd.runtime.object_store import BucketError, ObjectStore
from jdkd.runtime.parts import write_parts
from tests.helpers import buckets
from tests.helpers.buckets import build_stage, fails, objects, wait_for

pytest.importorskip('s3fs')
pytest.importorskip('moto.server')


def interrupted(url, stage):
    """A build that is interrupted once the bucket has its only part."""

    def build(out):
        write_parts(out, 'x-{}.bin', 1, lambda i, f: f.write(b'part'))
        wait_for(lambda: f'{stage}/x-00000.bin.checksums' in objects(url))
        raise KeyboardInterrupt

    return build


def record_uploads(monkeypatch):
    """Names of the objects that are uploaded from now on."""
    uploads, upload, write = [], ObjectStore.upload, ObjectStore.write

    def record_upload(store, paths):
        uploads.extend(paths)
        upload(store, paths)

    def record_write(store, name, content, **options):
        uploads.append(name)
        return write(store, name, content, **options)

    monkeypatch.setattr(ObjectStore, 'upload', record_upload)
    monkeypatch.setattr(ObjectStore, 'write', record_write)
    return uploads


def traffic(workdir):
    store = bucket.of(workdir).store
    return store.sent, store.received


def test_another_machine_finds_what_was_finished_and_downloads_what_it_reads(url, tmp_path):
    with buckets.machine(url, tmp_path / 'one') as workdir:
        assert workdir == tmp_path / 'one/s3' / url.removeprefix('s3://')
        (workdir / 'config.json').write_text('{}')
        build_stage(workdir, 'a', content='x' * 10_000)
        build_stage(workdir, 'b', content='y' * 10_000)
    assert objects(url) == ['a/manifest.json', 'a/x.txt', 'b/manifest.json', 'b/x.txt']
    assert 20_000 < traffic(workdir)[0] < 23_000
    with buckets.machine(url, tmp_path / 'two') as workdir:
        assert (workdir / 'config.json').read_text() == '{}'
        assert stages.exists(workdir / 'a') and stages.exists(workdir / 'b')
        assert stages.read_seconds(workdir).keys() == {'a', 'b'}
        assert not list(workdir.glob('[ab]'))
        assert stages.build_stage(workdir / 'b', {}, fails)['result'] == 'y' * 5
        assert (workdir / 'b/x.txt').read_text() == 'y' * 10_000 and not (workdir / 'a').exists()
    sent, received = traffic(workdir)
    assert sent < 1000 and 10_000 < received < 11_000


def test_a_cache_is_used_again(url, tmp_path):
    with buckets.machine(url, tmp_path) as workdir:
        build_stage(workdir)
    with buckets.machine(url, tmp_path) as workdir:
        stages.build_stage(workdir / 'a/b', {}, fails)
    sent, received = traffic(workdir)
    assert sent < 1000 and received == 0


def test_a_cache_may_be_moved(url, tmp_path):
    with buckets.machine(url, tmp_path / 'one') as workdir:
        (workdir / 'metrics.jsonl').write_text('1')
    (tmp_path / 'one').rename(tmp_path / 'two')
    with buckets.machine(url, tmp_path / 'two') as workdir:
        (workdir / 'metrics.jsonl').write_text('2')
    assert objects(url, content=True) == {'metrics.jsonl': b'2'}


def test_a_stage_is_uploaded_once_and_its_manifest_last(url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, 'SCAN_SECONDS', 0.02)
    uploads = record_uploads(monkeypatch)

    def build(out):
        write_parts(out, 'x-{}.bin', 3, lambda i, f: f.write(b'part %d' % i))
        wait_for(lambda: 'a/x-00002.bin.checksums' in objects(url))
        time.sleep(0.2)  # For many a look at what is uploaded already.
        (out / 'y').write_text('whole')

    with buckets.machine(url, tmp_path) as workdir:
        (workdir / 'metrics.jsonl').write_text('1\n')
        stages.build_stage(workdir / 'a', {}, build, resumable=True)
    uploads = [n for n in uploads if n != 'config.json' and not n.startswith(lease.PREFIX)]
    parts = [f'a/x-0000{i}.bin' for i in range(3)]
    assert sorted(uploads) == sorted(
        ['a/started.json', *parts, *(f'{p}.checksums' for p in parts), 'a/y', 'a/manifest.json']
        + ['metrics.jsonl']
    )
    assert uploads[-1] == 'a/manifest.json' and uploads.index('metrics.jsonl') < 2
    assert all(uploads.index(p) < uploads.index(f'{p}.checksums') for p in parts)
    assert objects(url) == ['a/manifest.json', *parts, 'a/y', 'metrics.jsonl']


def test_another_machine_goes_on_with_the_parts_of_an_unfinished_stage(url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, 'SCAN_SECONDS', 0.02)

    def build(out, stop_at=None):
        def write(i, f):
            f.write(b'part %d' % i)
            if i == stop_at:
                wait_for(lambda: f'a/x-0000{i - 1}.bin.checksums' in objects(url))
                raise KeyboardInterrupt
            written.append(i)

        write_parts(out, 'x-{}.bin', 4, write)

    for i, (stop_at, expected, inputs) in enumerate(
        [(2, [0, 1], {}), (3, [2], {}), (None, [3], {}), (None, [0, 1, 2, 3], {'n': 1})]
    ):
        written = []
        with contextlib.suppress(KeyboardInterrupt):
            with buckets.machine(url, tmp_path / str(i), update=True) as workdir:
                stages.build_stage(
                    workdir / 'a', inputs, functools.partial(build, stop_at=stop_at), resumable=True
                )
        assert written == expected
    parts = [f'x-0000{i}.bin' for i in range(4)]
    moved = [f'replaced/0001/a/{name}' for name in ('manifest.json', *parts)]
    assert objects(url) == [*(f'a/{name}' for name in ('manifest.json', *parts)), *moved]


def test_parts_begun_from_other_inputs_are_set_aside(url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, 'SCAN_SECONDS', 0.02)

    build = interrupted(url, 'a')
    with contextlib.suppress(KeyboardInterrupt), buckets.machine(url, tmp_path / '1') as workdir:
        stages.build_stage(workdir / 'a', {}, build, resumable=True)
    with buckets.machine(url, tmp_path / '2') as workdir:
        build_stage(workdir, 'a', {'n': 1}, resumable=True)
    names = ['started.json', 'x-00000.bin', 'x-00000.bin.checksums']
    moved = [f'replaced/0001/a.tmp/{name}' for name in names]
    assert objects(url) == ['a/manifest.json', 'a/x.txt', *moved]


def test_a_damaged_object_is_named_kept_and_made_again(url, tmp_path, caplog):
    with buckets.machine(url, tmp_path / '1') as workdir:
        build_stage(workdir)
    ObjectStore(url).write('a/b/x.txt', b'1234X')
    workdir = buckets.visit(url, tmp_path / '2')
    with pytest.raises(stages.DamagedError, match=f'{url}/a/b/x.txt has changed .* rebuilds it'):
        stages.read_manifest(workdir / 'a/b')
    with buckets.machine(url, tmp_path / '2') as workdir, caplog.at_level(logging.WARNING):
        assert build_stage(workdir) == '12345'
    assert f'{url}/a/b/x.txt has changed' in caplog.text
    found = objects(url, content=True)
    assert found['a/b/x.txt'] == b'12345' and found['replaced/0001/a/b/x.txt'] == b'1234X'
    ObjectStore(url).delete(['a/b/x.txt'])
    with buckets.machine(url, tmp_path / '3') as workdir:
        assert build_stage(workdir) == '12345'
    assert 'replaced/0002/a/b/manifest.json' in objects(url)


def test_a_damaged_cache_is_mended_from_the_bucket(url, tmp_path, caplog):
    with buckets.machine(url, tmp_path) as workdir:
        build_stage(workdir)
    (workdir / 'a/b/x.txt').write_text('1234X')
    with buckets.machine(url, tmp_path) as workdir, caplog.at_level(logging.WARNING):
        stages.build_stage(workdir / 'a/b', {}, fails)
    assert 'x.txt has changed' in caplog.text and 'fetching it again' in caplog.text
    assert (workdir / 'a/b/x.txt').read_text() == '12345'


def test_replaced_and_deleted_stages_are_so_in_the_bucket(url, tmp_path):
    with buckets.machine(url, tmp_path / '1') as workdir:
        build_stage(workdir, 'a')
        build_stage(workdir, 'b')
    with buckets.machine(url, tmp_path / '2', update=True) as workdir:
        build_stage(workdir, 'a', {'n': 1}, 'other')  # Its files are not even downloaded.
        stages.delete(workdir / 'b')
        assert stages.read_manifest(workdir / 'b') is None
    assert traffic(workdir)[1] < 100
    found = objects(url, content=True)
    assert found['replaced/0001/a/x.txt'] == b'12345' and found['a/x.txt'] == b'other'
    assert json.loads(found['b.deleted.json'])['outputs'].keys() == {'x.txt'}
    assert not any(name.startswith('b/') for name in found)
    workdir = buckets.visit(url, tmp_path / '3')
    assert stages.read_seconds(workdir).keys() == {'a', 'b'} and not stages.exists(workdir / 'b')


def test_a_cache_that_another_machine_left_behind_is_brought_up_to_date(url, tmp_path):
    with buckets.machine(url, tmp_path / '1') as workdir:
        build_stage(workdir, 'same')
        build_stage(workdir, 'old')
        (workdir / 'metrics.jsonl').write_text('1')
        (workdir / 'gone').write_text('')
    with buckets.machine(url, tmp_path / '2', update=True) as other:
        build_stage(other, 'old', {'n': 1}, 'new')
        (other / 'metrics.jsonl').write_text('2')
        (other / 'gone').unlink()
    (workdir / 'left.tmp').mkdir()
    with buckets.machine(url, tmp_path / '1') as workdir:
        assert not (workdir / 'left.tmp').exists() and not (workdir / 'gone').exists()
        assert (workdir / 'metrics.jsonl').read_text() == '2'
        assert (workdir / 'same').exists() and not (workdir / 'old').exists()
        stages.build_stage(workdir / 'old', {'n': 1}, fails)
        stages.build_stage(workdir / 'same', {}, fails)
    assert traffic(workdir)[1] == len('new' + '2')


@pytest.mark.parametrize('path', ['../../evil', '/evil'])
def test_no_name_leads_out_of_the_run(url, tmp_path, path):
    with buckets.machine(url, tmp_path / 'one') as workdir:
        build_stage(workdir)
        manifest = json.loads((workdir / 'a/b/manifest.json').read_text())
    del manifest['sha256']
    manifest['outputs'] = {path: manifest['outputs']['x.txt']}
    content = json.dumps(manifest | {'sha256': stages.digest(manifest)}).encode()
    ObjectStore(url).write('a/b/manifest.json', content)
    with (
        pytest.raises(BucketError, match='evil., which lies outside of the run'),
        buckets.machine(url, tmp_path / 'two') as workdir,
    ):
        stages.build_stage(workdir / 'a/b', {}, fails)


def test_what_a_kill_left_of_an_upload_does_not_count(url, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, 'SCAN_SECONDS', 0.02)

    build_a_part = interrupted(url, 'a/b')
    with pytest.raises(KeyError, match='killed'), buckets.machine(url, tmp_path / '1') as workdir:
        kept = bucket.of(workdir)
        write = kept._uploads.write

        def write_or_die(name, content):
            if 'manifest' in name:
                raise KeyError('killed')
            write(name, content)

        kept._uploads.write = write_or_die
        build_stage(workdir)
    assert objects(url) == ['a/b/started.json', 'a/b/x.txt']
    with contextlib.suppress(KeyboardInterrupt), buckets.machine(url, tmp_path / '2') as workdir:
        assert not stages.exists(workdir / 'a/b')
        stages.build_stage(workdir / 'a/b', {}, build_a_part, resumable=True)
    found = objects(url, content=True)
    assert json.loads(found.pop('a/b/started.json')) == {'format': stages.FORMAT}
    assert found.keys() == {'a/b/x-00000.bin', 'a/b/x-00000.bin.checksums'}
    with buckets.machine(url, tmp_path / '3') as workdir:
        build_stage(workdir, content='other')
    found = objects(url, content=True)
    assert found.keys() == {'a/b/manifest.json', 'a/b/x.txt'} and found['a/b/x.txt'] == b'other'
    assert traffic(workdir)[1] == 0


def test_an_export_that_is_set_aside_and_the_new_one_are_both_kept(url, tmp_path):
    with buckets.machine(url, tmp_path / '1') as workdir:

        def write(card):
            (workdir / 'student').mkdir(exist_ok=True)
            (workdir / 'student/model').write_text('same')
            (workdir / 'student/README.md').write_text(card)

        write('old')
        bucket.flush()
        write('edited')
        lock.set_aside(workdir / 'student', 'the card was edited')
        write('new')
    found = objects(url, content=True)
    assert found['student/model'] == found['replaced/0001/student/model'] == b'same'
    assert found['student/README.md'] == b'new'
    assert found['replaced/0001/student/README.md'] == b'edited'
