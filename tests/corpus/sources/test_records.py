"""Collections of records: roles of fields, the three shapes, and what is reported once."""

import pytest

from jdkd.corpus.sources import base, records

TABLES = {
    'corpus': [{'_id': 1, 'title': 'Moon', 'text': 'is round'}, {'_id': '2', 'text': 'is hot'}],
    'queries': [{'_id': 'a', 'text': 'what is round', 'pos': [1]}, {'_id': 'b', 'text': 'hot'}],
    'qrels': [
        {'query-id': 'a', 'corpus-id': 1, 'score': 1},
        {'query-id': 'b', 'corpus-id': '2', 'score': 2.0},
    ],
    'pairs': [
        {'query': 'q', 'text': 'one', 'short': {'text': ['x', 'y']}},
        {'query': 'q', 'text': 'two', 'short': {'text': 'z'}},
        {'query': 'r', 'text': 'one', 'short': {'text': None}},
    ],
}


def make(tables=TABLES, passages=None, queries='queries', qrels=None, fields=None):
    return records.make_source(
        'tiny',
        lambda table: [f'{table}.1', 'shared'],
        lambda table, on_error: ((f'{table}:{i}', r) for i, r in enumerate(tables[table], 1)),
        passages,
        {'train': queries},
        qrels and {'train': qrels},
        fields,
    )


def read(source, on_error=base.raise_error):
    streams = source.passages, source.queries, source.qrels, source.answers
    return [list(stream(on_error)) for stream in streams]


def test_three_tables():
    source = make(passages='corpus', qrels='qrels')
    passages, queries, qrels, answers = read(source)
    assert passages == [('corpus:1', '1', 'Moon', 'is round'), ('corpus:2', '2', '', 'is hot')]
    assert queries == [
        ('queries:1', 'train', 'a', 'what is round'),
        ('queries:2', 'train', 'b', 'hot'),
    ]
    assert qrels == [('qrels:1', 'train', 'a', '1', 1), ('qrels:2', 'train', 'b', '2', 2)]
    assert answers == []
    assert source.files == ('corpus.1', 'shared', 'queries.1', 'qrels.1')


def test_positives_beside_the_queries():
    tables = TABLES | {'queries': [{'_id': 'a', 'text': 'x', 'pos': [1, '2']}]}
    source = make(tables, passages='corpus', fields={'positives': 'pos'})
    assert list(source.qrels(base.raise_error)) == [
        ('queries:1', 'train', 'a', '1', 1),
        ('queries:1', 'train', 'a', '2', 1),
    ]
    with pytest.raises(ValueError, match="queries:2: there is no field 'pos'; there are _id"):
        read(make(passages='corpus', fields={'positives': 'pos'}))
    # The role is what the reader must name.
    with pytest.raises(ValueError, match=r'in the option fields, \{"fields": \{"positives": "'):
        read(make(passages='corpus', fields={'positives': 'pos'}))


def test_pairs_give_equal_texts_one_id():
    source = make(queries='pairs', fields={'answers': 'short/text'})
    passages, queries, qrels, answers = read(source)
    assert [text for _, _, _, text in passages] == ['one', 'two']
    assert [text for _, _, _, text in queries] == ['q', 'r']
    one, two = (passage_id for _, passage_id, _, _ in passages)
    q, r = (query for _, _, query, _ in queries)
    assert [item[2:] for item in qrels] == [(q, one, 1), (q, two, 1), (r, one, 1)]
    assert [item[2:] for item in answers] == [(q, 'x'), (q, 'y'), (q, 'z')]
    assert one == 'd0d7360ab79f58ab'  # The same in every run.


def test_the_records_of_a_pair_s_query_share_their_answers_and_must_share_its_text():
    pairs = [
        {'id': 'a', 'query': 'who', 'text': 'one', 'answers': ['Bob']},
        {'id': 'a', 'query': 'who', 'text': 'two', 'answers': ['Bob', 'Alice']},
        {'id': 'a', 'query': 'whom', 'text': 'three', 'answers': ['Eve']},
    ]
    source = make(
        {'pairs': pairs}, queries='pairs', fields={'query_id': 'id', 'answers': 'answers'}
    )
    passages, queries, qrels, answers = read(source)
    assert [item[2:] for item in answers] == [('a', 'Bob'), ('a', 'Alice')]
    assert [item[3] for item in qrels] == [passage_id for _, passage_id, _, _ in passages[:2]]
    # An id of two texts, which the import refuses.
    assert [item[2:] for item in queries] == [('a', 'who'), ('a', 'whom')]


def test_answers_of_any_kind_reach_the_import_which_refuses_those_that_are_none():
    pairs = [{'query': 'who', 'text': 'one', 'answers': [['Bob']]}]
    source = make({'pairs': pairs}, queries='pairs', fields={'answers': 'answers'})
    assert [answer for *_, answer in source.answers(base.raise_error)] == [['Bob']]


