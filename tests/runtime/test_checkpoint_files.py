"""Files of untrusted checkpoints are read as data, or refused with the name of the file."""

import json

import numpy as np
import pytest
import safetensors.numpy

from jdkd.runtime import checkpoint_files


@pytest.mark.parametrize(
    'error', [KeyError('x'), TypeError('x'), ZeroDivisionError(), RecursionError()]
)
def test_unexpected_contents_are_errors_that_name_the_file(tmp_path, error):
    file = tmp_path / 'config.json'
    with pytest.raises(ValueError, match=f'config.json is damaged .*{type(error).__name__}'):
        with checkpoint_files.reading(file):
            raise error


def test_errors_that_explain_themselves_pass(tmp_path):
    for error in (ValueError('layers=0'), PermissionError('no')):
        with pytest.raises(type(error), match=str(error)):
            with checkpoint_files.reading(tmp_path / 'a'):
                raise error


@pytest.mark.parametrize('name', ['/etc/passwd', '../a', 'b/../../a', 5, None, 'a\nb', 'x' * 256])
def test_paths_out_of_the_checkpoint_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match='index.json names .*, which is not inside'):
        checkpoint_files.join_inside(tmp_path, name, tmp_path / 'index.json')
    inner = checkpoint_files.join_inside(tmp_path, '1_Dense/config.json', tmp_path / 'index.json')
    assert inner == tmp_path / '1_Dense/config.json'


def test_json_is_read_as_the_type_that_is_expected(tmp_path):
    file = tmp_path / 'a.json'
    assert checkpoint_files.read_json(file) is None
    file.write_text('{"a": [1]}')
    assert checkpoint_files.read_json(file) == {'a': [1]}
    with pytest.raises(ValueError, match='a.json holds a dict where a list belongs'):
        checkpoint_files.read_json(file, list)
    for text in ('{', '[' * 100_000):
        file.write_text(text)
        with pytest.raises(ValueError, match='a.json is no JSON'):
            checkpoint_files.read_json(file)


def test_json_that_asks_for_code_is_refused(tmp_path):
    file = tmp_path / 'config.json'
    file.write_text(json.dumps({'auto_map': {'AutoModel': 'evil.Model'}}))
    with pytest.raises(ValueError, match='config.json has auto_map'):
        checkpoint_files.read_json(file)


def test_json_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, '_MAX_JSON_BYTES', 4)
    (tmp_path / 'a.json').write_text('[1,2]')
    with pytest.raises(ValueError, match='a.json has 5 bytes, more than the allowed 4'):
        checkpoint_files.read_json(tmp_path / 'a.json', list)


def test_tensors_are_read_one_by_one_and_only_floating_point_ones(tmp_path):
    file = tmp_path / 'model.safetensors'
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors.numpy.save_file({'w': weights, 'codes': np.zeros(3, np.int8)}, file)
    tensors = checkpoint_files.open_tensors(file)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {'w': (2, 3), 'codes': (3,)}
    np.testing.assert_array_equal(tensors['w'].read(), weights)
    with pytest.raises(ValueError, match="Tensor 'codes' in .*model.safetensors is of type I8"):
        tensors['codes'].read()


def test_a_file_shorter_than_its_header_says_is_refused(tmp_path):
    file = tmp_path / 'model.safetensors'
    safetensors.numpy.save_file({'w': np.ones(8, np.float32)}, file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        checkpoint_files.open_tensors(file)
