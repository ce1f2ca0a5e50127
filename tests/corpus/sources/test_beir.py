"""BEIR directories: what is read, and the file and line in every complaint."""

import gzip
import json
import pathlib
import tempfile

import pytest

from jdkd.corpus import building, storage
from jdkd.corpus import collection as collection_lib
from jdkd.corpus.sources import registry

CORPUS = [
    {'_id': 'd1', 'title': 'Moon', 'text': 'is round'},
    {'_id': 'd2', 'title': '', 'text': 'Sun is hot'},
    {'_id': 3, 'text': 'Ids may be integers.'},
]
QUERIES = [
    {'_id': 'q1', 'text': 'what is round'},
    {'_id': 'q2', 'text': 'what is hot', 'metadata': {}},
    {'_id': 7, 'text': 'what may ids be'},
    {'_id': 'unjudged', 'text': 'anything'},
]
HEADER = 'query-id\tcorpus-id\tscore\n'
QRELS = {'train': 'q2\td2\t2\nq1\td1\t1\nq2\td1\t0\n', 'test': '7\t3\t1\n'}


def jsonl(rows) -> str:
    return ''.join(json.dumps(row) + '\n' for row in rows)


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    root = tmp_path / 'tiny'
    (root / 'qrels').mkdir(parents=True)
    (root / 'corpus.jsonl').write_text(jsonl(CORPUS))
    (root / 'queries.jsonl').write_text(jsonl(QUERIES))
    for split, rows in QRELS.items():
        (root / 'qrels' / f'{split}.tsv').write_text(HEADER + rows)
    return root


def load(root: pathlib.Path, **options) -> collection_lib.Collection:
    """Imports the directory beside itself, and opens what was imported."""
    out = pathlib.Path(tempfile.mkdtemp(dir=root.parent))
    building.build_collection(registry.open_source(f'beir:{root}', **options), out)
    return storage.open_collection(out)


def test_queries_that_no_split_judges_can_be_given_to_one(root):
    c = load(root, unjudged='train')
    assert list(c.queries['train']) == ['q1', 'q2', 'unjudged'] and list(c.queries['test']) == ['7']
    assert c.labelled('train') == ['q1', 'q2']
    log = load(root, unjudged='log')
    assert log.queries['log'] == {'unjudged': 'anything'} and log.labelled('log') == []


def test_a_log_needs_no_judgements_and_a_corpus_alone_no_queries(root):
    for file in (root / 'qrels').iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match='train with configs/unlabelled.py:beir=PATH'):
        load(root)
    assert list(load(root, unjudged='train').queries) == ['train']
    log = root / 'queries.jsonl'
    log.rename(root / 'queries.jsonl.gz')  # Which it is not: what is there is read.
    with pytest.raises(ValueError, match='queries.jsonl.gz'):
        load(root, unjudged='train')
    (root / 'queries.jsonl.gz').unlink()
    alone = load(root, unjudged='train')
    assert alone.queries == {} and len(alone) == 3


def test_a_log_of_broken_queries_is_no_corpus_alone(root):
    for file in (root / 'qrels').iterdir():
        file.unlink()
    (root / 'queries.jsonl').write_text('{"_id": "a", "text": 3}\n')
    source = registry.open_source(f'beir:{root}', unjudged='train')
    out = pathlib.Path(tempfile.mkdtemp(dir=root.parent))
    with pytest.raises(ValueError, match='has no queries'):
        building.build_collection(source, out, on_error='skip')


def test_a_broken_query_is_counted_once(root):
    with (root / 'queries.jsonl').open('a') as f:
        f.write('{"_id": "q1"\n')
    out = pathlib.Path(tempfile.mkdtemp(dir=root.parent))
    source = registry.open_source(f'beir:{root}')
    manifest = building.build_collection(source, out, on_error='skip')
    assert [entry['count'] for entry in manifest['skipped'].values()] == [1]