def test_a_broken_record_is_reported_once_by_each_stream_that_needs_it():
    broken = [{'_id': 'c'}, {'_id': 1.5, 'text': 'x'}, {'text': 'no id'}]
    tables = TABLES | {'queries': TABLES['queries'] + broken}
    counts = {}
    source = make(tables, passages='corpus', qrels='qrels', fields={'answers': 'text'})
    read(source, base.count_errors(counts))
    # 'c' lacks a text to ask and, as answers, a text to give.
    assert counts['broken record']['count'] == 4
    assert counts['broken record']['first'].startswith("queries:3: there is no field 'text'")


NESTED = [
    ({'document': {'title': 'Moon'}}, 'document/title', 'Moon'),
    ({'a': {'b': {'c': 'Moon'}}}, 'a/b/c', 'Moon'),
    ({'a/b': 'Moon'}, 'a/b', 'Moon'),
    ({'a': {'b/c': 'Moon'}}, 'a/b/c', 'Moon'),
    ({'name': 'Moon'}, 'name', 'Moon'),
    ({'document': {'title': None}}, 'document/title', ''),
]


@pytest.mark.parametrize(('inner', 'path', 'title'), NESTED)
def test_a_path_leads_to_titles_as_to_texts(inner, path, title):
    tables = TABLES | {'corpus': [{'_id': '1', 'text': 'x', **inner}, {'_id': '2', 'text': 'y'}]}
    source = make(tables, passages='corpus', qrels='qrels', fields={'title': path})
    passages = list(source.passages(base.raise_error))
    assert passages == [('corpus:1', '1', title, 'x'), ('corpus:2', '2', '', 'y')]
    pairs = TABLES | {'pairs': [{'query': 'q', 'text': 'x', **inner}]}
    source = make(pairs, queries='pairs', fields={'title': path})
    assert [p[2] for p in source.passages(base.raise_error)] == [title]


@pytest.mark.parametrize(
    ('record', 'path'),
    [
        ({'title': 'Moon'}, 'document/title'),
        ({'document': 'Moon'}, 'document/title'),
        ({'document': {'name': 'Moon'}}, 'document/title'),
        ({'document': None}, 'document/title'),
        ({'titel': 'Moon'}, 'Title'),
    ],
)
def test_titles_that_are_named_and_nowhere_are_told(record, path):
    tables = TABLES | {'corpus': [{'_id': '1', 'text': 'x', **record}]}
    source = make(tables, passages='corpus', qrels='qrels', fields={'title': path})
    with pytest.raises(ValueError, match=f"corpus:1: there is no field '{path}'; there are _id"):
        list(source.passages(base.raise_error))


def test_a_path_goes_through_lists():
    """As Tevatron and Hugging Face keep the passages of a query."""
    record = {'_id': 'a', 'text': 'x', 'pos': [{'docid': 1, 'title': 't'}, {'docid': '2'}]}
    answers = {'answers': [{'text': 'Sun'}, {'text': 'Sol'}]}
    tables = TABLES | {'queries': [record | answers]}
    fields = {'positives': 'pos/docid', 'answers': 'answers/text'}
    _, _, qrels, strings = read(make(tables, passages='corpus', fields=fields))
    assert [item[3] for item in qrels] == ['1', '2']
    assert [item[3] for item in strings] == ['Sun', 'Sol']


@pytest.mark.parametrize('grade', [1, 1.0, '1', '1.0', '+1', '1e0'])
def test_one_rule_for_grades(grade):
    tables = TABLES | {'qrels': [{'query-id': 'a', 'corpus-id': 1, 'score': grade}]}
    source = make(tables, passages='corpus', qrels='qrels')
    assert list(source.qrels(base.raise_error)) == [('qrels:1', 'train', 'a', '1', 1)]
    tables['qrels'][0]['score'] = 0.5
    with pytest.raises(ValueError, match='qrels:1: grade 0.5 must be an integer'):
        list(source.qrels(base.raise_error))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'fields': {'id': 'x'}}, "no role 'id'; it has passage_id, title"),
        ({'qrels': 'qrels'}, 'qrels is given without passages; give both or neither'),
        ({'passages': 'corpus'}, 'nothing says what is relevant: give the option qrels'),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        (
            {'_id': '1', 'title': 4, 'text': 'x'},
            "corpus:1: field 'title' must be a string",
        ),
        ({'_id': None, 'text': 'x'}, "field '_id' must be a string or integer, found None"),
        ({'_id': '1', 'text': ['x']}, "field 'text' must be a string"),
    ],
)
def test_refuses_records(record, message):
    source = make(TABLES | {'corpus': [record]}, passages='corpus', qrels='qrels')
    with pytest.raises(ValueError, match=message):
        list(source.passages(base.raise_error))
