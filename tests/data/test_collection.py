"""The collection: what is derived from it, what is refused, and how a split is held out."""

import dataclasses

import numpy as np
import pytest

from jdkd.data import collection as collection_lib
from jdkd.data import sources


def make(**changes) -> collection_lib.Collection:
    fields = {
        'name': 'tiny',
        'passage_ids': ['a', 'b', 'c', 'd'],
        'titles': ['Moon', '', 'Sun', 'moon'],
        'texts': ['is  round', 'Moon is round', 'is hot', 'IS\nROUND '],
        'queries': {'train': {'q1': 'what is round', 'q2': 'what is hot'}, 'test': {'q3': 'sun'}},
        'qrels': {'train': {'q1': {'a': 1}, 'q2': {'c': 2, 'a': 0}}, 'test': {'q3': {'c': 1}}},
        'license': 'CC0',
    }
    return collection_lib.Collection(**(fields | changes))


def test_a_passage_is_title_and_text_as_beir_joins_them():
    c = make(titles=['Moon', '', 'Sun', ''], texts=['is round', 'x', '', ' y '])
    assert [c.passage(i) for i in range(4)] == ['Moon is round', 'x', 'Sun', 'y']


def test_row_and_group():
    c = make()
    assert c.row == {'a': 0, 'b': 1, 'c': 2, 'd': 3}
    # "b" has no title but reads the same as "a"; "d" differs in case and whitespace only.
    np.testing.assert_array_equal(c.group, np.array([0, 0, 2, 0], np.int32))
    assert c.group.dtype == np.int32


def test_labelled_is_in_order_and_needs_a_positive():
    c = make(qrels={'train': {'q2': {'c': 1}, 'q1': {'a': 0}}, 'test': {'q3': {'c': 1}}})
    assert c.labelled('train') == ['q2']
    assert make().labelled('train') == ['q1', 'q2']
    with pytest.raises(ValueError, match="no split 'dev'; it has 'train', 'test'"):
        c.labelled('dev')


@pytest.mark.parametrize(
    'changes',
    [
        {'name': 'other'},
        {'license': None},
        {'passage_ids': ['a', 'b', 'c', 'e']},
        # The same characters, with another border between two items.
        {'texts': ['is  roundM', 'oon is round', 'is hot', 'IS\nROUND ']},
        {
            'queries': {
                'train': {'q1': 'what is round?', 'q2': 'what is hot'},
                'test': {'q3': 'sun'},
            }
        },
        {'qrels': {'train': {'q1': {'a': 2}, 'q2': {'c': 2, 'a': 0}}, 'test': {'q3': {'c': 1}}}},
        {'qrels': {'train': {'q1': {'a': 1, 'c': 2}, 'q2': {'a': 0}}, 'test': {'q3': {'c': 1}}}},
    ],
)
def test_fingerprint_changes_with_every_field(changes):
    assert make().fingerprint == make().fingerprint
    assert make().fingerprint != make(**changes).fingerprint


def test_validate_leaves_a_good_collection_as_it_is():
    assert collection_lib.validate(make()).fingerprint == make().fingerprint


def test_validate_leaves_out_queries_without_a_positive():
    queries = {'train': {'q1': 'one', 'q2': 'two', 'q4': 'four'}}
    qrels = {'train': {'q1': {'a': 1, 'b': 0}, 'q2': {'c': 0}}}
    c = collection_lib.validate(make(queries=queries, qrels=qrels))
    assert c.queries == {'train': {'q1': 'one'}}
    assert c.qrels == {'train': {'q1': {'a': 1, 'b': 0}}}


