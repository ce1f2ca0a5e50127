"""Runs in a bucket: what is uploaded and when, what another machine finds, and faults."""

import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import threading
import time
import types

import fsspec
import pytest

from jdkd.runtime import bucket, lease, lock, object_store, stages
from jdkd.runtime.object_store import BucketError, ObjectStore
from jdkd.runtime.parts import write_parts
from jdkd.runtime.uploads import Uploads
from tests.helpers import buckets

pytest.importorskip('s3fs')
pytest.importorskip('moto.server')

_runs = itertools.count()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with buckets.server(tmp_path_factory.mktemp('s3') / 'log') as variables:
        yield variables


@pytest.fixture
def url(server, monkeypatch):
    """An empty place in the bucket."""
    for name, value in {**server, 'JDKD_CACHE': ''}.items():
        monkeypatch.setenv(name, value)
    # It keeps the address of the server of an earlier group of tests.
    fsspec.get_filesystem_class('s3').clear_instance_cache()
    monkeypatch.setattr(lease, 'BEAT_SECONDS', 0.2)
    monkeypatch.setattr(bucket, '_open', {})
    return f's3://{buckets.BUCKET}/runs/{next(_runs)}'


def objects(url, content=False):
    """Names of the objects of a run, without its lease and its config."""
    store = ObjectStore(url)
    own = (n for n in store.list() if not n.startswith(lease.PREFIX))
    names = sorted(n for n in own if n != 'config.json')
    return store.read(names) if content else names


def build_stage(workdir, name='a/b', inputs=None, content='12345', **options):
    def build(out):
        (out / 'x.txt').write_text(content)
        return content[:5]

    return stages.build_stage(workdir / name, inputs or {}, build, **options)['result']


def fails(out):
    raise AssertionError('built again')


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


def wait_for(condition, seconds=20):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


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


def test_one_machine_at_a_time(url, tmp_path):
    with buckets.machine(url, tmp_path / '1') as workdir:
        first = bucket.of(workdir)
        with pytest.raises(RuntimeError, match=f'{url} is in use by process {os.getpid()} on '):
            with buckets.machine(url, tmp_path / '2'):
                pass
        second = next(iter(bucket._open))
        with pytest.raises(RuntimeError, match='is in use'), bucket.hold(second):
            pass
        bucket._open[workdir] = first
    bucket._open[second].refresh()
    with bucket.hold(second):  # Released, and no refusal is in its way.
        build_stage(second)
        bucket.flush()


def test_a_lease_without_a_sign_of_life_is_taken_over_and_its_holder_stops(url, monkeypatch):
    store = ObjectStore(url)
    first = lease.Lease(store, 'one', {})
    first._done.set()  # It no longer beats.
    time.sleep(0.2)
    known = lease.read(store, store.list())
    same = lease.Lease(store, 'one', known)  # A restart on the same machine need not wait.
    same._done.set()
    begun = time.monotonic()
    second = lease.Lease(store, 'two', lease.read(store, store.list()))
    assert time.monotonic() - begun > 3 * lease.BEAT_SECONDS
    with pytest.raises(BucketError, match=f'{url} was taken over by another machine'):
        time.sleep(0.5)
        same.check()
    second.check()
    second.release()
    with pytest.raises(RuntimeError, match='was in use until now; run the same command again'):
        lease.Lease(store, 'three', known)


def test_a_lease_is_released_after_the_last_upload():
    order, begun = [], threading.Event()
    held = types.SimpleNamespace(check=lambda: None, release=lambda: order.append('released'))

    def job():
        begun.set()
        time.sleep(0.2)
        order.append('uploaded')

    uploads = Uploads(types.SimpleNamespace())
    uploads.begin(held, lambda: None, 60)
    uploads.put(job)
    begun.wait()
    uploads.end()
    assert order == ['uploaded', 'released']


def test_of_two_that_take_a_lease_at_once_one_gets_it(url):
    store = ObjectStore(url)
    assert store.write('x', b'1', new=True) and not store.write('x', b'2', new=True)
    assert store.read(['x']) == {'x': b'1'}


def test_a_read_only_command_writes_nothing(url, tmp_path):
    with buckets.machine(url, tmp_path / '1') as workdir:
        build_stage(workdir)
    before = ObjectStore(url).list()
    workdir = buckets.visit(url, tmp_path / '2')
    build_stage(workdir, 'new')
    assert stages.read_manifest(workdir / 'a/b')['result'] == '12345'
    assert ObjectStore(url).list() == before


