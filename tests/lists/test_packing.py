"""Rows of tokens: every text comes back, in any layout, with next to no padding."""

import numpy as np
import pytest

from jdkd.config import RowsConfig
from jdkd.lists import packing
from jdkd.lists.packing import Layout, RowSpec

KINDS = [
    RowSpec(lengths=1),
    RowSpec(lengths=4, parts=4, chunks=3),
    RowSpec(shared=64, texts=5),
    RowSpec(shared=48, texts=2, parts=2, chunks=4),
]


def some_batches(count=5, shape=(8, 6), longest=40, seed=0):
    """Texts of tokens above 0, and their lengths."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        lengths = rng.integers(1, longest + 1, shape)
        tokens = rng.integers(1, 99, (*shape, longest)).astype(np.int32)
        yield np.where(np.arange(longest) < lengths[..., None], tokens, 0), lengths


def texts_in(packed, layout):
    """The texts of all slots, by number."""
    texts = []
    for i, tile in enumerate(packed['tokens']):
        segments = packed['segments'][i] if layout.slots > 1 else tile > 0
        for row, of in zip(tile, segments, strict=True):
            texts += [row[of == 1 + slot] for slot in range(layout.slots)]
    return texts


@pytest.mark.parametrize('rows', KINDS, ids=str)
def test_texts_come_back_from_their_slots(rows):
    batches = list(some_batches())
    layout = packing.fit_layout([lengths for _, lengths in batches], rows)
    for tokens, lengths in batches:
        packed = packing.pack({'tokens': tokens, 'twice': 2 * tokens}, lengths, layout, pad_id=0)
        sizes = [x.shape for x in packed['tokens']]
        assert sizes == [(rows.parts * count, size) for count, size in layout.tiles]
        assert all(count % rows.chunks == 0 for count, _ in layout.tiles)
        slots = texts_in(packed, layout)
        for text, n, slot in zip(
            tokens.reshape(-1, 40), lengths.ravel(), packed['slots'].ravel(), strict=True
        ):
            np.testing.assert_array_equal(slots[slot], text[:n])
        # Nothing else is in the rows, and what goes along lies where the tokens do.
        assert sum((x > 0).sum() for x in packed['tokens']) == lengths.sum()
        for a, b in zip(packed['tokens'], packed['twice'], strict=True):
            np.testing.assert_array_equal(2 * a, b)


@pytest.mark.parametrize('rows', KINDS[1::2], ids=str)
def test_processes_make_the_rows_of_the_whole(rows):
    ((tokens, lengths),) = some_batches(1)
    layout = packing.fit_layout([lengths], rows)
    whole = packing.pack({'tokens': tokens}, lengths, layout, pad_id=0)
    halves = [
        packing.pack({'tokens': x}, y, layout, pad_id=0, parts=parts)
        for x, y, parts in zip(
            np.split(tokens, 2),
            np.split(lengths, 2),
            np.split(np.arange(rows.parts), 2),
            strict=True,
        )
    ]
    for name, expected in whole.items():
        parts = [half[name] for half in halves]
        if name == 'slots':
            np.testing.assert_array_equal(np.concatenate(parts), expected)
        else:
            # Each process has its parts' rows of every tile, in order.
            for tile, (a, b) in zip(expected, zip(*parts, strict=True), strict=True):
                np.testing.assert_array_equal(np.concatenate([a, b]), tile)


def test_the_lengths_of_rows_are_the_tightest():
    lengths = np.array([[40, 39, 12, 9, 8, 3]])
    assert packing.fit_layout([lengths], RowSpec(lengths=1)) == Layout(((6, 40),))
    # 2 x 40 + 4 x 16 tokens; 5 x 40 + 1 x 8 or 4 x 40 + 2 x 8 would be more.
    assert packing.fit_layout([lengths], RowSpec(lengths=2)) == Layout(((2, 40), (4, 16)))
    assert packing.fit_layout([lengths], RowSpec(lengths=9)) == Layout(((2, 40), (2, 16), (2, 8)))
    # The i-th longest of every batch.
    both = [lengths, np.array([[20, 20, 20, 1, 1, 1]])]
    assert packing.fit_layout(both, RowSpec(lengths=9)).tiles == ((2, 40), (1, 24), (1, 16), (2, 8))


def test_shared_rows_hold_next_to_no_padding():
    batches = [lengths for _, lengths in some_batches(20, (64, 16), longest=144)]
    layout = packing.fit_layout(batches, RowSpec(shared=512, texts=16))
    assert np.mean([lengths.sum() for lengths in batches]) / layout.num_tokens > 0.93


def test_texts_that_do_not_fit_are_an_error():
    layout = packing.fit_layout([np.array([[8, 4]])], RowSpec(lengths=2))
    with pytest.raises(ValueError, match='do not fit into the rows'):
        packing.pack({'tokens': np.ones((1, 2, 9))}, np.array([[9, 4]]), layout, pad_id=0)
    with pytest.raises(ValueError, match='40 tokens is longer than rows.shared=32'):
        packing.fit_layout([np.array([[40]])], RowSpec(shared=32, texts=2))
    with pytest.raises(ValueError, match='3 lists do not divide among 2 parts'):
        packing.fit_layout([np.ones((3, 2), int)], RowSpec(parts=2))


def test_defaults_of_rows_are_resolved():
    config = RowsConfig(lengths=3, shared=64, texts=5, parts=0, chunks=2)
    assert packing.resolve_rows(config, 4) == RowSpec(3, 64, 5, parts=4, chunks=2)
    # A model that cannot tell texts apart has one a row.
    assert packing.resolve_rows(config, 4, share=False) == RowSpec(3, 0, 1, parts=4, chunks=2)
    alone = config.replace(shared=0, parts=8)
    assert packing.resolve_rows(alone, 4) == RowSpec(3, 0, 1, parts=8, chunks=2)


@pytest.mark.parametrize(
    ('longest', 'limit', 'expected'), [(1, 99, 8), (8, 99, 8), (9, 99, 16), (17, 20, 20), (0, 9, 0)]
)
def test_lengths_are_multiples_of_eight_within_the_limit(longest, limit, expected):
    assert packing.round_length(longest, limit) == expected


def test_the_fullest_row_with_room_takes_the_next_text():
    lengths = np.array([[6, 5, 3, 3, 2, 1]])
    layout = packing.fit_layout([lengths], RowSpec(shared=10, texts=3))
    assert layout == Layout(((2, 10),), slots=3) and layout.num_tokens == 20
    tokens = np.where(np.arange(6) < lengths[..., None], np.arange(1, 7)[:, None], 0)
    packed = packing.pack({'tokens': tokens}, lengths, layout, pad_id=9)
    # 6 and 5 open rows; 3 joins the 6, 3 and 2 the 5, and 1 the 6, which has a slot left.
    (rows,), (segments,) = packed['tokens'], packed['segments']
    assert rows.tolist() == [[1] * 6 + [3] * 3 + [6], [2] * 5 + [4] * 3 + [5] * 2]
    assert segments.tolist() == [[1] * 6 + [2] * 3 + [3], [1] * 5 + [2] * 3 + [3] * 2]
    assert packed['slots'].tolist() == [[0, 3, 1, 4, 5, 2]]


def test_rows_that_are_full_or_out_of_slots_take_no_more():
    lengths = np.array([[4, 4, 1, 1, 1]])
    assert packing.fit_layout([lengths], RowSpec(shared=8, texts=2)).tiles == ((3, 8),)
    assert packing.fit_layout([lengths], RowSpec(shared=8, texts=3)).tiles == ((2, 8),)
    assert packing.fit_layout([lengths], RowSpec(shared=4, texts=9)).tiles == ((3, 4),)
    # Rows are made a multiple of the chunks.
    assert packing.fit_layout([lengths], RowSpec(shared=8, texts=2, chunks=2)).tiles == ((4, 8),)


def test_the_padding_token_pads_tokens_alone():
    lengths = np.array([[3, 1]])
    layout = packing.fit_layout([lengths], RowSpec(lengths=1))
    texts = {name: np.array([[[5, 6, 7], [8, 0, 0]]]) for name in ('tokens', 'token_types')}
    packed = packing.pack(texts, lengths, layout, pad_id=9)
    assert packed['tokens'][0].tolist() == [[5, 6, 7, 9, 9, 9, 9, 9], [8] + [9] * 7]
    assert packed['token_types'][0].tolist() == [[5, 6, 7, 0, 0, 0, 0, 0], [8] + [0] * 7]
