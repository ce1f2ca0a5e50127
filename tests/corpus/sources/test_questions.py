"""Splits of questions and answers beside a source's own."""

import json

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


@pytest.mark.parametrize(
    ('name', 'line', 'message'),
    [
        ('a.csv', 'who', 'a.csv:3: expected question and answers with tabs'),
        ('a.csv', "who\t['x'", "a.csv:3: expected a question and a list .* found 'who' and"),
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
