"""MS MARCO's files: what is read, and the file and line in every complaint."""

import gzip
import pathlib
import tempfile

import pytest

from jdkd.corpus import building, storage
from jdkd.corpus import collection as collection_lib
from jdkd.corpus.sources import registry

FILES = {
    'collection.tsv': '0\tThe presence of communication\n1\tThe Manhattan Project\n7\tEssay\n',
    'queries.train.tsv': '121352\tdefine extreme\n634306\twhat does chattel mean\n',
    'qrels.train.tsv': '121352\t0\t1\t1\n634306\t0\t7\t1\n634306\t0\t0\t1\n',
    'queries.dev.small.tsv': '1048578\tcost of endless pools\n',
    'qrels.dev.small.tsv': '1048578\t0\t0\t1\n',
    'queries.eval.small.tsv': '57\tan unjudged query\n',
    'msmarco-test2019-queries.tsv': '264014\thow long is life cycle of flea\n9\tunjudged\n',
    '2019qrels-pass.txt': '264014 0 1 3\n264014 Q0 0 0\n',
}


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    root = tmp_path / 'msmarco'
    root.mkdir()
    for name, text in FILES.items():
        (root / name).write_text(text)
    return root


def load(root: pathlib.Path, on_error='stop', **options) -> collection_lib.Collection:
    out = pathlib.Path(tempfile.mkdtemp(dir=root.parent))
    building.build_collection(
        registry.open_source(f'msmarco:{root}', **options), out, on_error=on_error
    )
    return storage.open_collection(out)


def test_reads_every_split_that_has_both_files(root):
    c = load(root)
    assert c.name == 'msmarco' and list(c.passage_ids) == ['0', '1', '7']
    assert c.passages[1] == 'The Manhattan Project'
    assert c.queries == {
        'dev.small': {'1048578': 'cost of endless pools'},
        'train': {'121352': 'define extreme', '634306': 'what does chattel mean'},
    }
    assert c.qrels['train'] == {'121352': {'1': 1}, '634306': {'7': 1, '0': 1}}


def test_splits_may_be_named_by_their_files(root):
    c = load(
        root,
        splits={
            'train': 'train',
            'dev': 'dev.small',
            'test': ('msmarco-test2019-queries.tsv', '2019qrels-pass.txt'),
        },
    )
    assert list(c.queries) == ['train', 'dev', 'test']
    assert c.qrels['test'] == {'264014': {'1': 3, '0': 0}}
    assert c.labelled('test') == ['264014']


def test_gzipped_files_read_the_same(root):
    plain = load(root).fingerprint
    for file in sorted(root.iterdir()):
        file.with_name(f'{file.name}.gz').write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert load(root).fingerprint == plain


@pytest.mark.parametrize(
    ('file', 'line', 'message'),
    [
        ('collection.tsv', '8\n', r':4: expected passage id and text with tabs .* found 1 field'),
        ('collection.tsv', '8\ta\tb\n', r':4: expected passage id and text .* found 3 field'),
        ('collection.tsv', '7\ta\n', ":4: passage id '7' occurs a second time"),
        ('queries.train.tsv', '121352\tagain\n', ":3: query id '121352' occurs a second time"),
        ('qrels.train.tsv', '121352 0 1\n', ':4: expected 4 fields as above, with tabs or spaces'),
        ('qrels.train.tsv', '121352 0 1 x\n', ":4: grade 'x' must be an integer"),
        ('qrels.train.tsv', '8 0 1 1\n', ":4: the judgement names query '8'"),
    ],
)
def test_names_file_and_line_or_leaves_the_line_out(root, file, line, message):
    whole = load(root).fingerprint
    with (root / file).open('a') as f:
        f.write(line)
    with pytest.raises(ValueError, match=f'{file}{message}'):
        load(root)
    assert load(root, on_error='skip').fingerprint == whole


def test_names_a_missing_file(root):
    with pytest.raises(FileNotFoundError, match=r'queries.dev.tsv is missing: MS MARCO.s layout'):
        load(root, splits={'dev': 'dev'})
    (root / 'collection.tsv').unlink()
    with pytest.raises(FileNotFoundError, match=r'collection.tsv is missing'):
        load(root)


@pytest.mark.parametrize('files', [('queries.tsv',), ('queries.tsv', 'qrels.tsv', 'more.tsv')])
def test_a_split_has_two_files(root, files):
    with pytest.raises(ValueError, match=f'splits.test has {len(files)} files; give the NAME'):
        load(root, splits={'test': files})