def test_judgements_of_missing_queries_are_an_error_with_a_log_too(root):
    (root / 'queries.jsonl').unlink()
    with pytest.raises(FileNotFoundError, match='queries.jsonl is missing'):
        load(root, unjudged='train')


def test_reads_a_directory(root):
    c = load(root, license='CC0')
    assert c.name == 'tiny' and c.license == 'CC0'
    assert list(c.passage_ids) == ['d1', 'd2', '3']
    assert list(c.passages.titles) == ['Moon', '', '']
    assert list(c.passages.texts) == ['is round', 'Sun is hot', 'Ids may be integers.']
    assert c.queries == {
        'test': {'7': 'what may ids be'},
        'train': {'q1': 'what is round', 'q2': 'what is hot'},
    }
    assert list(c.queries['train']) == ['q1', 'q2']  # as in queries.jsonl
    assert c.qrels == {
        'test': {'7': {'3': 1}},
        'train': {'q1': {'d1': 1}, 'q2': {'d2': 2, 'd1': 0}},
    }


def test_answers_are_a_list_or_one(root):
    queries = [{**QUERIES[0], 'answers': ['Moon', 'the Moon']}, {**QUERIES[1], 'answers': 'Sun'}]
    (root / 'queries.jsonl').write_text(jsonl([*queries, *QUERIES[2:]]))
    assert load(root).answers == {'train': {'q1': ['Moon', 'the Moon'], 'q2': ['Sun']}}
    (root / 'queries.jsonl').write_text(jsonl([{**QUERIES[0], 'answers': [3]}, *QUERIES[1:]]))
    with pytest.raises(ValueError, match='queries.jsonl:1: answer 3 must be a string with text'):
        load(root)


def test_gzip_windows_lines_and_a_byte_order_mark_read_the_same(root):
    plain = load(root).fingerprint
    for file in sorted(root.rglob('*.*')):
        content = b'\xef\xbb\xbf' + file.read_bytes().replace(b'\n', b'\r\n') + b'\r\n'
        file.with_name(f'{file.name}.gz').write_bytes(gzip.compress(content))
        file.unlink()
    assert load(root).fingerprint == plain


def test_unicode_line_separators_do_not_split_a_line(root):
    text = 'one\u2028two\u0085three'
    line = json.dumps({'_id': 'd9', 'text': text}, ensure_ascii=False)
    with (root / 'corpus.jsonl').open('a', encoding='utf-8') as f:
        f.write(line + '\n')
    assert load(root).passages.texts[-1] == text


def test_a_title_may_stand_without_a_text(root):
    with (root / 'corpus.jsonl').open('a', encoding='utf-8') as f:
        f.write('{"_id": "d9", "title": "Moon"}\n')
    assert load(root).passages[-1] == 'Moon'


def test_queries_that_no_split_judges_are_counted(root, caplog):
    with caplog.at_level('INFO'):
        load(root)
    assert '1 queries are left out, which no split judges' in caplog.text


@pytest.mark.parametrize('name', ['corpus.jsonl', 'queries.jsonl'])
def test_names_a_missing_file(root, name):
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} is missing'):
        load(root)


