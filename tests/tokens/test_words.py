"""Words of texts: their characters, their tokens, and scripts without spaces."""

import numpy as np
import pytest
import tokenizers

from jdkd.tokens.words import find_words


def words_of(tokenizer, text, length=512):
    (words,) = tokenizer.words([text], length)
    return [text[start:end] for start, end in words.spans], words.tokens.tolist()


def test_words_and_punctuation_in_the_characters_of_the_text(tokenizer):
    text = 'max  length,\tof. '
    assert words_of(tokenizer, text) == (['max', 'length', ',', 'of', '.'], [0, 1, 3, 4, 5, 6])


def test_only_the_first_tokens_are_looked_at(tokenizer):
    assert words_of(tokenizer, 'max of a list', 2) == (['max', 'of'], [0, 1, 2])


@pytest.mark.parametrize(
    ('tokens', 'words'), [(-1, 0), (0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (9, 3)]
)
def test_words_that_fit(tokenizer, tokens, words):
    (found,) = tokenizer.words(['max length of'], 512)
    assert found.within(tokens) == words and len(found) == 3


def test_many_texts_are_as_each_alone(tokenizer, monkeypatch):
    monkeypatch.setattr('jdkd.tokens.tokenizer._CALL_TEXTS', 3)
    texts = ['a', 'a', '', 'max length', '', 'list', 'of a', '']
    for text, words in zip(texts, tokenizer.words(texts, 9), strict=True):
        (alone,) = tokenizer.words([text], 9)
        np.testing.assert_array_equal(words.spans, alone.spans)
        np.testing.assert_array_equal(words.tokens, alone.tokens)
    assert [len(words) for words in tokenizer.words(texts, 9)] == [1, 1, 0, 1 + 1, 0, 1, 2, 0]
    assert tokenizer.words([], 9) == []


def characters(text):
    """A tokenizer of single characters, as of scripts without spaces."""
    vocab = {c: i for i, c in enumerate(dict.fromkeys(text))}
    model = tokenizers.models.BPE(vocab=vocab, merges=[])
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return fast.encode(text, add_special_tokens=False)


def test_a_word_as_long_as_a_clause_falls_into_tokens():
    (words,) = find_words([characters('我们今天去公园玩吧 吧吧')])
    assert len(words) == 9 + 1
    assert words.spans[-1].tolist() == [10, 12] and words.spans[3].tolist() == [3, 4]
    assert words.tokens.tolist() == [*range(10), 11]


def test_bytes_of_one_character_stay_together():
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {byte: i for i, byte in enumerate(alphabet)}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = '我们今天😀'  # A word of twelve bytes, which falls apart, and one of four.
    (words,) = find_words([fast.encode(text, add_special_tokens=False)])
    assert [text[a:b] for a, b in words.spans] == list(text)
    assert words.tokens.tolist() == [0, 3, 6, 9, 12, 16]
