"""Rows of TSV and CSV files, headers, and judgements, as csv, BEIR and pytrec_eval read them."""

import csv
import io

import pytest
import pytrec_eval

from jdkd.corpus.sources import base, rows

COLUMNS = 'id', 'text'
BOM = '\ufeff'


def write(path, text: str):
    path.write_bytes(text.encode())
    return path


def judged(path, on_error=base.raise_error):
    qrels = {}
    for _, query, passage, grade in rows.read_judgements(path, on_error):
        qrels.setdefault(query, {})[passage] = grade
    return qrels


def as_beir(text: str):
    """What BEIR's GenericDataLoader reads: csv, without the first row."""
    reader = csv.reader(io.StringIO(text), delimiter='\t', quoting=csv.QUOTE_MINIMAL)
    next(reader)
    qrels = {}
    for query, passage, grade in reader:
        qrels.setdefault(query, {})[passage] = int(grade)
    return qrels


BEIR = {
    'as published': 'query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n7\t007\t2\n',
    'with quoted fields': 'query-id\tcorpus-id\tscore\n"q1"\t"d1"\t"1"\nq2\t"d""2"\t1\n',
    'with quoted names': '"query-id"\t"corpus-id"\t"score"\nq1\td1\t1\n',
    'with names of its own': 'qid\tdocid\trelevance\nq1\td1\t1\n',
    'with Windows lines': 'query-id\tcorpus-id\tscore\r\nq1\td1\t1\r\nq2\td1\t2\r\n',
    'with ids that look like numbers': 'query-id\tcorpus-id\tscore\n1e5\tNaN\t1\n0x1\t1.0\t2\n',
}


@pytest.mark.parametrize('text', BEIR.values(), ids=BEIR)
def test_three_columns_are_read_as_beir_reads_them(tmp_path, text):
    assert judged(write(tmp_path / 'a', text)) == as_beir(text.replace('\r\n', '\n'))
    assert judged(write(tmp_path / 'a', BOM + text)) == as_beir(text.replace('\r\n', '\n'))


TREC = {
    'with spaces': '1 0 d1 1\n1 0 d2 0\n2 0 d1 3\n',
    'with tabs': '1\t0\td1\t1\n1\t0\td2\t-1\n',
    'with both': '1 0\td1  1\n2\t0 d2\t2\n',
    'with Q0 and more': '1 Q0 d1 1\n2 5 d2 2\n',
    'with spaces around': ' 1 0 d1 1 \n 2 0 d2 2\n',
    'with ids that look like numbers': '007 0 1e5 1\n1.0 0 NaN 2\n',
}


@pytest.mark.parametrize('text', TREC.values(), ids=TREC)
def test_four_columns_are_read_as_trec_eval_reads_them(tmp_path, text):
    expected = dict(pytrec_eval.parse_qrel(io.StringIO(text)))
    assert judged(write(tmp_path / 'a', text)) == expected
    windows = text.replace('\n', '\r\n') + '\r\n'
    assert judged(write(tmp_path / 'a', windows)) == expected
    assert judged(write(tmp_path / 'a', 'query iter passage grade\n' + text)) == expected


@pytest.mark.parametrize('value', ['1.0', '1.', '1e0', '+1', '01', '1.000e+00', '"1"', ' 1 '])
def test_whole_numbers_are_grades_however_they_are_written(tmp_path, value):
    text = f'q\td\t{value}\n'
    assert judged(write(tmp_path / 'a', text)) == {'q': {'d': 1}}
    assert judged(write(tmp_path / 'a', 'query-id\tcorpus-id\tscore\n' + text)) == {'q': {'d': 1}}


NAMED = {
    'in another order': 'corpus-id\tquery-id\tscore\n10\t0\t1\n0\t10\t2\n',
    'with the index of pandas': '\tquery-id\tcorpus-id\tscore\n10\t0\t10\t1\n0\t10\t0\t2\n',
    'with a column after them': 'qid\tdocid\trel\tsplit\n0\t10\t1\ttest\n10\t0\t2\ttest\n',
    'with a column between': 'topic rank docno label\n0 7 10 1\n10 8 0 2\n',
    'for rows of another width': 'qid docid rel\n0 7 10 1\n10 8 0 2\n',
}


@pytest.mark.parametrize('text', NAMED.values(), ids=NAMED)
def test_columns_are_where_the_header_row_names_them(tmp_path, text):
    assert judged(write(tmp_path / 'a', text)) == {'0': {'10': 1}, '10': {'0': 2}}


@pytest.mark.parametrize('text', ['', '\n \n', 'query-id\tcorpus-id\tscore\n', 'h\th\tscore'])
def test_a_file_without_a_judgement_is_told(tmp_path, text):
    with pytest.raises(ValueError, match='a: there is no judgement in it; write query id, passage'):
        judged(write(tmp_path / 'a', text))


def test_a_first_row_with_a_bad_grade_is_no_header(tmp_path):
    with pytest.raises(ValueError, match="a:1: grade 'relevant' must be an integer"):
        judged(write(tmp_path / 'a', 'q1\td1\trelevant\nq2\td2\t1\n'))


