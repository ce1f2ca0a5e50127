"""Sources by name."""

import pytest

from jdkd.corpus.sources import registry


@pytest.mark.parametrize('source', ['wiki', 'beir', 'beir:', 'python_docs:x', ''])
def test_names_the_known_sources(source):
    with pytest.raises(ValueError, match='use one of python_docs, beir:PATH'):
        registry.open_source(source)


def test_names_the_known_options():
    with pytest.raises(ValueError, match="no option 'size': it has packages, max_passages"):
        registry.open_source('python_docs', size=3)
    with pytest.raises(ValueError, match="no option 'path': it has unjudged, name, license"):
        registry.open_source('beir:x', path='y')


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        (
            'msmarco:x',
            {'splits': ['dev']},
            r'splits is .* must be a mapping {name: text or a tuple',
        ),
        ('msmarco:x', {'splits': 'dev'}, 'splits is dev, but must be a mapping'),
        ('msmarco:x', {'splits': {'dev': 3}}, 'splits is .* must be a mapping'),
        (
            'tables:x',
            {'queries': 'q.jsonl'},
            'queries is q.jsonl, but must be a mapping {name: text}',
        ),
        ('tables:x', {'queries': None}, 'queries is None, but must be a mapping'),
        ('tables:x', {'queries': {'test': 'q'}, 'qrels': 'r'}, 'qrels is r, but must be a mapping'),
        ('tables:x', {'queries': {'test': 'q'}, 'fields': {'text': 3}}, 'fields is .* or None}'),
        ('tables:x', {'queries': {'test': 'q'}, 'passages': ['p']}, 'passages is .* must be text'),
        ('beir:x', {'unjudged': True}, 'unjudged is True, but must be text or None'),
        ('beir:x', {'questions': 'nq.csv'}, 'questions is nq.csv, but must be a mapping'),
        ('irds:x', {'splits': {'test': 3}}, 'splits is .* must be a mapping'),
        ('python_docs', {'max_passages': '9'}, 'max_passages is 9, but must be a whole number'),
        ('python_docs', {'packages': 'json'}, 'packages is json, but must be a tuple of items'),
    ],
)
def test_options_of_another_type_are_told(source, options, message):
    with pytest.raises(ValueError, match=f'collection.options.{message}'):
        registry.open_source(source, **options)


def test_lists_of_json_are_tuples():
    assert registry.open_source('python_docs', packages=['json']).name == 'python_docs'


@pytest.mark.parametrize('path', ['https://example.org/scifact.zip', 'gs://bucket/scifact'])
def test_a_url_is_no_directory(path):
    with pytest.raises(ValueError, match=f"collection.source='{path}' is no local directory"):
        registry.open_source(f'beir:{path}')
