"""Words of BM25: bm25s' tokens, and those of scripts that it cuts wrongly, by hand."""

import bm25s
import pytest
import Stemmer

from jdkd.retrieval.words import tokenize


@pytest.mark.parametrize('language', ['english', 'german'])
def test_other_texts_have_the_tokens_of_bm25s(language):
    texts = [
        'The naïve café: open 24/7, snake_case!',
        'a b cd Größe 한국어 문장',
        '',
        'Καλημέρα, Привет мир',
        'x\u00b2 \u2014 e.g. don\u2019t',
    ]
    expected = bm25s.tokenize(
        texts,
        stopwords='en' if language == 'english' else [],
        stemmer=Stemmer.Stemmer(language),
        return_ids=False,
        show_progress=False,
    )
    assert tokenize(texts, language) == expected
    # Neighbours decide nothing.
    assert tokenize([*texts, 'हिन्दी', '東京都'], language)[:-2] == expected


def test_han_and_kana_are_read_in_pairs():
    texts = ['Python東京都に行く 3', 'コーヒー', 'iPhone用', '東。京']
    assert tokenize(texts, 'english') == [
        ['python', '東京', '京都', '都に', 'に行', '行く'],
        ['コー', 'ーヒ', 'ヒー'],
        ['iphon'],  # One character is no word, as one letter is none.
        [],
    ]


def test_words_keep_their_vowel_signs():
    found = tokenize(['हिन्दी भाषा', 'தமிழ் மொழி', 'cafe\u0301 au lait'], 'german')
    assert found == [['हिन्दी', 'भाषा'], ['தமிழ்', 'மொழி'], ['cafe\u0301', 'au', 'lait']]
