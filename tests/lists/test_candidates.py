"""Candidate lists: what may be a negative, and that every draw depends on its item alone."""

import functools

import numpy as np
import pytest

from jdkd.lists import candidates
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts

GROUP = np.array([0, 1, 2, 3, 3, 5, 6, 7], np.int32)  # passages 3 and 4 have one text


def draw(
    rows,
    *,
    pool,
    positives=None,
    best=None,
    num_negatives=2,
    ranked=None,
    closed=False,
    seed=0,
    round_index=0,
    copies=None,
):
    rows = np.asarray(rows)
    positives = positives or [np.array([0]), np.array([1]), np.array([4])]
    return candidates.sample_lists(
        rows,
        np.zeros(len(rows), np.int32) if copies is None else np.asarray(copies),
        query_ids=['a', 'b', 'c'],
        positives=positives,
        best=best or positives,
        pool=pool,
        group=GROUP,
        num_negatives=num_negatives,
        ranked=ranked,
        closed=closed,
        seed=seed,
        round_index=round_index,
    )


def test_pool_leaves_out_positives_equal_texts_and_repeats():
    rankings = [np.array([[3, 0, 5, 6]]), np.array([[4, 5, 7, -1]])]
    pool = candidates.mined_passages(rankings, [np.array([0])], GROUP, depth=3)
    np.testing.assert_array_equal(pool, [[3, 5, 7, -1, -1, -1]])  # first, then second passages
    pool = candidates.mined_passages(rankings, [np.array([4])], GROUP, depth=3)
    np.testing.assert_array_equal(pool, [[0, 5, 7, -1, -1, -1]])  # 3 reads like the positive


def test_the_first_of_every_ranking_comes_before_the_second_of_any():
    rankings = [np.array([[3, 0, 5], [7, 2, 1]]), np.array([[6, 7, 1], [5, 6, 0]])]
    pool = candidates.mined_passages(rankings, [np.array([0]), np.array([1])], GROUP, depth=3)
    np.testing.assert_array_equal(pool, [[3, 6, 7, 5, 1, -1], [7, 5, 2, 6, 0, -1]])


def test_a_ranking_that_ends_early_hides_no_passage():
    rankings = [np.array([[-1, -1]]), np.array([[2, 7]])]
    pool = candidates.mined_passages(rankings, [np.array([0])], GROUP, depth=2)
    np.testing.assert_array_equal(pool, [[2, 7, -1, -1]])  # -1 is not the last passage.
    np.testing.assert_array_equal(candidates.interleave(rankings, GROUP, depth=2), [[2, 7]])


def test_the_best_of_all_rankings_take_turns():
    first = np.array([[3, 0, 5, 6], [1, -1, -1, -1]])
    second = np.array([[4, 7, 0, 2], [-1, -1, -1, -1]])
    merged = candidates.interleave([first, second], GROUP, depth=3)
    np.testing.assert_array_equal(merged, [[3, 0, 7], [1, -1, -1]])  # 4 reads like 3


def test_lists_begin_with_a_positive_and_repeat_nothing():
    pool = np.array([[2, 3, 5, 6], [2, 5, 6, 7], [0, 1, 2, 5]])
    lists = draw([0, 1, 2, 0], pool=pool, num_negatives=3)
    np.testing.assert_array_equal(lists[:, 0], [0, 1, 4, 0])
    for row, query in zip(lists, [0, 1, 2, 0], strict=True):
        assert len(set(row)) == 4
        assert set(row[1:]) <= set(pool[query])


def test_negatives_are_the_hardest_that_are_safe_beside_the_positive():
    pool = np.array([[2, 3, 5, 6, 7, -1]])
    logits = np.array([[4.0, 1.0, 2.5, 2.6, 2.0, np.nan]])
    # Beside the positive 0, passage 2 is above it and 6 within the margin.
    ranked = candidates.Ranked(logits, [np.array([3.0, 9.0])], margin=0.5, hardest=2)
    options = {'pool': pool, 'positives': [np.array([0, 1])], 'ranked': ranked}
    for seed in range(8):
        row = draw([0], **options, best=[np.array([0, 1])], seed=seed)[0]
        assert set(row[1:]) == ({5, 7} if row[0] == 0 else {2, 6})
    # Random passages complete a list whose pool has too few; none of them is in it.
    few = candidates.Ranked(logits, [np.array([1.7])], margin=0.5, hardest=2)
    row = draw([0], pool=pool, positives=[np.array([0])], ranked=few, num_negatives=3)[0]
    assert 3 in row[1:] and not np.isnan(row).any()


