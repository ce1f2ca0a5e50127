"""Looking up, ordering and packing records in memory; test_dataset reads them from disk."""

import dataclasses

import jax
import numpy as np
import pytest

from jdkd.lists import loader
from jdkd.lists.packing import RowSpec
from jdkd.runtime import mesh as meshes
from jdkd.tokens.store import TokenStore

QUERIES = TokenStore.from_rows(np.array([[1, 5, 2, 0], [1, 6, 7, 2]]), 0)
PASSAGES = TokenStore.from_rows(
    np.array([[1, 8, 2, 0, 0], [1, 2, 0, 0, 0], [1, 3, 4, 5, 2], [1, 9, 9, 2, 0]]), 0
)
RECORDS = {
    'query_row': np.array([0, 1]),
    'passages': np.array([[0, 2], [3, 1]]),
    'dark': np.array([[[1, 4, 2, 0, 0]], [[1, 4, 4, 4, 2]]]),
    'teacher': np.array([[0.5, 0.25], [1.0, 2.0]]),
}
DUAL = loader.DualEncoderTokens(QUERIES, PASSAGES, length=4, sep_id=2)


def numbers(count: int, batches: int, **fields) -> list[list[int]]:
    order = loader.BatchOrder(**{'batch_size': 2, 'seed': [0], **fields})
    order_batches = order.batches(count)
    return [order_batches[k].tolist() for k in range(batches)]


def mesh():
    return meshes.make_mesh(devices=jax.devices()[:1])


def records(count: int) -> list[dict[str, np.ndarray]]:
    return [{name: x[i % 2] for name, x in RECORDS.items()} for i in range(count)]


def test_dual_encoder_tokens_are_cut_and_dark_examples_come_last():
    texts, others = DUAL(RECORDS)
    expected = [
        [[1, 8, 2, 0], [1, 3, 4, 2], [1, 4, 2, 0]],
        [[1, 9, 9, 2], [1, 2, 0, 0], [1, 4, 4, 4]],
    ]
    np.testing.assert_array_equal(texts['tokens'], expected)
    np.testing.assert_array_equal(DUAL.lengths(RECORDS), [[3, 4, 3], [4, 2, 4]])
    assert DUAL.lengths(RECORDS).dtype == np.int32
    assert set(others) == {'query_row', 'teacher', 'query'}
    np.testing.assert_array_equal(others['query'], [[1, 5, 2, 0], [1, 6, 7, 2]])


def test_dark_examples_may_be_left_out():
    plain = dataclasses.replace(DUAL, dark=False)
    texts, others = plain(RECORDS)
    assert texts['tokens'].shape == (2, 2, 4) and 'dark' not in others
    np.testing.assert_array_equal(plain.lengths(RECORDS), [[3, 4], [4, 2]])


@pytest.mark.parametrize('separators', [1, 2])
def test_lengths_of_pairs_are_those_of_their_rows(separators):
    tokens = loader.CrossEncoderTokens(QUERIES, PASSAGES, separators)
    texts, others = tokens(RECORDS)
    real = (texts['tokens'] != 0).sum(axis=-1)
    np.testing.assert_array_equal(tokens.lengths(RECORDS), real)
    np.testing.assert_array_equal(real, np.array([[4, 6], [6, 4]]) + separators)
    assert set(others) == {'query_row', 'dark', 'teacher'}


def test_cross_encoder_rows_join_query_and_passage():
    tokens = loader.CrossEncoderTokens(
        queries=TokenStore.from_rows(np.array([[1, 5, 2, 0]]), 0),
        passages=TokenStore.from_rows(np.array([[1, 8, 2], [1, 2, 0]]), 0),
    )
    records = {'query_row': np.array([0]), 'passages': np.array([[0, 1]])}
    texts, _ = tokens(records)
    np.testing.assert_array_equal(texts['tokens'], [[[1, 5, 2, 8, 2, 0], [1, 5, 2, 2, 0, 0]]])
    np.testing.assert_array_equal(tokens.lengths(records), [[5, 4]])
    np.testing.assert_array_equal(texts['token_types'], [[[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]]])


def test_an_order_depends_on_its_fields_alone():
    assert numbers(5, 2, shuffle=False) == [[0, 1], [2, 3]]
    assert numbers(9, 8) == numbers(9, 8)
    assert numbers(9, 8, seed=[0, 1]) != numbers(9, 8, seed=[1, 0])
    # Of an order of one epoch, the last batch that is not full is dropped.
    assert len(loader.BatchOrder(2, [0], epochs=1).batches(5)) == 2


def test_every_epoch_holds_every_list_in_another_order():
    first, second = numbers(8, 8)[:4], numbers(8, 8)[4:]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(8))
    assert first != second


def test_less_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match='3 candidate lists are less than one batch of 4'):
        loader.BatchOrder(4, [0]).batches(3)


