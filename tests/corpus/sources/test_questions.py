"""Splits of questions and answers beside a source's own."""

import ast
import csv
import io
import json

import numpy as np
import pytest

from jdkd.corpus import building, storage
from jdkd.corpus.sources import registry

LINES = "who is hot\t['the Sun', \"Sol's\"]\nwhat is round\t['Moon']\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'collection.tsv').write_text('0\tThe Sun is hot\n')
    (tmp_path / 'queries.train.tsv').write_text('1\twhat is hot\n')
    (tmp_path / 'qrels.train.tsv').write_text('1 0 0 1\n')
    return tmp_path


def load(root, name, text, on_error='stop'):
    (root / name).write_text(text)
    out = root / f'out{len(list(root.iterdir()))}'
    out.mkdir()
    source = registry.open_source(f'msmarco:{root}', questions={'test': str(root / name)})
    assert root / name in source.files
    building.build_collection(source, out, on_error=on_error)
    return storage.open_collection(out)


def test_both_formats(root):
    c = load(root, 'nq-test.qa.csv', LINES)
    assert c.queries == {
        'train': {'1': 'what is hot'},
        'test': {'test:1': 'who is hot', 'test:2': 'what is round'},
    }
    assert c.answers == {'test': {'test:1': ['the Sun', "Sol's"], 'test:2': ['Moon']}}
    assert c.measurable('test') == ['test:1', 'test:2'] and c.labelled('test') == []
    entries = [('who is hot', ['the Sun', "Sol's"]), ('what is round', ['Moon'])]
    lines = (json.dumps({'question': q, 'answer': a}) + '\n' for q, a in entries)
    assert load(root, 'NQ-open.jsonl', ''.join(lines)).fingerprint == c.fingerprint


QA = {
    'plain': "who is hot\t['the Sun', 'Sol']\n",
    'a quoted question': '"who said ""hi"""\t[\'Ann\']\n',
    'quoted answers': """who\t"['the ""Sun""', 'Sol']"\n""",
    'quoted tabs and lines': "\"who\nis\thot\"\t\"['a'\n, 'b']\"\nwho else\t['c']\n",
    'marks inside': 'what is 5" wide and "hot"\t["a \'disk\'", \'b\']\n',
    'text after a closing mark': '"the sun" is what\t[\'star\']\n',
    'tuples': "who\t('a', 'b')\n",
    'escapes': "who\t['caf\\xe9', 'it\\'s']\n",
    'Windows lines': 'who\t[\'a\']\r\n"what"\t"[\'b\']"\r\n',
}


@pytest.mark.parametrize('text', QA.values(), ids=QA)
def test_dprs_csv_is_read_as_dpr_reads_it(root, text):
    """By the csv module, and the answers as Python reads them."""
    c = load(root, 'x.qa.csv', text)
    rows = list(csv.reader(io.StringIO(text.replace('\r\n', '\n')), delimiter='\t'))
    assert list(c.queries['test'].values()) == [question for question, _ in rows]
    expected = [list(ast.literal_eval(answers)) for _, answers in rows]
    assert list(c.answers['test'].values()) == expected


@pytest.mark.parametrize(
    ('answers', 'expected'),
    [
        ("['a' 'b']", ['a', 'b']),  # As numpy prints an array.
        ("""['New York' "Bob's"]""", ['New York', "Bob's"]),
        ("['a', 'b' 'c']", ['a', 'b', 'c']),
        ("\"['a' 'b'\n 'c']\"", ['a', 'b', 'c']),
        ("('a' 'b')", ['a', 'b']),
        ("['a','b',]", ['a', 'b']),
        (str(np.array(['the Sun', 'Sol'])), ['the Sun', 'Sol']),
        (json.dumps(['caf\u00e9', '\U0001f600', 'a/b']), ['caf\u00e9', '\U0001f600', 'a/b']),
    ],
)
def test_strings_beside_each_other_are_several_answers(root, answers, expected):
    if answers.startswith('[') and '"' in answers:  # As the csv module writes them.
        answers = '"{}"'.format(answers.replace('"', '""'))
    c = load(root, 'x.csv', f'who\t{answers}\n')
    assert c.answers['test'] == {'test:1': expected}


@pytest.mark.parametrize('header', ['question\tanswers', 'Question\tAnswer', 'query\tanswers'])
def test_a_header_row_is_no_question(root, header, caplog):
    c = load(root, 'x.csv', f'\ufeff{header}\n{LINES}')
    assert list(c.queries['test']) == ['test:2', 'test:3']
    assert 'x.csv:1: left out the header row' in caplog.text


def test_commas_may_separate_the_columns(root):
    c = load(root, 'x.csv', 'question,answers\n"who, me","[\'a\', \'b\']"\n')
    assert c.queries['test'] == {'test:2': 'who, me'} and c.answers['test']['test:2'] == ['a', 'b']


@pytest.mark.parametrize(
    ('name', 'line', 'message'),
    [
        ('a.csv', 'who', 'a.csv:3: expected question and answers with tabs'),
        ('a.csv', "who\t['x'", "a.csv:3: expected a question and a list .* found 'who' and"),
        ('a.csv', "who\t['a' ... 'b']", 'a.csv:3: expected a question and a list'),
        ('a.csv', "who\t[f'{x}']", 'a.csv:3: expected a question and a list'),
        ('a.csv', "who\t['x'] * 3", 'a.csv:3: expected a question and a list'),
        ('a.csv', '"who\t[]', 'a.csv:3: a quotation mark opens a field here that none closes'),
        ('a.csv', 'who\t[]', 'a.csv:3: expected a question and a list of its answers'),
        ('a.csv', "who\t__import__('os')", 'a.csv:3: expected a question and a list'),
        ('a.csv', 'who\t[3]', 'a.csv:3: answer 3 must be a string'),
        ('a.csv', " \t['x']", "a.csv:3: query 'test:3' has no text"),
    ],
)
def test_names_file_and_line_or_leaves_the_question_out(root, name, line, message):
    with pytest.raises(ValueError, match=message):
        load(root, name, f'{LINES}{line}\n')
    assert len(load(root, name, f'{LINES}{line}\n', on_error='skip').measurable('test')) == 2


def test_a_missing_file(root):
    with pytest.raises(FileNotFoundError, match='b.csv is missing; the option questions names it'):
        registry.open_source(f'msmarco:{root}', questions={'test': str(root / 'b.csv')})