def test_the_positive_is_one_of_the_best_and_the_others_fill_no_list():
    positives, best = [np.array([0, 1, 2])], [np.array([1, 2])]
    nothing = np.full((1, 1), -1)
    lists = np.concatenate(
        [
            draw([0], pool=nothing, positives=positives, best=best, num_negatives=4, seed=seed)
            for seed in range(20)
        ]
    )
    assert set(lists[:, 0]) == {1, 2} and not {0, 1, 2} & set(lists[:, 1:].ravel())


def test_a_draw_depends_on_seed_round_query_and_copy_alone():
    pool = np.tile(np.array([2, 3, 5, 6, 7]), (3, 1))
    together = draw([0, 1, 2], pool=pool, num_negatives=5)
    np.testing.assert_array_equal(together[1], draw([1], pool=pool, num_negatives=5)[0])
    others = [
        draw([1], pool=pool, num_negatives=5, seed=s, round_index=r, copies=[c])[0]
        for s, r, c in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (5, 3, 2)]
    ]
    assert all((o != together[1]).any() for o in others)


@pytest.mark.parametrize('many', [100, 0])  # Others are listed, or drawn and tried.
def test_random_passages_fill_a_small_pool(many, monkeypatch):
    monkeypatch.setattr(candidates, '_LARGE_COLLECTION', many)
    pool = np.full((3, 4), -1)
    pool[2, 0] = 5
    lists = draw([2], pool=pool, num_negatives=4)
    assert 5 in lists[0, 1:]
    assert not {3, 4} & set(lists[0, 1:])  # neither the positive nor its equal
    assert len(set(lists[0])) == 5
    seen = {row for seed in range(50) for row in draw([2], pool=pool, seed=seed)[0, 1:]}
    assert seen == {0, 1, 2, 5, 6, 7}


@pytest.mark.parametrize('many', [100, 0])
def test_too_few_passages(many, monkeypatch):
    monkeypatch.setattr(candidates, '_LARGE_COLLECTION', many)
    with pytest.raises(ValueError, match="query 'a' has only 6 distinct passages"):
        draw([0], pool=np.full((3, 1), -1), num_negatives=7)


def test_a_closed_pool_completes_the_hardest_with_its_lowest():
    pool = np.array([[5, 6, 7, 3, -1]] * 3)
    logits = np.array([[2.5, 0.5, 9.0, 4.0, np.nan]] * 3)
    ranked = candidates.Ranked(logits, [np.array([1.0])] * 3, margin=0.0, hardest=3)
    for copy in range(8):
        (found,) = draw([0], pool=pool, num_negatives=3, ranked=ranked, closed=True, copies=[copy])
        # 6 alone is below the positive; 5 and 3 are the lowest of the others, 7 the highest.
        assert found[0] == 0 and set(found[1:]) == {6, 5, 3}


def test_an_open_pool_completes_the_hardest_with_random_passages():
    pool = np.array([[5, 6, 3, -1, -1]] * 3)
    logits = np.array([[2.5, 0.5, 4.0, np.nan, np.nan]] * 3)
    ranked = candidates.Ranked(logits, [np.array([1.0])] * 3, margin=0.0, hardest=3)
    lists = [draw([0], pool=pool, num_negatives=3, ranked=ranked, copies=[i])[0] for i in range(9)]
    assert all(6 in own for own in lists)  # It alone is below the positive.
    assert set(np.concatenate(lists)) > {0, 3, 5, 6}


def test_filled_lists_have_a_passage_in_every_slot():
    lists = candidates.Lists.from_originals(np.array([3, 4, 5]), np.arange(9).reshape(3, 3))
    there = np.array([[False, True, True], [False] * 3, [False, True, False]])
    filled, rows = lists.filled(there)
    np.testing.assert_array_equal(rows, [0, 2])
    np.testing.assert_array_equal(filled.query, [3, 5])
    np.testing.assert_array_equal(filled.passages, [[1, 1, 2], [7, 7, 7]])


def test_queries_with_labels_have_their_share_of_the_lists():
    active, is_labelled = np.arange(20), np.arange(30) < 3
    draw = functools.partial(
        candidates.choose_labelled, active, is_labelled, 24, seed=0, round_index=0
    )
    rows, copies = draw(share=0.5)
    labelled = is_labelled[rows]
    assert labelled.sum() == 12 and 2 < labelled[:12].sum() < 10  # Spread over the round.
    np.testing.assert_array_equal(np.bincount(rows[labelled]), [4, 4, 4])
    assert sorted(copies[rows == 1]) == [0, 1, 2, 3]
    assert len(set(rows[~labelled])) == 12 and not copies[~labelled].any()
    for again, before in zip(draw(share=0.5), (rows, copies), strict=True):
        np.testing.assert_array_equal(again, before)
    rows, copies = draw(share=1)
    assert is_labelled[rows].sum() == 12 and len(rows) == len(copies) == 24  # Four each at most.
    # Those that have it anyway are left alone, and so are lists of one kind.
    plain = candidates.choose_queries(active, 24, seed=0, round_index=0)
    np.testing.assert_array_equal(draw(share=0.1), plain)
    everything = np.ones(30, bool)
    for flags in (everything, ~everything):
        chosen = candidates.choose_labelled(active, flags, 24, share=1, seed=0, round_index=0)
        np.testing.assert_array_equal(chosen, plain)


