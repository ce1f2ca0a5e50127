"""Dark examples: what is spliced and masked, and that they can be drawn again."""

import numpy as np
import pytest

from jdkd.config import DarkConfig
from jdkd.lists import dark
from jdkd.lists.slices import MASK
from jdkd.tokens.tokenizer import load_tokenizer
from jdkd.tokens.words import Words
from tests.helpers import toy


def source(row, tokens):
    """A passage whose words have four characters and so many tokens, one space apart."""
    starts = 5 * np.arange(len(tokens))
    words = Words(np.stack([starts, starts + 4], axis=1), np.append(0, np.cumsum(tokens)))
    return dark.Source(row, max(5 * len(tokens) - 1, 0), words)


POSITIVE, NEGATIVE, EMPTY = source(7, [1] * 20), source(8, [1] * 30), source(9, [])


def splice(positive, negative, share=(0.2, 0.4), room=60, seed=0):
    rng = np.random.default_rng(seed)
    return dark.reinforced_negative(rng, positive, negative, share=share, room=room).tolist()


@pytest.mark.parametrize('seed', range(5))
def test_consecutive_words_of_the_positive_come_between_two_words_of_the_negative(seed):
    pieces = splice(POSITIVE, NEGATIVE, seed=seed)
    (span,) = [piece for piece in pieces if piece[0] == 7]
    assert span[1] % 5 == 0 and span[2] % 5 == 4
    assert 4 <= (span[2] - span[1] + 1) // 5 <= 8  # 20% to 40% of 20 words
    around = [piece for piece in pieces if piece[0] == 8]
    assert [around[0][1], around[-1][2]] == [0, 149]  # All of the negative.
    if len(around) == 2:
        assert around[0][2] == around[1][1] and around[0][2] % 5 == 4


@pytest.mark.parametrize('tokens', [1, 3])
def test_the_student_reads_all_of_the_splice(tokens):
    positive, negative = source(7, [tokens] * 20), source(8, [tokens] * 30)
    ends, sizes = set(), set()
    for seed in range(60):
        pieces = splice(positive, negative, share=(0.0, 1.0), room=16, seed=seed)
        (span,) = [piece for piece in pieces if piece[0] == 7]
        assert span[2] <= 5 * (16 // tokens)  # From what it reads of the positive.
        size = tokens * (span[2] - span[1] + 1) // 5
        before = tokens * (pieces[0][2] + 1) // 5 if pieces[0][0] == 8 else 0
        assert before + size <= 16
        ends.add(before + size)
        sizes.add(size)
    assert max(ends) == 16 // tokens * tokens and len(sizes) > 3


def test_a_share_of_zero_or_an_empty_passage_changes_nothing():
    assert splice(POSITIVE, NEGATIVE, share=(0, 0)) == [[8, 0, 149]]
    assert splice(EMPTY, NEGATIVE) == [[8, 0, 149]]
    assert splice(POSITIVE, NEGATIVE, room=0) == [[8, 0, 149]]  # The prefix takes all.
    assert [piece[0] for piece in splice(POSITIVE, EMPTY)] == [7]
    rng = np.random.default_rng(0)
    assert dark.noisy_positive(rng, POSITIVE, share=(0, 0)).tolist() == [[7, 0, 99]]
    assert not len(dark.noisy_positive(rng, EMPTY, share=(0.1, 0.5)))


@pytest.mark.parametrize('share', [0.1, 0.5, 1.0])
def test_that_share_of_the_positives_words_is_masked(share):
    pieces = dark.noisy_positive(np.random.default_rng(0), POSITIVE, share=(share, share))
    masked = pieces[pieces[:, 0] == MASK]
    assert len(masked) == share * 20
    assert (masked[:, 1] % 5 == 0).all() and (masked[:, 2] - masked[:, 1] == 4).all()
    # Together the slices are the passage, in order.
    assert pieces[0, 1] == 0 and pieces[-1, 2] == 99
    np.testing.assert_array_equal(pieces[1:, 1], pieces[:-1, 2])
    assert set(pieces[:, 0]) <= {7, MASK}


TEXTS = ['red cat runs, sings.', 'A blue dog sleeps', 'fish.', '']


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(toy.write_tokenizer(tmp_path / 'tokenizer'))


def generate(tokenizer, passages, query_ids, copies, **kwargs):
    settings = dict(seed=0, round_index=0, room=8) | kwargs
    examples = dark.generate(
        np.asarray(passages),
        TEXTS,
        tokenizer,
        query_ids=query_ids,
        copies=np.asarray(copies),
        config=DarkConfig(reinforced=3, noisy=2),
        **settings,
    )
    assert examples.slices.dtype == examples.counts.dtype == np.int32
    texts = examples.render(TEXTS, '[MASK]')
    return np.reshape(np.array(texts, object), examples.counts.shape)


def test_reinforced_negatives_come_first_and_go_around_the_negatives(tokenizer):
    first, second = generate(tokenizer, [[0, 1, 2], [1, 0, 3]], ['a', 'b'], [0, 0])
    assert first.shape == (5,)
    for text, negative in zip(first[:3], ('A blue', 'fish.', 'A'), strict=True):
        assert negative in text and '[MASK]' not in text
    assert all('[MASK]' in text for text in (*first[3:], *second[3:]))
    assert second[1] in TEXTS[1]  # The empty negative is the splice alone.


def test_the_same_item_gives_the_same_examples_whatever_is_around_it(tokenizer):
    def one(copy, **kwargs):
        return generate(tokenizer, [[1, 0, 2]], ['b'], [copy], **kwargs)[0]

    both = generate(tokenizer, [[0, 1, 2], [1, 0, 2]], ['a', 'b'], [0, 1])
    np.testing.assert_array_equal(both[1], one(1))
    assert (both[1] != one(0)).any()
    assert (both[1] != one(1, round_index=1)).any()
    assert (both[1] != one(1, seed=1)).any()


def test_random_draws_are_those_of_earlier_runs(tokenizer):
    """Draws are an interface: whoever changes them says so in the changelog."""
    found = generate(tokenizer, [[0, 1, 2], [1, 0, 2]], ['a', 'b'], [0, 1], seed=3, round_index=2)
    assert found.tolist() == [
        [
            'A cat runs blue dog sleeps',
            'fish. , sings',
            'A blue runs, dog sleeps',
            'red [MASK] [MASK] , sings [MASK]',
            'red [MASK] runs, [MASK] .',
        ],
        [
            'red cat runs, sings. dog',
            'dog sleeps fish.',
            'red cat runs, dog sings.',
            '[MASK] blue dog [MASK]',
            '[MASK] blue [MASK] sleeps',
        ],
    ]
    pieces = splice(POSITIVE, NEGATIVE, share=(0.1, 0.9), seed=7)
    assert pieces == [[8, 0, 134], [7, 25, 89], [8, 134, 149]]
