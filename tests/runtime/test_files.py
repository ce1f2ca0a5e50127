"""Atomic writes, checksums, and full disks under any name."""

import errno
import pathlib

import pytest

from jdkd.runtime import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'a'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as f:
        f.write('half')
        raise ZeroDivisionError
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with files.atomic_write(path, 'wb') as f:
        f.write(b'new')
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_damage_in_any_file_is_named(tmp_path):
    (tmp_path / 'b').mkdir()
    for name in ('a', 'b/c', 'b/d'):
        (tmp_path / name).write_text(name)
    recorded = files.checksums(tmp_path)
    assert list(recorded) == ['a', 'b/c', 'b/d'] and files.find_damage(tmp_path, recorded) is None
    (tmp_path / 'b/c').write_text('b/x')
    assert files.find_damage(tmp_path, recorded).startswith(f'{tmp_path}/b/c has changed (sha256 ')
    (tmp_path / 'b/d').write_text('')
    assert 'b/d has 0 bytes (it was written with 3 bytes)' in files.find_damage(tmp_path, recorded)


@pytest.mark.parametrize('is_directory', [True, False])
def test_a_seal_holds_until_the_contents_change(tmp_path, is_directory):
    path = tmp_path / 'part'
    if is_directory:
        path.mkdir()
    inner = path / 'x' if is_directory else path
    inner.write_text('123')
    assert 'no checksums' in files.check_seal(path)
    files.seal(path)
    assert files.check_seal(path) is None
    inner.write_text('124')
    assert 'has changed' in files.check_seal(path)
    (seal,) = tmp_path.rglob(f'*{files.SEAL}')
    seal.write_text(seal.read_text()[:-5])
    assert 'the checksums of' in files.check_seal(path)


def chained(error: Exception) -> Exception:
    outer = ValueError('could not be saved')
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ('error', 'full'),
    [
        (OSError(errno.ENOSPC, 'x'), True),
        (OSError(errno.EDQUOT, 'x'), True),
        # As of array_record, TensorStore, TFDS and numpy.
        (RuntimeError('write() failed: No space left on device; writing /w/a'), True),
        (ValueError('RESOURCE_EXHAUSTED: [OS error 28: ENOSPC No space left on device]'), True),
        (OSError('Not enough disk space. Needed: Unknown size'), True),
        (OSError('64000 requested and 16352 written'), True),
        (chained(OSError(errno.ENOSPC, 'x')), True),
        (OSError(errno.EACCES, 'x'), False),
        (ValueError('a list of 10 was requested'), False),
    ],
)
def test_a_full_disk_differs_from_other_errors(error, full):
    assert files.is_disk_full(error) == full


def test_removing(tmp_path):
    (tmp_path / 'a/b').mkdir(parents=True)
    (tmp_path / 'c').write_text('')
    for name in ('a', 'c', 'none'):
        files.remove(tmp_path / name)
    assert not list(pathlib.Path(tmp_path).iterdir())
