"""Checkpoints: state and iterator together, the newest two, and damage found on opening."""

import json
import sys

import jax
import numpy as np
import pytest

from jdkd.runtime import checkpoint, files
from jdkd.runtime.checkpoint import Checkpoints


class Iterator:
    """Counts batches, as a Grain iterator does in its state."""

    def __init__(self, position=0):
        self.position = position

    def get_state(self):
        return {'position': self.position}

    def set_state(self, state):
        self.position = state['position']


def state(step):
    return {'w': np.full(3, step, np.float32), 'step': np.int32(step)}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    state(0),
)


def save(directory, steps):
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), Iterator(10 * step))


def saved_steps(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_state_and_iterator_are_restored_together(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
    save(tmp_path, (1, 2, 3))
    assert saved_steps(tmp_path) == ['2', '3']
    iterator = Iterator()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        restored = checkpoints.restore(3, ABSTRACT, iterator)
        jax.tree.map(np.testing.assert_array_equal, restored, state(3))
        older = checkpoint.restore_state(tmp_path, 2, ABSTRACT)
        jax.tree.map(np.testing.assert_array_equal, older, state(2))
        assert iterator.position == 30
        checkpoints.keep_only(3)
    assert saved_steps(tmp_path) == ['3']
    restored = checkpoint.restore_state(tmp_path, 3, ABSTRACT)
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))


def test_training_resumes_before_a_damaged_checkpoint(tmp_path, caplog):
    save(tmp_path, (1, 2))
    damaged = next(path for path in sorted((tmp_path / '2/state').rglob('*')) if path.is_file())
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    (tmp_path / '3.orbax-checkpoint-tmp').mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
    assert saved_steps(tmp_path) == ['1']
    assert f'{damaged} has changed' in caplog.text
    assert '3.orbax-checkpoint-tmp is incomplete; resuming without' in caplog.text


def test_a_checkpoint_without_seal_was_not_finished(tmp_path):
    save(tmp_path, (1, 2))
    (tmp_path / '2' / files.SEAL).unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1


def test_an_error_of_saving_in_the_background_is_raised(tmp_path, monkeypatch):
    def fail(path):
        raise OSError('No space left on device')

    monkeypatch.setattr(files, 'seal', fail)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), Iterator())
        with pytest.raises(OSError, match='No space left'):
            checkpoints.wait()


def _rename(value, replace):
    """JSON with other strings, but those in names of fields."""
    if isinstance(value, dict):
        return {key: _rename(inner, replace) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rename(inner, replace) for inner in value]
    return replace(value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    'replace',
    [
        lambda text: 'evil_checkpoint.Evil',
        lambda text: text.replace('orbax.checkpoint', 'evil_checkpoint'),
        lambda text: text.replace('np.ndarray', 'evil_checkpoint.Evil'),
        lambda text: 'evil_checkpoint.Evil' if text.count('.') > 1 else text,
    ],
)
def test_orbax_imports_nothing_that_a_checkpoint_names(tmp_path, monkeypatch, replace):
    (tmp_path / 'evil_checkpoint.py').write_text(f'open({str(tmp_path / "ran")!r}, "w").close()\n')
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path / 'c', (1,))
    changed = 0
    for file in (tmp_path / 'c').rglob('*'):
        if file.is_file() and file.name in ('_METADATA', '_CHECKPOINT_METADATA', '_sharding'):
            text = json.dumps(_rename(json.loads(file.read_text()), replace))
            changed += 'evil' in text
            file.write_text(text)
    assert changed
    files.seal(tmp_path / 'c/1')

    def restore():
        with Checkpoints(tmp_path / 'c') as checkpoints:
            checkpoints.restore(1, ABSTRACT, Iterator())

    for read in (restore, lambda: checkpoint.restore_state(tmp_path / 'c', 1, ABSTRACT)):
        try:
            read()
        except Exception as error:  # Refused or ignored: both do.
            assert not isinstance(error, ImportError)
    assert 'evil_checkpoint' not in sys.modules and not (tmp_path / 'ran').exists()
