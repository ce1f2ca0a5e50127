"""Texts of slices: what they join to, in what parts, and which passages they read."""

import numpy as np
import pytest

from jdkd.lists.slices import MASK, SlicedTexts

PASSAGES = ['The U.S. rate: 3.5%', "don't  stop", 'Ünï 我们去']


def render(*slices, mask='<m>'):
    texts = SlicedTexts(np.array(slices, np.int32), np.array([[len(slices)]], np.int32))
    return texts.render(PASSAGES, mask)[0]


@pytest.mark.parametrize(
    ('slices', 'text'),
    [
        ([(0, 0, 19)], 'The U.S. rate: 3.5%'),
        ([(0, 0, 8), (1, 0, 5), (0, 8, 19)], "The U.S. don't rate: 3.5%"),
        ([(1, 0, 5), (0, 0, 3)], "don't The"),  # A space where they would touch,
        ([(1, 0, 6), (0, 0, 3)], "don't The"),  # and none where there is one.
        ([(0, 0, 4), (MASK, 4, 8), (0, 8, 19)], 'The <m> rate: 3.5%'),
        ([(MASK, 0, 5), (1, 5, 7), (MASK, 7, 11)], '<m>  <m>'),
        ([(2, 0, 5), (MASK, 5, 6), (2, 6, 7)], 'Ünï 我 <m> 去'),
    ],
)
def test_slices_join_to_a_text(slices, text):
    assert render(*slices) == text


def test_masked_slices_may_be_removed():
    assert render((0, 0, 4), (MASK, 4, 8), (0, 8, 14), mask='') == 'The  rate:'
    assert render((1, 0, 3), (MASK, 3, 4), (1, 4, 5), mask='') == 'don t'


def test_parts_have_their_own_slices_and_read_no_other_passages():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (7, 2)).astype(np.int32)
    slices = np.zeros((counts.sum(), 3), np.int32)
    slices[:, 0] = rng.integers(-1, 3, len(slices))
    slices[:, 2] = rng.integers(1, 6, len(slices))
    texts = SlicedTexts(slices, counts)
    parts = [texts[i : i + 3] for i in range(0, 7, 3)]
    assert [part.counts.shape for part in parts] == [(3, 2), (3, 2), (1, 2)]
    rendered = [text for part in parts for text in part.render(PASSAGES, '<m>')]
    assert rendered == texts.render(PASSAGES, '<m>') and len(rendered) == 14
    joined = SlicedTexts.join(parts)
    np.testing.assert_array_equal(joined.slices, slices)
    np.testing.assert_array_equal(joined.counts, counts)
    one = SlicedTexts(np.array([[1, 0, 3]], np.int32), np.array([[1]], np.int32))
    assert one.render({1: PASSAGES[1]}) == ['don']
    assert SlicedTexts.empty(4).render(PASSAGES) == []
    assert SlicedTexts.empty(4)[1:3].counts.shape == (2, 0)


def test_texts_of_no_slices_join_others_of_none():
    empty = SlicedTexts.empty(2)
    assert empty.counts.shape == (2, 0) and empty.slices.shape == (0, 3)
    joined = SlicedTexts.join([empty, SlicedTexts.empty(3)])
    assert joined.counts.shape == (5, 0) and joined.render(PASSAGES) == []
