"""Rows of token stores: padding, cutting, and lengths that are stored."""

import numpy as np

from jdkd.tokens.store import TokenStore, row_offsets


def test_rows_are_padded_and_cut_with_their_separator(tokenizer):
    store = tokenizer.encode(['a list', 'length of a list of a list', ''], 6)
    np.testing.assert_array_equal(
        store.rows(np.arange(3)), [[1, 12, 10, 2, 0, 0], [1, 7, 8, 9, 12, 2], [1, 2, 0, 0, 0, 0]]
    )
    assert store.dtype == np.uint16
    np.testing.assert_array_equal(store.lengths, [4, 6, 2])
    np.testing.assert_array_equal(store[0], [1, 12, 10, 2])


def test_rows_of_a_store_have_any_shape_and_length(tokenizer):
    store = tokenizer.encode(['a list', 'length of a list of a list', ''], 6)
    np.testing.assert_array_equal(
        store.rows([[1, 0], [2, 1]], 3),
        [[[1, 7, 8], [1, 12, 10]], [[1, 2, 0], [1, 7, 8]]],
    )
    # Cut rows end as whole ones do; [1, 2] is whole.
    np.testing.assert_array_equal(
        store.rows([1, 0, 2], 3, end=2), [[1, 7, 2], [1, 12, 2], [1, 2, 0]]
    )
    np.testing.assert_array_equal(store.rows([0, 1], 8, end=2)[:, 4:], [[0] * 4, [12, 2, 0, 0]])


def test_a_padding_token_that_a_text_spells_out_is_text(tokenizer):
    store = tokenizer.encode(['a [PAD] list [PAD]', '[PAD]'], 8)
    np.testing.assert_array_equal(store.lengths, [6, 3])
    rows = store.rows([0, 1])
    np.testing.assert_array_equal(rows, [[1, 12, 0, 10, 0, 2, 0, 0], [1, 0, 2, 0, 0, 0, 0, 0]])
    again = TokenStore.from_rows(rows, 0)
    np.testing.assert_array_equal(again.ids, store.ids)
    np.testing.assert_array_equal(again.offsets, store.offsets)


def test_offsets_are_where_texts_begin_and_the_last_ends():
    np.testing.assert_array_equal(row_offsets(np.array([2, 0, 3], np.int32)), [0, 2, 2, 5])
    assert row_offsets(np.array([2**31 - 1] * 2, np.int32)).tolist()[-1] == 2**32 - 2