def test_a_bucket_that_was_emptied_does_not_empty_the_cache(url, tmp_path):
    with buckets.machine(url, tmp_path) as workdir:
        (workdir / 'config.json').write_text('{}')
        build_stage(workdir)
    ObjectStore(url).delete(ObjectStore(url).list())
    with pytest.raises(ValueError, match=f'{url} holds no run, but its cache {workdir} does'):
        buckets.visit(url, tmp_path)
    assert (workdir / 'a/b/x.txt').exists()


def test_a_place_with_other_data_is_refused(url, tmp_path):
    store = ObjectStore(url)
    store.write('requirements.lock', b'jax')  # The launcher's.
    with buckets.machine(url, tmp_path / '1') as workdir:
        build_stage(workdir)
    store = ObjectStore(f'{url}/other')
    store.write('a/passages.jsonl', b'other')
    before = store.list()
    for command in (buckets.machine, buckets.visit):
        with pytest.raises(ValueError, match="other holds 'a/passages.jsonl' and no run; choose"):
            with contextlib.nullcontext(command(f'{url}/other', tmp_path / '2')) as held, held:
                pass
    assert store.list() == before and not list((tmp_path / '2').rglob('passages.jsonl'))


def test_a_tracker_s_links_are_not_followed(url, tmp_path):
    with buckets.machine(url, tmp_path) as workdir:
        (workdir / 'wandb').mkdir()
        (workdir / 'wandb/core.log').symlink_to(tmp_path / 'gone')
        (workdir / 'wandb/run.wandb').write_text('a')
    with buckets.machine(url, tmp_path / '2'):
        pass
    assert objects(url) == ['wandb/run.wandb']


def test_a_lost_permission_stops_the_run_with_its_remedy(url, tmp_path, server):
    import boto3

    s3 = boto3.client('s3')
    place = f'arn:aws:s3:::{url.removeprefix("s3://")}/*'
    deny = {'Effect': 'Deny', 'Principal': '*', 'Action': 's3:PutObject', 'Resource': place}
    policy = json.dumps({'Version': '2012-10-17', 'Statement': [deny]})
    with pytest.raises(BucketError, match=f'{url} cannot be read or written with these credent'):
        with buckets.machine(url, tmp_path) as workdir:
            build_stage(workdir, 'a')
            bucket.flush()
            s3.put_bucket_policy(Bucket=buckets.BUCKET, Policy=policy)
            build_stage(workdir, 'b')
            try:
                wait_for(lambda: bucket.of(workdir)._uploads.error)
                bucket.check()
            finally:
                s3.delete_bucket_policy(Bucket=buckets.BUCKET)
    assert 'a/manifest.json' in objects(url) and 'b/manifest.json' not in objects(url)
    with buckets.machine(url, tmp_path) as workdir:
        stages.build_stage(workdir / 'b', {}, fails)
    assert 'b/manifest.json' in objects(url)


def test_a_bucket_that_does_not_exist_is_said_before_anything_is_made(url, tmp_path):
    with pytest.raises(BucketError, match='s3://nowhere/a does not exist; create the bucket'):
        buckets.visit('s3://nowhere/a', tmp_path)
    assert not list(tmp_path.iterdir())


def test_urls_that_cannot_be_used_are_said(tmp_path, monkeypatch):
    assert bucket.open_workdir(f'file://{tmp_path}/a') == tmp_path / 'a'
    assert bucket.open_workdir('runs/a') == pathlib.Path('runs/a')
    with pytest.raises(ValueError, match='nfs4:// is no protocol that fsspec knows'):
        bucket.open_workdir('nfs4://b/r')
    for place in ('s3://', 's3://b/../c'):
        with pytest.raises(ValueError, match='names no place in a bucket'):
            bucket.open_workdir(place)

    def missing(*args, **kwargs):
        raise ImportError('Install s3fs to access S3', name='s3fs')

    monkeypatch.setattr(object_store.fsspec.core, 'url_to_fs', missing)
    with pytest.raises(ImportError, match=r'gs://b/r needs .* pip install "jdkd\[gcs\]"'):
        bucket.open_workdir('gs://b/r')
