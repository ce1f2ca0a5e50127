"""Dark examples: what is spliced and masked, and that they can be made again."""

import ml_collections
import numpy as np
import pytest

from jdkd.lists import dark
from jdkd.tokens.store import TokenStore

SPECIAL = {'cls': 1, 'sep': 2, 'pad': 0, 'mask': 3}
POSITIVE, NEGATIVE = np.arange(100, 120), np.arange(200, 230)


@pytest.mark.parametrize('seed', range(5))
def test_reinforced_negative_holds_a_contiguous_span_of_the_positive(seed):
    rng = np.random.default_rng(seed)
    example = dark.reinforced_negative(rng, POSITIVE, NEGATIVE, fraction=(0.2, 0.4), length=60)
    span = example[example < 200]
    assert 4 <= len(span) <= 8  # 20% to 40% of 20 tokens
    np.testing.assert_array_equal(np.diff(span), 1)
    at = np.flatnonzero(example < 200)
    np.testing.assert_array_equal(np.diff(at), 1)  # in one place
    np.testing.assert_array_equal(example[example >= 200], NEGATIVE)  # around it the negative


def test_the_negative_gives_way_to_the_length_limit():
    rng = np.random.default_rng(0)
    example = dark.reinforced_negative(rng, POSITIVE, NEGATIVE, fraction=(0.5, 0.5), length=16)
    assert len(example) == 16 and np.sum(example < 200) == 10


def test_an_empty_positive_changes_nothing():
    rng = np.random.default_rng(0)
    empty = np.array([], int)
    example = dark.reinforced_negative(rng, empty, NEGATIVE, fraction=(0.1, 0.5), length=50)
    np.testing.assert_array_equal(example, NEGATIVE)
    assert len(dark.noisy_positive(rng, empty, fraction=(0.1, 0.5), mask_id=3)) == 0


@pytest.mark.parametrize('share', [0.1, 0.5])
def test_noisy_positive_masks_that_share(share):
    rng = np.random.default_rng(0)
    noisy = dark.noisy_positive(rng, POSITIVE, fraction=(share, share), mask_id=3)
    assert np.sum(noisy == 3) == share * 20
    np.testing.assert_array_equal(noisy[noisy != 3], POSITIVE[noisy != 3])
    assert POSITIVE[0] == 100  # the original is untouched


def generate(passages, query_ids, copies, **kwargs):
    tokens = np.zeros((4, 10), np.uint16)
    for row, ids in enumerate([range(10, 18), range(20, 25), range(30, 32), ()]):
        tokens[row, : len(ids) + 2] = [1, *ids, 2]
    settings = dict(seed=0, round_index=0, length=10) | kwargs
    config = ml_collections.ConfigDict(
        dict(reinforced=3, noisy=2, splice=(0.1, 0.5), mask=(0.1, 0.5))
    )
    return dark.generate(
        np.asarray(passages),
        TokenStore.from_rows(tokens, 0),
        query_ids=query_ids,
        copies=np.asarray(copies),
        special=SPECIAL,
        config=config,
        **settings,
    )


def test_rows_are_whole_sequences_and_specials_are_never_masked():
    examples = generate([[0, 1, 2], [1, 0, 3]], ['a', 'b'], [0, 0])
    assert examples.shape == (2, 5, 10) and examples.dtype == np.uint16
    for row in examples.reshape(-1, 10):
        size = np.count_nonzero(row)
        assert row[0] == 1 and row[size - 1] == 2 and (row[size:] == 0).all()
    assert (examples[:, :3] != 3).all()  # reinforced negatives have no masks
    assert (examples[:, 3:] == 3).any(axis=-1).all()  # noisy positives do


def test_the_same_item_gives_the_same_examples_whatever_is_around_it():
    both = generate([[0, 1, 2], [1, 0, 2]], ['a', 'b'], [0, 1])
    np.testing.assert_array_equal(both[1], generate([[1, 0, 2]], ['b'], [1])[0])
    assert (both[1] != generate([[1, 0, 2]], ['b'], [0])[0]).any()
    assert (both[1] != generate([[1, 0, 2]], ['b'], [1], round_index=1)[0]).any()


def test_a_shorter_limit_holds():
    examples = generate([[0, 1, 2]], ['a'], [0], length=6)
    assert examples.shape[-1] == 6 and ((examples == 2).sum(axis=-1) == 1).all()