def test_names_missing_judgements(root):
    for split in QRELS:
        (root / 'qrels' / f'{split}.tsv').unlink()
    with pytest.raises(FileNotFoundError, match='qrels has no .tsv file'):
        load(root)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"_id": "d4", "text": ', r':4: not JSON \('),
        ('["d4"]', ':4: expected a JSON object, found list'),
        (
            '{"title": "t", "text": "x"}',
            ":4: field '_id' must be a string or integer, found None",
        ),
        ('{"_id": true, "text": "x"}', ":4: field '_id' must be a string or integer, found True"),
        ('{"_id": 1.5, "text": "x"}', ":4: field '_id' must be a string or integer, found 1.5"),
        ('{"_id": "d4", "title": ""}', ":4: field 'text' must be a string, found None"),
        ('{"_id": "d4", "text": null}', ":4: field 'text' must be a string, found None"),
        ('{"_id": "d4", "title": 4, "text": "x"}', ":4: field 'title' must be a string, found 4"),
        ('\n{"_id": "d1", "text": "x"}', ":5: passage id 'd1' occurs a second time"),
        ('{"_id": "3", "text": "x"}', ":4: passage id '3' occurs a second time"),
        ('{"_id": "d 4", "text": "x"}', ":4: passage id 'd 4' is empty or holds whitespace"),
        ('{"_id": "d4", "text": "\\ud800"}', ':4: the text holds a lone surrogate'),
    ],
)
def test_names_file_and_line_of_a_bad_passage(root, line, message):
    with (root / 'corpus.jsonl').open('a') as f:
        f.write(line + '\n')
    with pytest.raises(ValueError, match=f'corpus.jsonl{message}'):
        load(root)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"_id": "q1", "text": "again"}', ":5: query id 'q1' occurs a second time"),
        ('{"_id": "q1"}', ":5: field 'text' must be a string, found None"),
        ('{', ':5: not JSON'),
    ],
)
def test_names_file_and_line_of_a_bad_query(root, line, message):
    with (root / 'queries.jsonl').open('a') as f:
        f.write(line + '\n')
    with pytest.raises(ValueError, match=f'queries.jsonl{message}'):
        load(root)


def test_names_file_and_line_of_a_judged_query_without_text(root):
    (root / 'queries.jsonl').write_text(jsonl(QUERIES).replace('what is hot', ' '))
    with pytest.raises(ValueError, match="queries.jsonl:2: query 'q2' has no text"):
        load(root)


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ('q1\td9\t1\n', ":2: passage 'd9' does not exist, nor does any other of the 1 that split"),
        ('q1\td1\t1\n\nq9\td1\t1\n', ":4: the judgement names query 'q9', which does not exist"),
        ('q1\td1\n', r':2: expected query id, passage id and grade, .*, found 2 field\(s\)'),
        ('q1 0 d1 1\nq2 d1 1\n', r':3: expected 4 fields as above, .*, found 3 field\(s\)'),
        ('q1\td1\t0.5\n', ":2: grade '0.5' must be an integer"),
        ('q1\td1\t1_0\n', ":2: grade '1_0' must be an integer"),
        ('q1\td1\t1\nq1\td1\t2\n', ":3: query 'q1' and passage 'd1' have grade 2 here and 1 above"),
    ],
)
def test_names_file_and_line_of_a_bad_judgement(root, rows, message):
    (root / 'qrels' / 'train.tsv').write_text(HEADER + rows)
    with pytest.raises(ValueError, match=f'train.tsv{message}'):
        load(root)


def test_a_missing_header_row_is_not_a_lost_judgement(root):
    whole = load(root)
    (root / 'qrels' / 'test.tsv').write_text(QRELS['test'])
    assert load(root).fingerprint == whole.fingerprint


def test_the_same_judgement_twice_is_harmless(root):
    before = load(root).qrels
    with (root / 'qrels' / 'train.tsv').open('a') as f:
        f.write('q1\td1\t+1\n')
    assert load(root).qrels == before


def test_a_query_that_two_splits_judge_is_in_both(root):
    (root / 'qrels' / 'dev.tsv').write_text(HEADER + 'q1\td2\t1\n')
    assert load(root).queries['dev'] == {'q1': 'what is round'}


def test_names_file_and_line_of_text_that_is_not_utf8(root):
    with (root / 'corpus.jsonl').open('ab') as f:
        f.write('{"_id": "d4", "text": "caf\u00e9"}\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='corpus.jsonl:4: not UTF-8'):
        load(root)


def test_refuses_gzip_data_that_is_cut_short_or_not_gzip(root):
    whole = gzip.compress((root / 'corpus.jsonl').read_bytes())
    (root / 'corpus.jsonl').unlink()
    for content in (whole[:-12], b'plain text\n'):
        (root / 'corpus.jsonl.gz').write_bytes(content)
        with pytest.raises(ValueError, match='corpus.jsonl.gz:.* cut short or damaged'):
            load(root)
