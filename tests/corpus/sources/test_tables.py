"""Parquet and JSON-lines tables and TFDS datasets: three shapes of one mechanism."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from jdkd.corpus import building, storage
from jdkd.corpus.sources import base, registry, tables

CORPUS = [
    {'_id': '1', 'title': 'Moon', 'text': 'is round'},
    {'_id': '2', 'title': None, 'text': 'is hot'},
]
QUERIES = [{'_id': 'a', 'text': 'what is round'}, {'_id': 'b', 'text': 'what is hot'}]
QRELS = [
    {'query-id': 'a', 'corpus-id': 1, 'score': 1},
    {'query-id': 'b', 'corpus-id': 2, 'score': 2.0},
]
TRIPLE = {'queries': {'train': 'queries.*'}, 'qrels': {'train': 'train.*'}, 'passages': 'corpus*'}
SQUAD = [
    {
        'id': 'x1',
        'title': 'Sun',
        'context': 'The Sun is hot.',
        'question': 'What is hot?',
        'answers': {'text': ['Sun', 'The Sun'], 'answer_start': [4, 0]},
    },
    {
        'id': 'x2',
        'title': 'Sun',
        'context': 'The Sun is hot.',
        'question': 'How is the Sun?',
        'answers': {'text': ['hot'], 'answer_start': [11]},
    },
]
SQUAD_FIELDS = {
    'query_id': 'id',
    'query': 'question',
    'title': 'title',
    'text': 'context',
    'answers': 'answers/text',
}


def write(path, rows):
    if path.suffix == '.parquet':
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def load(root, on_error='stop', kind='tables', **options):
    out = root.parent / f'out{len(list(root.parent.iterdir()))}'
    out.mkdir()
    building.build_collection(
        registry.open_source(f'{kind}:{root}', **options), out, on_error=on_error
    )
    return storage.open_collection(out)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / 'tables'
    root.mkdir()
    return root


@pytest.mark.parametrize('ending', ['parquet', 'jsonl'])
def test_three_tables_with_shards(root, ending):
    write(root / f'corpus-00000.{ending}', CORPUS[:1])
    write(root / f'corpus-00001.{ending}', CORPUS[1:])
    write(root / f'queries.{ending}', QUERIES)
    write(root / f'train.{ending}', QRELS)
    c = load(root, **TRIPLE)
    assert list(c.passages) == ['Moon is round', 'is hot']
    assert c.queries == {'train': {'a': 'what is round', 'b': 'what is hot'}}
    assert c.qrels == {'train': {'a': {'1': 1}, 'b': {'2': 2}}}


def test_positives_in_the_records_of_queries(root):
    write(root / 'corpus.jsonl', CORPUS)
    rows = [{'qid': 5, 'text': 'x', 'pos': [1, '2']}, {'qid': 6, 'text': 'y', 'pos': '2'}]
    write(root / 'queries.jsonl', rows)
    fields = {'query_id': 'qid', 'positives': 'pos'}
    c = load(root, passages='corpus.jsonl', queries={'train': 'queries.jsonl'}, fields=fields)
    assert c.qrels == {'train': {'5': {'1': 1, '2': 1}, '6': {'2': 1}}}


@pytest.mark.parametrize('ending', ['parquet', 'jsonl'])
def test_passages_beside_the_queries(root, ending):
    write(root / f'train.{ending}', SQUAD)
    c = load(root, queries={'train': f'train.{ending}'}, fields=SQUAD_FIELDS)
    assert list(c.passages) == ['Sun The Sun is hot.']  # Twice in the file.
    assert c.queries == {'train': {'x1': 'What is hot?', 'x2': 'How is the Sun?'}}
    assert c.answers == {'train': {'x1': ['Sun', 'The Sun'], 'x2': ['hot']}}
    (passage,) = c.passage_ids
    assert c.qrels == {'train': {'x1': {passage: 1}, 'x2': {passage: 1}}}


def test_pairs_without_ids(root):
    rows = [('q', 'one'), ('q', 'two'), ('r', 'one')]
    write(root / 'pairs.jsonl', [{'anchor': q, 'positive': p} for q, p in rows])
    fields = {'query': 'anchor', 'text': 'positive'}
    c = load(root, queries={'train': 'pairs.jsonl'}, fields=fields)
    assert list(c.passages) == ['one', 'two']
    texts = {c.queries['train'][q]: list(p) for q, p in c.qrels['train'].items()}
    assert texts == {'q': list(c.passage_ids), 'r': [c.passage_ids[0]]}


@pytest.mark.parametrize(
    ('file', 'row', 'message'),
    [
        ('corpus.jsonl', {'_id': '3'}, "corpus.jsonl:3: there is no field 'text'; there are _id"),
        ('corpus.jsonl', {'_id': '3', 'text': 4}, "corpus.jsonl:3: field 'text' must be a string"),
        ('corpus.jsonl', {'_id': 1.5, 'text': 'x'}, "'_id' must be a string or integer, found 1.5"),
        ('corpus.jsonl', {'_id': '3', 'title': 4, 'text': 'x'}, "field 'title' must be a string"),
        ('queries.jsonl', {'text': 'x'}, "queries.jsonl:3: there is no field '_id'"),
        ('train.jsonl', {**QRELS[0], 'score': 'high'}, "train.jsonl:3: grade 'high' must be an"),
    ],
)
def test_names_file_and_line_or_leaves_the_record_out(root, file, row, message):
    for name, rows in (('corpus', CORPUS), ('queries', QUERIES), ('train', QRELS)):
        write(root / f'{name}.jsonl', rows)
    whole = load(root, **TRIPLE).fingerprint
    with (root / file).open('a') as f:
        f.write(json.dumps(row) + '\n')
    with pytest.raises(ValueError, match=message):
        load(root, **TRIPLE)
    assert load(root, on_error='skip', **TRIPLE).fingerprint == whole


def test_damaged_parquet_is_refused(root):
    write(root / 'corpus.parquet', CORPUS)
    write(root / 'queries.parquet', QUERIES)
    write(root / 'train.parquet', QRELS)
    data = (root / 'corpus.parquet').read_bytes()
    (root / 'corpus.parquet').write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match='corpus.parquet: the data after row 0 is damaged'):
        load(root, on_error='skip', **TRIPLE)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, "needs the option 'queries'"),
        ({'queries': {'train': 'q.jsonl'}, 'passages': 'q.jsonl'}, 'nothing says what is relevant'),
        ({'queries': {'train': 'q.jsonl'}, 'qrels': {'train': 'q.jsonl'}}, 'without passages'),
        ({'queries': {'train': 'q.jsonl'}, 'fields': {'id': 'x'}}, "no role 'id'; it has passage"),
        ({'queries': {'train': 'q.txt'}}, 'q.txt is no table that can be read'),
        ({'queries': {'train': 'r.jsonl'}}, 'r.jsonl is missing'),
    ],
)
def test_refuses_options(root, options, message):
    (root / 'q.jsonl').touch()
    (root / 'q.txt').touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(root, **options)


class Squad(tfds.core.GeneratorBasedBuilder):
    """Laid out as TFDS' squad."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        text = tfds.features.Text()
        answers = tfds.features.Sequence(
            {'text': text, 'answer_start': tfds.features.Scalar(np.int32)}
        )
        features = {name: text for name in ('id', 'title', 'context', 'question')}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({**features, 'answers': answers}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {'train': enumerate(SQUAD)}

    def _generate_examples(self):
        raise NotImplementedError


def test_tfds_reads_as_the_table_does_and_without_tensorflow(root):
    Squad(data_dir=str(root), file_format='array_record').download_and_prepare()
    options = {'queries': {'train': 'train'}, 'fields': SQUAD_FIELDS, 'name': 'squad'}
    dataset = load(root / 'squad/1.0.0', kind='tfds', **options)
    assert 'tensorflow' not in sys.modules
    write(root / 'train.jsonl', SQUAD)
    table = load(root, queries={'train': 'train.jsonl'}, fields=SQUAD_FIELDS, name='squad')
    assert dataset.fingerprint == table.fingerprint
    source = registry.open_source('tfds:squad', data_dir=str(root), **options)
    assert [text for _, _, _, text in source.passages(None)] == ['The Sun is hot.']
    with pytest.raises(ValueError, match="has no split 'dev'; it has train"):
        load(root / 'squad/1.0.0', kind='tfds', queries={'dev': 'dev'})
    info = root / 'squad/1.0.0/dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(ValueError, match='is kept as tfrecord, which needs TensorFlow'):
        load(root / 'squad/1.0.0', kind='tfds', **options)
    with pytest.raises(ValueError, match="TFDS has no dataset 'squat'"):
        registry.open_source('tfds:squat', data_dir=str(root), **options)


def read_passages(path, **options):
    counts = {}
    source = registry.open_passages(str(path), **options)
    return list(source.passages(base.count_errors(counts))), counts


def test_passages_of_a_csv_file(tmp_path):
    file = tmp_path / 'x.csv'
    file.write_text('_id,title,text\n1,"a, b","two\nlines"\n\n2,,plain\n3,too,many,fields\n')
    found, counts = read_passages(file)
    assert found == [
        (f'{file}:2', '1', 'a, b', 'two\nlines'),
        (f'{file}:5', '2', '', 'plain'),
    ]
    assert [error['first'] for error in counts.values()] == [
        f"{file}:6: expected 3 fields, as in the header row, found 4; put fields that hold ',' in "
        'quotation marks.'
    ]
    file.write_text('_id,text,text\n')
    with pytest.raises(ValueError, match='x.csv:1: the header row names a column twice'):
        read_passages(file)


def test_what_is_no_file_of_passages_is_named(tmp_path):
    (tmp_path / 'x.txt').write_text('')
    (tmp_path / 'x.jsonl').write_text('')
    for name, options, message in (
        ('x.txt', {}, 'no table that can be read; use one of .parquet, .jsonl'),
        ('none.jsonl', {}, "none.jsonl', nor is that a source; give a .jsonl"),
        ('.', {}, 'is a directory; give a file of passages in it'),
        ('x.jsonl', {'split': 'x'}, "has no option 'split': it has fields"),
        ('x.jsonl', {'fields': {'query': 'q'}}, "no role 'query' for passages; it has passage_id"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_passages(tmp_path / name, **options)


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    columns = [pa.array(['d1']), pa.array(['x']), pa.array(['y'])]
    file = tmp_path / 'corpus.parquet'
    pq.write_table(pa.table(columns, names=['_id', 'text', 'text']), file)
    with pytest.raises(
        ValueError, match="corpus.parquet: the column 'text' is there twice; rename"
    ):
        list(tables.read_file(file, base.raise_error))