@pytest.mark.parametrize('text', ['q\td\t1\n', 'q d 1\n', 'q\td\t1\t\t\n', '\n\nq\td\t1\n'])
def test_a_first_row_that_is_a_judgement_is_read(tmp_path, text):
    assert judged(write(tmp_path / 'a', text)) == {'q': {'d': 1}}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('q\td\t0.5\n', "a:1: grade '0.5' must be an integer"),
        ('q\td\tnan\n', "a:1: grade 'nan' must be an integer"),
        ('h\th\tscore\nq\td\thigh\n', "a:2: grade 'high' must be an integer"),
        ('h\th\tscore\nq\td\t\n', "a:2: grade '' must be an integer"),
        ('q d\n', 'a:1: expected query id, passage id and grade, or query id, 0, .* found 2 field'),
        ('q 0 d 1\nq d 1\n', 'a:2: expected 4 fields as above, .*, found 3'),
        ('q\td\t1\nq\t0\td\t1\n', 'a:2: expected 3 fields as above, .*, found 4'),
        ('q 0 d 1 more\n', 'found 5 field'),
    ],
)
def test_names_the_line_of_a_judgement(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        judged(write(tmp_path / 'a', text))


CSV = {
    'quoted fields': '"who, me?"\t"[\'a\']"\n',
    'doubled quotation marks': '"who said ""hi"""\t"x ""y"" z"\n',
    'a delimiter inside': '"one\ttwo"\tthree\n',
    'lines inside': '"one\n\ntwo"\t"three\nfour"\nfive\tsix\n',
    'quotation marks inside plain fields': 'the "sun" is\t5" wide\n',
    'text after a closing mark': '"the sun" is\twhat\nmoon\tx\n',
    'lines inside, and text after a closing mark': 'a\t"first\nsecond" line\nb\tc\n',
    'empty fields': '\tx\n""\t""\ny\t\n',
    'blank lines': 'a\tb\n\n\nc\td\n',
    'Windows lines': '"a\r\nb"\tc\r\nd\te\r\n',
}


@pytest.mark.parametrize('text', CSV.values(), ids=CSV)
def test_csv_is_read_as_the_csv_module_reads_it(tmp_path, text):
    plain = text.replace('\r\n', '\n')
    expected = [row for row in csv.reader(io.StringIO(plain), delimiter='\t') if any(row)]
    found = list(rows.read_csv(write(tmp_path / 'a', text), base.raise_error))
    assert [fields for _, fields in found] == expected
    commas = plain.replace(',', ';').replace('\t', ',')
    found = rows.read_csv(write(tmp_path / 'a', BOM + commas), base.raise_error, ',')
    expected = [row for row in csv.reader(io.StringIO(commas)) if any(row)]
    assert [fields for _, fields in found] == expected


def test_a_row_of_csv_stands_where_it_begins(tmp_path):
    file = write(tmp_path / 'a', 'a\tb\n"c\nd"\te\nf\tg\n')
    places = [where for where, _ in rows.read_csv(file, base.raise_error)]
    assert places == [f'{file}:1', f'{file}:2', f'{file}:4']


def test_a_field_that_is_never_closed_is_told(tmp_path):
    file = write(tmp_path / 'a', 'a\tb\n"c\td\ne\tf\n')
    found, counts = [], {}
    found += rows.read_csv(file, base.count_errors(counts))
    assert [fields for _, fields in found] == [['a', 'b']]
    assert counts['broken line']['first'].startswith(f'{file}:2: a quotation mark opens a field')


def fields_of(path, text, on_error=base.raise_error):
    return [fields for _, fields in rows.read_fields(write(path, text), COLUMNS, on_error)]


HEADERS = ['id\ttext', 'pid\tpassage', 'docid\tcontents', 'passage_id\tpassage text', 'qid\tquery']
HEADERS += ['#id\tbody', '_id\ttext', 'DOCNO\tTEXT', '"id"\t"text"', 'doc-id\tdocument_text']


@pytest.mark.parametrize('header', HEADERS)
def test_a_header_row_is_no_passage(tmp_path, header, caplog):
    assert fields_of(tmp_path / 'a', f'{header}\n1\tone\n') == [['1', 'one']]
    assert fields_of(tmp_path / 'a', f'{BOM}{header}\r\n1\tone\r\n') == [['1', 'one']]
    assert 'a:1: left out the header row' in caplog.text


NO_HEADERS = [
    '0\ttext',
    'd1\tid',
    'id\tAn id names a thing.',
    'number\ta mathematical object used to',
]
NO_HEADERS += ['idea\ttext', 'id\t7', 'p1\tpassage']


@pytest.mark.parametrize('row', NO_HEADERS)
def test_a_passage_is_no_header_row(tmp_path, row):
    assert fields_of(tmp_path / 'a', f'{row}\n1\tone\n') == [row.split('\t'), ['1', 'one']]


def test_quotation_marks_are_text_unless_ids_have_them(tmp_path):
    """MS MARCO's files are no CSV."""
    text = '0\t"The Manhattan Project."\n1\tsay ""hi"" to 5" disks\n2\t"open\n'
    expected = [line.split('\t') for line in text.splitlines()]
    assert fields_of(tmp_path / 'a', text) == expected
    quoted = '"0"\t"The ""Manhattan"" Project."\n"1"\t"two\nlines\tand a tab"\n'
    expected = list(csv.reader(io.StringIO(quoted), delimiter='\t'))
    assert fields_of(tmp_path / 'a', quoted) == expected


def test_rows_of_other_widths_are_reported_and_left_out(tmp_path):
    counts = {}
    text = 'q1\tsome text\nq2\nq3\tx\ty\n \nq4\t\n'
    found = fields_of(tmp_path / 'a', text, base.count_errors(counts))
    assert found == [['q1', 'some text'], ['q4', '']]
    assert counts['broken line']['count'] == 2
    assert counts['broken line']['first'].endswith(
        'a:2: expected id and text with tabs between them, found 1 field(s).'
    )