def test_every_query_comes_once_before_any_comes_twice():
    active = np.array([3, 5, 8, 9])
    rows, copies = candidates.choose_queries(active, 10, seed=0, round_index=0)
    np.testing.assert_array_equal(np.sort(rows[:4]), active)
    np.testing.assert_array_equal(np.sort(rows[4:8]), active)
    np.testing.assert_array_equal(copies, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    again, _ = candidates.choose_queries(active, 10, seed=0, round_index=1)
    assert (again != rows).any()


def test_random_draws_are_those_of_earlier_runs():
    """Draws are an interface: whoever changes them says so in the changelog."""
    options = {'seed': 3, 'round_index': 2}
    pool = np.tile(np.array([2, 3, 5, 6, 7]), (3, 1))
    lists = draw([0, 1, 2, 1], pool=pool, num_negatives=3, copies=[0, 0, 0, 1], **options)
    assert lists.tolist() == [[0, 6, 7, 3], [1, 6, 7, 2], [4, 2, 6, 3], [1, 5, 2, 6]]
    few = draw([0, 2], pool=np.full((3, 1), 5), num_negatives=4, **options)
    assert few.tolist() == [[0, 7, 2, 6, 5], [4, 0, 6, 1, 5]]
    active = np.array([3, 5, 8, 9])
    rows, copies = candidates.choose_queries(active, 6, **options)
    assert [rows.tolist(), copies.tolist()] == [[8, 9, 5, 3, 8, 9], [0, 0, 0, 0, 1, 1]]
    rows, copies = candidates.choose_labelled(active, np.arange(10) == 8, 8, share=0.5, **options)
    assert [rows.tolist(), copies.tolist()] == [[3, 8, 9, 8, 5, 8, 5, 8], [0, 1, 0, 0, 0, 2, 1, 3]]
    assert candidates.array_digest(np.arange(4, dtype=np.int32)) == (
        'baed642339816affb3fe8719792d0e4ce82f12db72b7373d244eaa65445800fe'
    )


@pytest.mark.parametrize(
    ('count', 'expected'),
    [(100_000, [33761, 75487, 46632]), (100_001, [46632, 26423, 53238])],
)
def test_of_a_large_collection_random_rows_are_tried(count, expected):
    """The two ways draw different passages, so that the bound is an interface too."""
    rng = candidates.item_rng(0, 0, candidates.NEGATIVES, 'a')
    found = candidates._sample_others(rng, np.arange(count), np.array([5]), 3)
    assert found.tolist() == expected


def test_passage_0_may_be_a_negative_and_padding_may_not():
    pool = np.array([[0, -1, 6]])
    logits = np.array([[1.0, np.nan, 2.0]])
    ranked = candidates.Ranked(logits, [np.array([2.0])], margin=0.0, hardest=9)
    assert ranked.choose(0, 0, pool[0]).tolist() == [6, 0]
    assert ranked.complete(0, pool[0], np.array([6]), 2).tolist() == [6, 0]
    options = {'positives': [np.array([1])], 'num_negatives': 2}
    assert set(draw([0], pool=pool, **options)[0, 1:]) == {0, 6}
    assert set(draw([0], pool=pool, ranked=ranked, **options)[0, 1:]) == {0, 6}


def test_a_share_that_is_there_already_is_left_alone():
    active, is_labelled = np.arange(20), np.arange(20) < 5
    options = {'seed': 0, 'round_index': 0}
    plain = candidates.choose_queries(active, 20, **options)
    same = candidates.choose_labelled(active, is_labelled, 20, share=0.25, **options)
    np.testing.assert_array_equal(same, plain)
    more = candidates.choose_labelled(active, is_labelled, 20, share=0.3, **options)
    assert is_labelled[more[0]].sum() == 6


def test_lists_know_how_many_dark_examples_each_has():
    dark = SlicedTexts(np.zeros((0, 3), np.int32), np.zeros((2, 3), np.int32))
    lists = Lists(np.arange(2), np.zeros((2, 4), np.int32), dark)
    assert lists.num_dark == 3 and lists[:1].num_dark == 3 and len(lists[:1]) == 1
