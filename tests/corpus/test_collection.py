"""The collection: what is derived from it, what is refused, and how a split is held out."""

import dataclasses

import numpy as np
import pytest

from jdkd.config import CollectionConfig
from jdkd.corpus import collection as collection_lib
from jdkd.corpus import importing
from jdkd.corpus.passages import Passages

COLUMNS = {
    'ids': ['a', 'b', 'c', 'd'],
    'titles': ['Moon', '', 'Sun', 'moon'],
    'texts': ['is  round', 'Moon is round', 'is hot', 'IS\nROUND '],
}


def make(**changes) -> collection_lib.Collection:
    columns = {name: changes.pop(name, column) for name, column in COLUMNS.items()}
    fields = {
        'name': 'tiny',
        'passages': Passages.from_columns(**columns),
        'queries': {'train': {'q1': 'what is round', 'q2': 'what is hot'}, 'test': {'q3': 'sun'}},
        'qrels': {'train': {'q1': {'a': 1}, 'q2': {'c': 2, 'a': 0}}, 'test': {'q3': {'c': 1}}},
        'license': 'CC0',
    }
    return collection_lib.Collection(**(fields | changes))


def test_a_passage_is_title_and_text_as_beir_joins_them():
    c = make(titles=['Moon', '', 'Sun', ''], texts=['is round', 'x', '', ' y '])
    assert [c.passages[i] for i in range(4)] == ['Moon is round', 'x', 'Sun', 'y']


def test_row_and_group():
    c = make()
    assert dict(c.id_index) == {'a': 0, 'b': 1, 'c': 2, 'd': 3}
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
        {'answers': {'train': {'q1': ['yes']}}},
        {'license': None},
        {'ids': ['a', 'b', 'c', 'e']},
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


def many(n: int, order: int = 1) -> collection_lib.Collection:
    ids = [f'q{i}' for i in range(n)][::order]
    return make(
        queries={'train': {q: f'text {q}' for q in ids}},
        qrels={'train': {q: {'a': 1} for q in ids}},
    )


def test_hold_out_moves_a_fraction_and_loses_nothing():
    before = many(400)
    after = collection_lib.hold_out(before, fraction=0.1)
    assert len(after.queries['dev']) == 40
    assert after.queries['train'] | after.queries['dev'] == before.queries['train']
    assert not set(after.queries['train']) & set(after.queries['dev'])
    for split in ('train', 'dev'):
        assert list(after.qrels[split]) == list(after.queries[split])
    assert list(before.queries) == ['train'] and len(before.queries['train']) == 400


def test_hold_out_takes_more_of_few():
    for count, moved in ((200, 32), (64, 32), (50, 25), (2, 1)):
        assert len(collection_lib.hold_out(many(count), fraction=0.1).queries['dev']) == moved


def test_ids_of_a_numbered_list_pair():
    qrels = {'train': {'p0': {'p0': 1}, 'q1': {'p1': 1}}, 'test': {'p2': {'p2': 0, 'p1': 2}}}
    passages = Passages.from_columns(['p0', 'p1', 'p2'], [''] * 3, ['a', 'b', 'c'])
    collection = collection_lib.Collection('c', passages, {}, qrels)
    assert not collection_lib.pairs_ids(collection)  # One of two: by chance.
    qrels['test']['p2']['p2'] = 1
    assert collection_lib.pairs_ids(collection)
    qrels['train']['p0']['p0'] = qrels['test']['p2']['p2'] = -1
    assert not collection_lib.pairs_ids(collection)


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


def test_queries_whose_text_occurs_again_are_not_held_out():
    texts = {'q0': 'a', 'q1': ' A ', 'q2': 'b', 'q3': 'c', 'q4': 'd\nd', 'q5': 'e'}
    queries = {'train': texts, 'test': {'t0': 'B', 't1': 'D d'}}
    qrels = {'train': {q: {'a': 1} for q in texts}, 'test': {'t0': {'a': 1}}}
    for seed in range(5):
        after = collection_lib.hold_out(make(queries=queries, qrels=qrels), fraction=0.9, seed=seed)
        assert set(after.queries['dev']) == {'q3', 'q5'}
        assert set(after.queries['train']) == {'q0', 'q1', 'q2', 'q4'}
    only = {'train': {'q0': 'a', 'q1': 'a'}}
    with pytest.raises(ValueError, match="every labelled query of split 'train' .* has the text"):
        collection_lib.hold_out(make(queries=only, qrels=qrels), fraction=0.5)


