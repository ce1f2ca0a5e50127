"""What systems and editors leave beside data is no data, wherever files are found by a pattern."""

import json

import pytest

from jdkd.corpus import building, storage
from jdkd.corpus.sources import parsing, registry
from tests.helpers import toy

LEFTOVERS = [
    '.DS_Store',
    '._{}',
    'Thumbs.db',
    'desktop.ini',
    '{}~',
    '.{}.swp',
    '#{}#',
    '.#{}',
    '~${}',
    '.~lock.{}#',
    '{}.bak',
    '{}.part',
    '{}.crdownload',
    '{}.lock',
]
DIRECTORIES = ['__MACOSX', '.ipynb_checkpoints', '@eaDir', '.git']


def litter(directory, name):
    """Leaves everything beside a file of this name."""
    for leftover in LEFTOVERS:
        (directory / leftover.format(name)).write_bytes(b'\x00\x05\x16\x07\xff')
    for leftover in DIRECTORIES:
        (directory / leftover).mkdir()
        (directory / leftover / name).write_bytes(b'\x00\x05\x16\x07\xff')


def load(root, kind, **options):
    out = root.parent / f'out{len(list(root.parent.iterdir()))}'
    out.mkdir()
    building.build_collection(registry.open_source(f'{kind}:{root}', name='x', **options), out)
    return storage.open_collection(out)


def test_beir(tmp_path):
    root = toy.write_collection(tmp_path / 'toy')
    clean = load(root, 'beir')
    for split in ('train', 'test'):
        litter(root / 'qrels', f'{split}.tsv')
        for directory in DIRECTORIES:
            (root / 'qrels' / directory / f'{split}.tsv').unlink()
            (root / 'qrels' / directory).rmdir()
    (root / 'qrels' / 'old.tsv').mkdir()  # A directory is no file of judgements.
    assert load(root, 'beir').fingerprint == clean.fingerprint


def test_msmarco(tmp_path):
    root = tmp_path / 'ms'
    root.mkdir()
    (root / 'collection.tsv').write_text('0\tone\n1\ttwo\n')
    (root / 'queries.dev.tsv').write_text('7\tq\n')
    (root / 'qrels.dev.tsv').write_text('7 0 1 1\n')
    clean = load(root, 'msmarco')
    for name in ('queries.dev.tsv', 'qrels.dev.tsv'):
        (root / f'{name}~').write_text('\xff')
        (root / f'._{name}').write_text('\xff')
        (root / f'{name}.bak').write_text('\xff')
        (root / f'.{name}.swp').write_text('\xff')
    (root / 'queries.old.tsv').mkdir()
    (root / 'qrels.old.tsv').mkdir()
    assert load(root, 'msmarco').fingerprint == clean.fingerprint


@pytest.mark.parametrize('pattern', ['*', '*.jsonl', '**/*.jsonl', '[cC]orpus*'])
def test_tables(tmp_path, pattern):
    root = tmp_path / 'tables'
    root.mkdir()
    rows = [{'query': f'q{i}', 'text': f'text {i}'} for i in range(3)]
    (root / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    clean = load(root, 'tables', queries={'train': 'corpus.jsonl'})
    litter(root, 'corpus.jsonl')
    assert load(root, 'tables', queries={'train': pattern}).fingerprint == clean.fingerprint


def test_what_is_named_in_full_is_meant(tmp_path):
    for name in ('.hidden.jsonl', 'corpus.jsonl.bak', 'x.jsonl'):
        (tmp_path / name).touch()
        assert parsing.data_files(tmp_path, name) == [tmp_path / name]
    assert parsing.data_files(tmp_path, '*') == [tmp_path / 'x.jsonl']
    (tmp_path / 'a[1].csv').touch()
    assert parsing.data_files(tmp_path, 'a[1].csv') == [tmp_path / 'a[1].csv']


@pytest.mark.parametrize('pattern', ['/*', '.', ''])
def test_a_pattern_names_files_in_the_directory(tmp_path, pattern):
    with pytest.raises(ValueError, match='must be the name or the pattern of files relative to'):
        parsing.data_files(tmp_path, pattern)