def test_the_packer_fits_the_batches_of_its_steps():
    order = loader.BatchOrder(1, [0], shuffle=False)
    packer = loader.make_row_packer(DUAL, RECORDS, order, RowSpec(lengths=9), mesh(), steps=2)
    assert packer.layout.tiles == ((3, 8),)  # Lengths are rounded up to multiples of 8.
    # Without dark examples, the texts have 4 + 2 tokens in the first batch, 4 + 3 in the second.
    plain = dataclasses.replace(DUAL, dark=False)
    last_first = {name: x[::-1] for name, x in RECORDS.items()}
    shared = RowSpec(shared=6, texts=2)
    for steps in (1, 2):
        packer = loader.make_row_packer(plain, last_first, order, shared, mesh(), steps=steps)
        assert packer.layout.tiles == ((steps, 6),)
    shared = RowSpec(shared=10, texts=3)
    packer = loader.make_row_packer(DUAL, RECORDS, order, shared, mesh(), steps=2)
    assert packer.layout.tiles == ((1, 10),) and packer.layout.slots == 3


def test_batches_hold_packed_rows_and_say_where_texts_lie():
    order = loader.BatchOrder(2, [0], shuffle=False)
    packer = loader.make_row_packer(DUAL, RECORDS, order, RowSpec(lengths=1), mesh(), steps=1)
    batch = next(loader.batches(records(5), packer, order, mesh()))
    texts, others = DUAL(RECORDS)
    (rows,) = batch['tokens']
    np.testing.assert_array_equal(rows[batch['slots'], :4], texts['tokens'])
    np.testing.assert_array_equal(batch['lengths'], DUAL.lengths(RECORDS))
    np.testing.assert_array_equal(batch['query'], others['query'])
    assert 'passages' not in batch


def test_any_number_of_threads_makes_the_same_batches(monkeypatch):
    order = loader.BatchOrder(2, [0])
    packer = loader.make_row_packer(DUAL, RECORDS, order, RowSpec(lengths=1), mesh(), steps=1)

    def made(threads):
        monkeypatch.setattr(loader, '_READERS', threads)
        batches = loader.batches(records(9), packer, order, mesh())
        return [(next(batches), batches.get_state()['next_index']) for _ in range(20)]

    for (one, at), (several, there) in zip(made(1), made(5), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, several)
        assert at == there


def test_assistants_score_all_originals_of_a_batch():
    order = loader.BatchOrder(2, [0], shuffle=False)
    packer = loader.make_row_packer(DUAL, RECORDS, order, RowSpec(lengths=1), mesh(), steps=1)
    scorers = [np.add.outer, np.multiply.outer]
    extra = loader.in_batch(RECORDS['passages'], scorers, [1.0, 0.5])
    batch = next(loader.batches(records(4), packer, order, mesh(), [extra]))
    originals = RECORDS['passages'].ravel()
    expected = [[q + originals, 0.5 * q * originals] for q in RECORDS['query_row']]
    np.testing.assert_array_equal(batch['in_batch'], expected)
    assert batch['in_batch'].dtype == np.float32 and 'slots' in batch


def test_a_process_packs_its_parts_for_the_slots_of_the_whole():
    order = loader.BatchOrder(2, [0], shuffle=False)
    spec = RowSpec(lengths=1, parts=2)
    packer = loader.make_row_packer(DUAL, RECORDS, order, spec, mesh(), steps=1)
    whole = packer(RECORDS)
    second = {name: x[1:] for name, x in RECORDS.items()}
    half = dataclasses.replace(packer, parts=np.array([1]))(second)
    np.testing.assert_array_equal(half['slots'], whole['slots'][1:])
    for own, every in zip(half['tokens'], whole['tokens'], strict=True):
        np.testing.assert_array_equal(own, every[len(every) // 2 :])


def test_batches_hold_lists_of_one_topic_as_far_as_they_fill_them():
    topics = np.array([0, 1, 2, 1, 0, 1, 2, 0, 1, 2, 2, 0])
    epochs = np.array(numbers(12, 9, batch_size=4, topics=topics)).reshape(3, 3, 4)
    for epoch in epochs:
        assert sorted(epoch.ravel()) == list(range(12))  # Each list once an epoch.
        # Three topics of four lists: at most the borders of three batches mix two.
        assert all(len(set(topics[batch])) <= 2 for batch in epoch)
    assert len({epoch.tobytes() for epoch in epochs}) == 3  # Arranged anew.
    again = loader.BatchOrder(4, [0], topics=topics).batches(12)
    np.testing.assert_array_equal(again[7], epochs[2][1])  # Batch k depends on k alone.
    other = numbers(12, 3, batch_size=4, topics=topics, seed=[1])
    assert not np.array_equal(np.array(other), epochs[0])
    assert len(loader.BatchOrder(5, [0], epochs=2, topics=topics).batches(12)) == 4


def test_any_list_may_be_left_out_of_an_epoch_by_topic():
    left = set()
    for epoch in np.array(numbers(5, 40, topics=np.zeros(5, np.int32))).reshape(20, 2, 2):
        left |= set(range(5)) - set(epoch.ravel().tolist())
    assert left == set(range(5))