def test_d_eval_has_no_query_of_train_or_test():
    spec = CollectionConfig()
    queries = {
        'train': {'q0': 'what is a', 'q1': 'what is b'},
        'dev': {'d0': 'What  is a', 'd1': 'own', 'd2': 'own', 'd3': 'is  C?', 'd4': 'own too'},
        'test': {'t0': 'is c?'},
    }
    qrels = {split: {q: {'a': 1} for q in queries[split]} for split in queries}
    after = importing.prepare_for_training(make(queries=queries, qrels=qrels), spec, seed=0)
    assert after.labelled('dev') == ['d1', 'd4']
    assert [after.queries[s] for s in ('train', 'test')] == [queries['train'], queries['test']]
    queries['dev'] = {'d0': 'what is A'}
    with pytest.raises(ValueError, match="every query of split 'dev' .* as collection.eval_split"):
        importing.prepare_for_training(make(queries=queries, qrels=qrels), spec, seed=0)


def test_hold_out_refuses():
    with pytest.raises(ValueError, match='between 0 and 1, not 1.5'):
        collection_lib.hold_out(make(), fraction=1.5)
    with pytest.raises(ValueError, match="has 1 queries, too few to make a split 'dev'"):
        collection_lib.hold_out(make(), 'test', fraction=0.5)
    with pytest.raises(ValueError, match="no split 'training'"):
        collection_lib.hold_out(make(), 'training', fraction=0.5)


def test_hold_out_takes_the_answers_along_and_leaves_unlabelled_queries():
    before = many(4)
    before = dataclasses.replace(
        before,
        queries={'train': {**before.queries['train'], 'unlabelled': 'text'}},
        answers={'train': {q: [f'answer of {q}'] for q in before.queries['train']}},
    )
    after = collection_lib.hold_out(before, fraction=0.5)
    for split in ('train', 'dev'):
        assert {q: [f'answer of {q}'] for q in after.labelled(split)} == after.answers[split]
        assert len(after.labelled(split)) == 2
    assert 'unlabelled' in after.queries['train']


def test_a_share_of_the_labels_is_kept_and_a_larger_share_keeps_them_too():
    before = many(50)
    tenth, half = (collection_lib.keep_labels(before, 'train', share=share) for share in (0.1, 0.5))
    assert tenth.queries == half.queries == before.queries
    assert len(tenth.labelled('train')) == 5 and len(half.labelled('train')) == 25
    assert set(tenth.labelled('train')) < set(half.labelled('train'))
    other = collection_lib.keep_labels(before, 'train', share=0.1, seed=1)
    assert other.labelled('train') != tenth.labelled('train')
    assert len(collection_lib.keep_labels(before, 'train', share=1e-6).labelled('train')) == 1
    assert collection_lib.keep_labels(before, 'train', share=1.0) is before
    left = collection_lib.drop_unlabelled(tenth, 'train')
    assert list(left.queries['train']) == tenth.labelled('train') == left.labelled('train')
    assert len({c.fingerprint for c in (before, tenth, half, left)}) == 4


def test_an_answer_makes_a_query_measurable():
    c = make(qrels={'train': {'q2': {'c': 1}, 'q1': {'a': 0}}}, answers={'train': {'q1': ['yes']}})
    assert c.measurable('train') == ['q1', 'q2'] and c.labelled('train') == ['q2']


def test_a_collection_is_frozen_and_prints_short():
    c = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.name = 'other'
    assert repr(c) == "Collection('tiny': 4 passages; queries: train 2, test 1)"
