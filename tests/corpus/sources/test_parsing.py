"""Lines, fields, JSON objects, ids and grades, and the errors that name file and line."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pytest

from jdkd.corpus.sources import base, parsing, registry


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)
    return path


@pytest.mark.parametrize('name', ['a.txt', 'a.txt.gz'])
def test_lines_keep_their_numbers_and_their_text(tmp_path, name):
    content = '\ufeffone\r\n\n \ntwo \u2028x\n\ufeffthree'.encode()
    file = write(tmp_path / name, content)
    lines = list(parsing.read_lines(file, base.raise_error))
    assert lines == [
        (f'{file}:1', 'one'),
        (f'{file}:4', 'two \u2028x'),
        (f'{file}:5', 'three'),
    ]


def test_lines_that_are_not_utf8_are_reported_and_left_out(tmp_path):
    file = write(tmp_path / 'a', b'one\ncaf\xe9\nthree\n')
    counts = {}
    lines = [line for _, line in parsing.read_lines(file, base.count_errors(counts))]
    assert lines == ['one', 'three']
    message = f'{file}:2: not UTF-8; save the file as UTF-8.'
    assert counts == {'not UTF-8': {'count': 1, 'first': message}}


def test_long_lines_and_damaged_gzip_stop_whatever_the_handler(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, '_MAX_LINE', 8)
    ignore = base.count_errors({})
    lines = parsing.read_lines(write(tmp_path / 'a', b'123456\n12345678\n'), ignore)
    assert next(lines)[1] == '123456'
    with pytest.raises(ValueError, match='a:2: the line is longer than 8 bytes'):
        next(lines)
    file = write(tmp_path / 'b.gz', b'one\n' * 50)
    for damaged in (file.read_bytes()[:-9], b'plain'):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'b.gz:\d+: the gzip data is cut short or damaged'):
            list(parsing.read_lines(file, ignore))


def test_json_lines_are_objects(tmp_path):
    file = write(tmp_path / 'a', b'{"x": 1}\n[1]\n{"x": 1, "x": 2}\n{\n{}\n')
    counts = {}
    entries = list(parsing.read_json_lines(file, base.count_errors(counts)))
    twice = parsing.Repeated('x')
    assert entries == [(f'{file}:1', {'x': 1}), (f'{file}:3', {'x': twice}), (f'{file}:5', {})]
    assert counts['broken line']['count'] == 2
    assert counts['broken line']['first'].startswith(
        f'{file}:2: expected a JSON object, found list'
    )
    with pytest.raises(ValueError, match='a:2: expected a JSON object, found list'):
        list(parsing.read_json_lines(file, base.raise_error))
    with pytest.raises(ValueError, match='not JSON'):
        parsing.parse_json_object('[' * 100_000)


TWICE = [
    '"url": 1, "url": 2',
    '"metadata": {"x": 1, "x": 1}',
    '"metadata": [{"x": {"y": 1, "y": 2}}]',
    '"a": {"_id": 1, "_id": 2, "text": 1, "text": 2}',
    '"": 1, "": 2, "": 3',
]


@pytest.mark.parametrize('unread', TWICE)
def test_repeated_keys_that_are_not_read_do_no_harm(tmp_path, unread):
    def load(extra):
        root = tmp_path / f'root{len(list(tmp_path.iterdir()))}'
        (root / 'qrels').mkdir(parents=True)
        line = f'{{"_id": "a", "text": "x"{extra}}}\n'
        for name in ('corpus.jsonl', 'queries.jsonl'):
            (root / name).write_text(line)
        (root / 'qrels/test.tsv').write_text('a\ta\t1\n')
        source = registry.open_source(f'beir:{root}')
        streams = source.passages, source.queries, source.qrels, source.answers
        return [[item[1:] for item in stream(base.raise_error)] for stream in streams]

    assert load(f', {unread}') == load('')
    for field in ('"_id": "b"', '"text": "y"', '"text": "x"'):
        with pytest.raises(ValueError, match='jsonl:1: field .* is there twice; keep one'):
            load(f', {field}')
    for field in ('"title": "t", "title": "u"', '"answers": ["a"], "answers": ["b"]'):
        with pytest.raises(ValueError, match='jsonl:1: field .* is there twice; keep one'):
            load(f', {field}')


def test_ids_may_be_integers_and_texts_may_not():
    assert parsing.check_id('a:1', '_id', 7) == '7' and parsing.check_id('a:1', '_id', '7') == '7'
    for value in (True, 1.0, None, ['x']):
        with pytest.raises(ValueError, match="a:1: field '_id' must be a string or integer, found"):
            parsing.check_id('a:1', '_id', value)
    assert parsing.check_text('a:1', 'text', '') == ''
    for value in (7, None, {}):
        with pytest.raises(ValueError, match="a:1: field 'text' must be a string, found"):
            parsing.check_text('a:1', 'text', value)


@pytest.mark.parametrize('item_id', ['', 'a b', 'a\tb', 'a\x7f', '\u2003', 'a\u202eb', '\ud800'])
def test_ids_that_run_files_cannot_hold(item_id):
    assert parsing.id_error('query', item_id).startswith('query id ')
    assert 'rename it' in parsing.id_error('query', item_id)


def test_ids_that_they_can_hold():
    assert parsing.id_error('passage', 'https://en.wikipedia.org/wiki/Zürich#x=1') is None
    assert parsing.id_error('passage', 'x' * 1024) is None
    assert 'has 1025 characters, more than 1024' in parsing.id_error('passage', 'x' * 1025)


def test_grades_are_short_integers():
    grades = {
        '1': 1,
        '-1': -1,
        '+2': 2,
        '0': 0,
        '007': 7,
        '0' * 20 + '3': 3,
        '9' * 7: 10**7 - 1,
        '1.0': 1,
        '2.': 2,
        '-1.00': -1,
        '1e0': 1,
        '1.000000000000000000e+00': 1,
        1: 1,
        3.0: 3,
    }
    assert {text: parsing.parse_grade('a:1', text) for text in grades} == grades
    for text in ('', '-', '0.5', '1e-1', '1_0', '٣', ' 1', '--1', 'nan', 'inf', 0.5, True, None):
        with pytest.raises(ValueError, match='a:1: grade .* must be an integer'):
            parsing.parse_grade('a:1', text)
    with pytest.raises(ValueError, match='has more than 7 digits'):
        parsing.parse_grade('a:1', '-10000000')


def test_a_plain_file_comes_before_a_gzipped_one(tmp_path):
    with pytest.raises(FileNotFoundError, match='x.tsv is missing: the layout .*same with .gz'):
        parsing.find_file(tmp_path, 'x.tsv', 'the layout')
    (tmp_path / 'x.tsv.gz').touch()
    assert parsing.find_file(tmp_path, 'x.tsv', '') == tmp_path / 'x.tsv.gz'
    (tmp_path / 'x.tsv').touch()
    assert parsing.find_file(tmp_path, 'x.tsv', '') == tmp_path / 'x.tsv'


NO_TEXT = {
    'compressed by bzip2': bz2.compress(b'{}\n'),
    'compressed by xz': lzma.compress(b'{}\n'),
    'compressed by zstd': pa.compress(b'{}\n', 'zstd', asbytes=True),
    'compressed by lz4': b'\x04\x22\x4d\x18' + bytes(30),
    'a zip archive': b'PK\x03\x04' + bytes(30),
    'a parquet file': b'PAR1\x15\x04',
    'a pointer of Git LFS': b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\n',
}


@pytest.mark.parametrize('kind', NO_TEXT)
def test_a_file_that_is_no_text_says_what_it_is(tmp_path, kind):
    (tmp_path / 'a.jsonl').write_bytes(NO_TEXT[kind])
    with pytest.raises(ValueError, match=f'a.jsonl is {kind}.*; give the text itself, gzipped or'):
        list(parsing.read_json_lines(tmp_path / 'a.jsonl', base.count_errors({})))


def test_gzip_data_is_read_whatever_the_name_of_the_file(tmp_path):
    (tmp_path / 'a.tsv').write_bytes(gzip.compress(b'PAR1\tx\n'))
    assert list(parsing.read_lines(tmp_path / 'a.tsv', base.raise_error)) == [
        (f'{tmp_path}/a.tsv:1', 'PAR1\tx')
    ]
    (tmp_path / 'b.tsv').write_bytes(b'PAR1\tx\n')
    assert [line for _, line in parsing.read_lines(tmp_path / 'b.tsv', base.raise_error)] == [
        'PAR1\tx'
    ]


@pytest.mark.parametrize('text', [b'a\tb\rc\td\r', b'a\tb\rc\td'])
def test_lines_that_carriage_returns_alone_end_are_told(tmp_path, text):
    (tmp_path / 'a').write_bytes(text)
    with pytest.raises(ValueError, match='a: carriage returns alone end its lines; save the file'):
        list(parsing.read_lines(tmp_path / 'a', base.count_errors({})))
    (tmp_path / 'a').write_bytes(b'a\tb\rc\n')  # One inside of a text is text.
    assert [line for _, line in parsing.read_lines(tmp_path / 'a', base.raise_error)] == ['a\tb\rc']
