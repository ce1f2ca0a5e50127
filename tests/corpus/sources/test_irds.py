"""Collections of ir_datasets, from files laid where it keeps those it has fetched."""

import io
import pickle
import subprocess
import sys

import ir_datasets
import pytest
from ir_datasets.datasets import dpr_w100
from ir_datasets.formats import GenericDoc, TrecQrels, TsvDocs, TsvQueries
from ir_datasets.indices import lz4_pickle
from ir_datasets.util import LocalDownload

from jdkd.corpus import building, storage
from jdkd.corpus.sources.registry import open_source


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """ir_datasets with the datasets that a test puts there, in the formats of published ones."""
    registry = ir_datasets.util.Registry()
    monkeypatch.setattr(ir_datasets, 'registry', registry)

    def local(name, text):
        (tmp_path / name).write_text(text)
        return LocalDownload(tmp_path / name)

    docs = TsvDocs(local('collection.tsv', '0\tis round\n1\tis hot\n'), count_hint=None)
    monkeypatch.setattr(docs, 'docs_count', lambda: 2)
    registry.register('toy', ir_datasets.Dataset(docs))
    for split, judged in (('train', '1'), ('trec', '3')):
        registry.register(
            f'toy/{split}',
            ir_datasets.Dataset(
                docs,
                TsvQueries(local(f'{split}.queries', f'q{split}\twhat is {split}\n')),
                TrecQrels(local(f'{split}.qrels', f'q{split} 0 1 {judged}\n'), {}),
            ),
        )
    return registry


def load(tmp_path, name, **options):
    building.build_collection(open_source(f'irds:{name}', **options), tmp_path)
    return storage.open_collection(tmp_path)


def test_splits_below_the_name_are_found(registry, tmp_path):
    c = load(tmp_path, 'toy', license='CC0')
    assert (c.name, c.license) == ('toy', 'CC0')
    assert list(c.passages) == ['is round', 'is hot']
    assert c.queries == {'train': {'qtrain': 'what is train'}}
    assert c.qrels == {'train': {'qtrain': {'1': 1}}}


def test_splits_may_be_named(registry, tmp_path):
    c = load(tmp_path, 'toy', splits={'train': 'toy/train', 'test': 'toy/trec'})
    assert list(c.queries) == ['train', 'test'] and c.qrels['test'] == {'qtrec': {'1': 3}}


def test_answers_and_titles_of_dpr_come_along(registry, tmp_path, monkeypatch):
    (tmp_path / 'psgs_w100.tsv').write_text('id\ttext\ttitle\n1\t"is hot"\tSun\n2\tis big\tSun\n')
    docs = TsvDocs(
        LocalDownload(tmp_path / 'psgs_w100.tsv'),
        doc_cls=dpr_w100.DprW100Doc,
        skip_first_line=True,
    )
    monkeypatch.setattr(docs, 'docs_count', lambda: 3)
    (tmp_path / 'queries.tsv').write_text('0\twhat is hot\tthe Sun\tfire\n')
    (tmp_path / 'qrels').write_text('0 0 1 2\n0 0 2 -1\n')
    registry.register(
        'dpr/nq/train',
        ir_datasets.Dataset(
            docs,
            dpr_w100.DprW100Queries(LocalDownload(tmp_path / 'queries.tsv')),
            TrecQrels(LocalDownload(tmp_path / 'qrels'), {}),
        ),
    )
    out = tmp_path / 'out'
    out.mkdir()
    c = load(out, 'dpr/nq')  # Not a dataset itself: the beginning of its splits' names.
    assert list(c.passages)[1] == 'Sun is big'
    assert c.answers == {'train': {'0': ['the Sun', 'fire']}}
    assert c.qrels == {'train': {'0': {'1': 2, '2': -1}}}


def test_msmarco_is_read_from_its_home(tmp_path):
    """The real dataset, with files where ir_datasets has put what it fetched and converted."""
    code = (
        'import pathlib\n'
        'from jdkd.corpus import building, storage\n'
        'from jdkd.corpus.sources import registry\n'
        'out = pathlib.Path("out")\n'
        'out.mkdir()\n'
        'splits = {"dev": "msmarco-passage/dev/small"}\n'
        'source = registry.open_source("irds:msmarco-passage", splits=splits)\n'
        'building.build_collection(source, out)\n'
        'c = storage.open_collection(out)\n'
        'print(list(c.passages), c.queries, c.qrels)\n'
    )
    home = tmp_path / 'home/msmarco-passage'
    (home / 'dev/small').mkdir(parents=True)
    (home / 'irds_version.txt').write_text('v2')
    (home / 'collection.tsv').write_text('0\tThe presence\n1\tThe Manhattan Project\n')
    (home / 'dev/small/queries.tsv').write_text('1048578\tcost of endless pools\n')
    (home / 'dev/small/qrels').write_text('1048578\t0\t1\t1\n')
    printed = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            'IR_DATASETS_HOME': str(tmp_path / 'home'),
            'IR_DATASETS_DL_DISABLED': 'true',
            'PYTHONPATH': ':'.join(sys.path),
        },
    )
    assert printed.stdout.strip() == (
        "['The presence', 'The Manhattan Project'] "
        "{'dev': {'1048578': 'cost of endless pools'}} {'dev': {'1048578': {'1': 1}}}"
    ), printed.stderr


def test_unknown_names_are_refused_with_near_ones(registry, tmp_path):
    with pytest.raises(ValueError, match="no dataset 'toy/tran'; did you mean toy/train"):
        load(tmp_path, 'toy/tran')
    with pytest.raises(ValueError, match="ir_datasets' 'toy' has no queries; name one that has"):
        load(tmp_path, 'toy', splits={'train': 'toy'})


class Evil:
    def __reduce__(self):
        return print, ('PWNED',)


def test_ir_datasets_unpickles_its_own_records_only(tmp_path, capsys):
    records = [GenericDoc(str(i), f'text {i}') for i in range(3)]
    make = lz4_pickle.PickleLz4FullStore
    store = make(str(tmp_path / 'store'), lambda: iter(records), GenericDoc, 'doc_id', ['doc_id'])
    assert list(store) == records
    block = ir_datasets.lazy_libs.lz4_block().block
    for value in (Evil(), (Evil(),), pickle.loads, pickle.Unpickler, subprocess.Popen):
        data = block.compress(pickle.dumps(value), store_size=True)
        record = io.BytesIO(len(data).to_bytes(4, 'little') + data)
        with pytest.raises(ValueError, match='a file of ir_datasets names'):
            lz4_pickle._read_next(record, GenericDoc)
    nested = (GenericDoc('a', 'b'), b'bytes', 1.5, None)
    record = io.BytesIO()
    lz4_pickle._write_next(record, nested)
    record.seek(0)
    assert lz4_pickle._read_next(record, lambda *values: values) == nested
    assert 'PWNED' not in capsys.readouterr().out
