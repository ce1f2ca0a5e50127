"""Datasets of the hub's BEIR layout, from directories as `datasets` writes them."""

import json
import shutil

import pytest

from jdkd.corpus import building, storage
from jdkd.corpus.sources import registry

datasets = pytest.importorskip('datasets')

CORPUS = [
    {'_id': '1', 'title': 'Moon', 'text': 'is round'},
    {'_id': '2', 'title': None, 'text': 'is hot'},
]
QUERIES = [{'_id': q, 'text': f'what is {q}'} for q in 'abc']
QRELS = {
    'train': [{'query-id': 'a', 'corpus-id': '1', 'score': 1}],
    'test': [
        {'query-id': 'b', 'corpus-id': '2', 'score': 2},
        {'query-id': 'a', 'corpus-id': '2', 'score': 0},
    ],
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """`datasets` keeps what it reads in a directory of the test's own, and asks no hub."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / 'scifact'
    root.mkdir()
    return root


def saved(root):
    datasets.Dataset.from_list(CORPUS).save_to_disk(root / 'corpus')
    datasets.DatasetDict({'queries': datasets.Dataset.from_list(QUERIES)}).save_to_disk(
        root / 'queries'
    )
    splits = {split: datasets.Dataset.from_list(rows) for split, rows in QRELS.items()}
    datasets.DatasetDict(splits).save_to_disk(root / 'default')


def parquet(root):
    for config, rows in (('corpus', CORPUS), ('queries', QUERIES)):
        (root / config).mkdir()
        half = len(rows) // 2
        for i, part in enumerate((rows[:half], rows[half:])):
            file = root / config / f'{config}-{i:05d}-of-00002.parquet'
            datasets.Dataset.from_list(part).to_parquet(file)
    (root / 'default').mkdir()
    for split, rows in QRELS.items():
        datasets.Dataset.from_list(rows).to_parquet(root / 'default' / f'{split}.parquet')


README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: qrels/train.jsonl
  - split: test
    path: qrels/test.jsonl
- config_name: corpus
  data_files: [{split: corpus, path: corpus.jsonl}]
- config_name: queries
  data_files: [{split: queries, path: queries.jsonl}]
---
"""


def download(root):
    """As the hub has mteb/scifact."""
    (root / 'README.md').write_text(README)
    (root / 'qrels').mkdir()
    tables = {'corpus': CORPUS, 'queries': QUERIES}
    tables |= {f'qrels/{split}': rows for split, rows in QRELS.items()}
    for name, rows in tables.items():
        lines = [{('id' if k == '_id' else k): v for k, v in row.items()} for row in rows]
        (root / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def load(root, **options):
    out = root.parent / f'out{len(list(root.parent.iterdir()))}'
    out.mkdir()
    on_error = options.pop('on_error', 'stop')
    source = registry.open_source(f'hf:{root}', **options)
    building.build_collection(source, out, on_error=on_error)
    return storage.open_collection(out), source


@pytest.mark.parametrize('write', [saved, parquet, download])
def test_a_directory_is_read_as_the_hub_s_dataset(root, write):
    write(root)
    collection, source = load(root)
    assert collection.name == 'scifact' and list(collection.passages) == ['Moon is round', 'is hot']
    assert collection.queries == {
        'train': {'a': 'what is a'},
        'test': {'a': 'what is a', 'b': 'what is b'},
    }
    assert collection.qrels == {'train': {'a': {'1': 1}}, 'test': {'a': {'2': 0}, 'b': {'2': 2}}}
    assert {file.parent.name for file in source.files} >= {'corpus', 'queries'} or write is download
    assert load(root, unjudged='log')[0].queries['log'] == {'c': 'what is c'}


def test_csv_is_text(root):
    parquet(root)
    for config, lines in (
        ('corpus', '_id,title,text\n007,NA,is round\n010,,is hot\n'),
        ('queries', '_id,text\n01,what is it\n'),
    ):
        shutil.rmtree(root / config)
        (root / config).mkdir()
        (root / config / 'rows.csv').write_text(lines)
    shutil.rmtree(root / 'default')
    (root / 'default').mkdir()
    (root / 'default/test.csv').write_text('query-id,corpus-id,score\n01,007,1\n')
    collection, _ = load(root)
    assert list(collection.passages.ids) == ['007', '010']
    assert list(collection.passages.titles) == ['NA', '']
    assert collection.qrels == {'test': {'01': {'007': 1}}}


def test_judgements_may_be_a_dataset_of_their_own(root, tmp_path):
    parquet(root)
    other = tmp_path / 'scifact-qrels'
    other.mkdir()
    (root / 'default').rename(other / 'default')
    assert load(root, qrels_from=str(other))[0].qrels['test']['b'] == {'2': 2}
    with pytest.raises(ValueError, match="scifact: train, row 1: there is no field 'query-id'"):
        load(root)


def test_a_loading_script_is_refused_by_name_and_never_run(root):
    parquet(root)
    witness = root.parent / 'was_run'
    script = f'import pathlib\npathlib.Path({str(witness)!r}).touch()\n'
    (root / 'scifact.py').write_text(script)
    with pytest.raises(ValueError, match=r'has a loading script, scifact.py; jdkd never runs'):
        load(root)
    assert not witness.exists()


def test_only_formats_of_plain_values_are_read(root):
    parquet(root)
    for file in (root / 'corpus').iterdir():
        file.unlink()
    (root / 'corpus/corpus.txt').write_text('a passage\n')
    with pytest.raises(ValueError, match=r'packaged_modules.text.text, and jdkd takes parquet'):
        load(root)


def test_a_name_that_is_nowhere_is_a_sentence():
    with pytest.raises(FileNotFoundError, match=r"hf:nobody/none: config 'corpus' cannot be found"):
        registry.open_source('hf:nobody/none')


def test_damage_is_a_sentence(root):
    parquet(root)
    (root / 'corpus/corpus-00000-of-00002.parquet').write_bytes(b'PAR1 no')
    with pytest.raises(ValueError, match=r"config 'corpus' cannot be read"):
        load(root)


def test_a_broken_record_names_its_row(root):
    saved(root)
    rows = [{'query-id': 'a', 'passage': '1', 'score': 1}]
    datasets.DatasetDict({'test': datasets.Dataset.from_list(rows)}).save_to_disk(root / 'other')
    with pytest.raises(ValueError, match=r"test, row 1: there is no field 'corpus-id'; there are "):
        load(root, qrels='other')