def test_validate_keeps_empty_passages_so_that_measures_stay_comparable():
    c = collection_lib.validate(make(titles=['', '', 'Sun', ''], texts=[' ', 'x', '', 'y']))
    assert len(c) == 4
    assert c.qrels == make().qrels


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'passage_ids': ['a', 'b', 'a', 'd']}, "passage 2: passage id 'a' occurs a second time"),
        ({'passage_ids': ['a', 'b', 'c', 'd 1']}, "passage 3: passage id 'd 1' .* rename it"),
        ({'passage_ids': ['a', '', 'c', 'd']}, "passage 1: passage id '' is empty"),
        ({'passage_ids': ['a', 'b\x7f', 'c', 'd']}, 'holds whitespace or a control character'),
        ({'passage_ids': ['a', 'b\u2003', 'c', 'd']}, 'holds whitespace or a control character'),
        ({'texts': ['a', '\ud800', 'c', 'd']}, 'passage 1: the text holds a lone surrogate'),
        ({'titles': ['', '']}, '4 passage ids, 2 titles and 4 texts'),
        ({'passage_ids': [], 'titles': [], 'texts': []}, '0 passages and 2 splits'),
        ({'queries': {}, 'qrels': {}}, '4 passages and 0 splits'),
        ({'queries': {'train': {'q\n1': 'x'}}}, r"query 'q\\n1': query id .* rename it"),
        ({'queries': {'train': {'q1': ' '}}}, "query 'q1' has no text"),
        (
            {'queries': {'train': {'q1': 'x', 'q2': 'y'}, 'test': {'q3': 'z', 'q1': 'other'}}},
            "query id 'q1' has another text in another split",
        ),
        ({'qrels': {'train': {'q1': {'z': 1}}}}, "names passage 'z', which does not exist"),
        ({'qrels': {'train': {'q9': {'a': 1}}}}, "names query 'q9', which does not exist"),
        ({'qrels': {'dev': {'q1': {'a': 1}}}}, "names query 'q1', which does not exist"),
        (
            {'qrels': {'train': {'q1': {'a': 1}}, 'test': {'q3': {'c': 0}}}},
            "split 'test' has no query with a positive",
        ),
    ],
)
def test_validate_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        collection_lib.validate(make(**changes))


def test_validate_asks_the_source_for_the_place():
    bad = make(passage_ids=['a', 'b', 'a', 'd'])
    with pytest.raises(ValueError, match="^corpus.jsonl:3: passage id 'a'"):
        collection_lib.validate(bad, lambda kind, key: f'corpus.jsonl:{key + 1}')


def many(n: int, order: int = 1) -> collection_lib.Collection:
    ids = [f'q{i}' for i in range(n)][::order]
    return make(
        queries={'train': {q: f'text {q}' for q in ids}},
        qrels={'train': {q: {'a': 1} for q in ids}},
    )


def test_hold_out_moves_a_fraction_and_loses_nothing():
    before = many(50)
    after = collection_lib.hold_out(before, fraction=0.1)
    assert len(after.queries['dev']) == 5
    assert after.queries['train'] | after.queries['dev'] == before.queries['train']
    assert not set(after.queries['train']) & set(after.queries['dev'])
    for split in ('train', 'dev'):
        assert list(after.qrels[split]) == list(after.queries[split])
    assert list(before.queries) == ['train'] and len(before.queries['train']) == 50


def test_hold_out_depends_on_ids_and_seed_alone():
    held = collection_lib.hold_out(many(50), fraction=0.1).queries['dev']
    assert set(collection_lib.hold_out(many(50, -1), fraction=0.1).queries['dev']) == set(held)
    other = collection_lib.hold_out(many(50), fraction=0.1, seed=1).queries['dev']
    assert set(other) != set(held)
    # sha256 of "0:q0", "0:q1" and "0:q2" begins with 74, cd and 85.
    assert list(collection_lib.hold_out(many(3), fraction=0.1).queries['dev']) == ['q0']


def test_hold_out_leaves_an_existing_split_alone():
    c = make()
    assert collection_lib.hold_out(c, to='test', fraction=0.5) is c


def test_hold_out_never_empties_a_split():
    for fraction in (0.001, 0.999):
        after = collection_lib.hold_out(many(2), fraction=fraction)
        assert [len(after.queries[s]) for s in ('train', 'dev')] == [1, 1]


def test_hold_out_refuses():
    with pytest.raises(ValueError, match='between 0 and 1, not 1.5'):
        collection_lib.hold_out(make(), fraction=1.5)
    with pytest.raises(ValueError, match="has 1 queries, too few to make a split 'dev'"):
        collection_lib.hold_out(make(), 'test', fraction=0.5)
    with pytest.raises(ValueError, match="no split 'training'"):
        collection_lib.hold_out(make(), 'training', fraction=0.5)


@pytest.mark.parametrize('source', ['wiki', 'beir', 'beir:', 'python_docs:x', ''])
def test_load_names_the_known_sources(source):
    with pytest.raises(ValueError, match='use one of python_docs, beir:PATH'):
        sources.load(source)


def test_load_names_the_known_options():
    with pytest.raises(ValueError, match="no option 'size': it has packages, max_passages"):
        sources.load('python_docs', size=3)
    with pytest.raises(ValueError, match="no option 'path': it has name, license"):
        sources.load('beir:x', path='y')


def test_a_collection_is_frozen_and_prints_short():
    c = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.name = 'other'
    assert repr(c) == "Collection('tiny': 4 passages; queries: train 2, test 1)"
