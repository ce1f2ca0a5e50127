"""Who may use a place in a bucket, for how long, and which places are refused."""

import contextlib
import json
import os
import pathlib
import threading
import time
import types

import pytest

from jdkd.runtime import bucket, lease, object_store, stages
from jdkd.runtime.object_store import BucketError, ObjectStore
from jdkd.runtime.uploads import Uploads
from tests.helpers import buckets
from tests.helpers.buckets import build_stage, fails, objects, wait_for

pytest.importorskip('s3fs')
pytest.importorskip('moto.server')


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
