"""A server of a bucket for each module, and an empty place in it for each test."""

import itertools

import fsspec
import pytest

from jdkd.runtime import bucket, lease
from tests.helpers import buckets

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
