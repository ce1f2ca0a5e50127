"""TFDS imports modules that a dataset's files name; under jdkd it does not."""

import importlib
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jdkd.config import CollectionConfig
from jdkd.corpus import importing
from jdkd.corpus.sources import registry
from jdkd.lists import dataset
from jdkd.runtime import tfds_features

OPTIONS = {'queries': {'train': 'train'}}
EVIL = 'evil_features.Text'
REFUSED = f"names the feature class '{EVIL}', which is not TFDS's own"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """Puts evil_features.py on the path; it makes the file `ran` when it is imported."""
    ran = tmp_path / 'ran'
    (tmp_path / 'evil_features.py').write_text(
        f'import tensorflow_datasets as tfds\nopen({str(ran)!r}, "w").close()\n'
        'class Text(tfds.features.Text):\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield ran
    sys.modules.pop('evil_features', None)
    tfds.features.FeatureConnector._registered_features.pop(EVIL, None)


@pytest.fixture
def directory(tmp_path):
    """A small dataset in array_record."""
    dataset.write(tmp_path, {'train': [{'query': np.arange(3)}]})
    return tmp_path / 'candidate_lists/1.0.0'


def _features(directory):
    return json.loads((directory / 'features.json').read_text())


def _rewrite(directory, features):
    (directory / 'features.json').write_text(json.dumps(features))


def top_level(directory):
    _rewrite(directory, _features(directory) | {'pythonClassName': EVIL})


def inner(directory):
    features = _features(directory)
    features['featuresDict']['features']['query']['pythonClassName'] = EVIL
    _rewrite(directory, features)


def snake_case(directory):
    features = _features(directory)
    del features['pythonClassName']
    _rewrite(directory, features | {'python_class_name': EVIL})


def legacy(directory):
    """As TFDS wrote it until version 4.4."""
    content = {'query': {'type': EVIL, 'content': {}}}
    own = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'
    _rewrite(directory, {'type': own, 'content': content})


def json_in_json(directory):
    features = _features(directory)
    inner = json.dumps({'query': {'type': EVIL, 'content': {}}})
    del features['featuresDict']
    _rewrite(directory, features | {'jsonFeature': {'json': inner}})


def in_a_sequence(directory):
    features = _features(directory)
    features['featuresDict']['features']['query'] = {
        'pythonClassName': 'tensorflow_datasets.core.features.sequence_feature.Sequence',
        'sequence': {'feature': {'pythonClassName': EVIL, 'text': {}}, 'length': '-1'},
    }
    _rewrite(directory, features)


def dataset_info(directory):
    file = directory / 'dataset_info.json'
    features = _features(directory) | {'pythonClassName': EVIL}
    file.write_text(json.dumps(json.loads(file.read_text()) | {'features': features}))


ROUTES = [top_level, inner, snake_case, legacy, json_in_json, in_a_sequence, dataset_info]


@pytest.mark.parametrize('rewrite', ROUTES)
def test_no_module_that_a_dataset_names_is_imported(directory, evil, rewrite):
    rewrite(directory)
    source = f'tfds:{directory}'
    spec = CollectionConfig(source=source, options=OPTIONS)
    with pytest.raises(ValueError, match=REFUSED):  # At validation.
        importing.check_source(spec, directory / 'collection')
    with pytest.raises(ValueError, match=REFUSED):
        registry.open_source(source, **OPTIONS)
    with pytest.raises(ValueError, match=REFUSED):  # Lists in a workdir.
        dataset.read(directory.parents[1], 'train')
    assert not evil.exists()


@pytest.mark.parametrize('rewrite', ROUTES)
def test_nor_where_a_dataset_is_given_by_its_name(directory, evil, rewrite):
    named = directory.parents[1] / 'unheard_of'
    directory.parent.rename(named)
    rewrite(named / '1.0.0')
    info = named / '1.0.0/dataset_info.json'
    info.write_text(info.read_text().replace('candidate_lists', 'unheard_of'))
    for name in ('unheard_of', 'unheard_of:1.0.0'):
        with pytest.raises(ValueError, match=REFUSED):
            registry.open_source(f'tfds:{name}', data_dir=str(named.parent), **OPTIONS)
    assert not evil.exists()


@pytest.mark.parametrize(
    'name',
    [
        'os.path',
        'antigravity.X',
        'X',
        '',
        'tensorflow_datasets.scripts.documentation.build_catalog.X',
        'tensorflow_datasets_evil.X',
        '\x1b]0;PWNED\x07.X',
    ],
)
def test_other_classes_are_refused_by_name(directory, name, capfd):
    _rewrite(directory, _features(directory) | {'pythonClassName': name})
    before = set(sys.modules)
    with pytest.raises(ValueError, match="names the feature class '.*which is not TFDS") as error:
        registry.open_source(f'tfds:{directory}', **OPTIONS)
    assert str(error.value).isprintable()
    assert name.rpartition('.')[0] not in set(sys.modules) - before


def test_classes_that_tfds_once_had_are_read(directory):
    features = _features(directory)
    query = features['featuresDict']['features']['query']
    query['pythonClassName'] = 'tensorflow_datasets.core.features.feature.Tensor'
    _rewrite(directory, features)
    assert [int(x['query']) for x in dataset.read(directory.parents[1], 'train')] == [0, 1, 2]


def test_other_users_of_tfds_keep_its_own_way(evil):
    with tfds_features.only_own('x'):
        pass
    find = tfds.features.FeatureConnector.cls_from_name
    assert find(EVIL) is importlib.import_module('evil_features').Text and evil.exists()


@pytest.mark.parametrize('name', ['kaggle:x', 'huggingface:squad/plain', 'my-lab:x:1.0.0'])
def test_namespaces_of_code_are_refused(name):
    with pytest.raises(ValueError, match='is in a namespace, .* code of their own'):
        registry.open_source(f'tfds:{name}', **OPTIONS)


@pytest.mark.parametrize(
    ('file', 'content'),
    [
        ('dataset_info.json', '{"name": "\x1b]0;PWNED"'),
        ('dataset_info.json', '{"\\u001b]0;PWNED": 1}'),
        ('dataset_info.json', '{"name": "a", "version": "\\u001b]0;PWNED"}'),
        ('dataset_info.json', '{"name": "a", "version": "1.0.0", "file_format": "\\u001b]0;"}'),
        ('dataset_info.json', '\xff'),
        ('dataset_info.json', '['),
        ('features.json', '{"pythonClassName": 3}'),
        ('features.json', '{"\\u001b]0;PWNED": 3}'),
        ('features.json', '[' * 100_000),
    ],
)
def test_broken_files_are_named(directory, file, content):
    (directory / file).write_text(content, encoding='latin-1')
    with pytest.raises(ValueError, match='is no dataset that TFDS can read') as error:
        registry.open_source(f'tfds:{directory}', **OPTIONS)
    assert str(error.value).isprintable()
