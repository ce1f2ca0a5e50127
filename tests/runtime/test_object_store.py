"""Objects of any store that fsspec knows: faults, waiting and deletion."""

import pytest

from jdkd.runtime import object_store
from jdkd.runtime.object_store import BucketError, ObjectStore


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (OSError(5, 'The bucket quota was exceeded'), 'is full, or its quota is used up; free'),
        (OSError(28, 'No space left on device'), 'is full, or its quota is used up; free'),
        (OSError('Forbidden: https://storage'), 'cannot be read or written with these'),
        (FileNotFoundError('The specified bucket does not exist'), 'does not exist; create the b'),
        (ConnectionError('no route to host:50712'), 'cannot be reached .* check the network'),
        (OSError('429: quota of requests per minute'), 'cannot be reached .* check the network'),
    ],
)
def test_faults_are_said_with_their_remedy(monkeypatch, error, message):
    store = ObjectStore('memory://b/r')
    store.patience = 0

    def pipe(*args, **kwargs):
        raise error

    monkeypatch.setattr(store._fs, 'pipe_file', pipe)
    with pytest.raises(BucketError, match=f'memory://b/r {message}'):
        store.write('x', b'')


def test_a_network_that_comes_back_is_waited_for(monkeypatch, caplog):
    store, left = ObjectStore('memory://b/r'), [2]
    monkeypatch.setattr(object_store.time, 'sleep', lambda seconds: waits.append(seconds))
    pipe_file, waits = store._fs.pipe_file, []

    def pipe(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise TimeoutError('gone')
        pipe_file(*args, **kwargs)

    monkeypatch.setattr(store._fs, 'pipe_file', pipe)
    store.write('x', b'1')
    assert store.read(['x']) == {'x': b'1'} and waits == [1, 2]


def test_what_is_deleted_may_be_gone():
    store = ObjectStore('memory://b/deleted')  # Which raises an error, unlike S3.
    store.write('x', b'')
    store.write('y', b'')
    store.delete(['gone', 'x', 'y'])
    assert store.list() == []
