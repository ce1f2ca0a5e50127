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


def test_neighbours_decide_nothing_about_the_dot_of_a_turkish_i():
    alone = tokenize(['İstanbul gezisi'], 'turkish')
    assert tokenize(['İstanbul gezisi', 'i\u0307zmir'], 'turkish')[:1] == alone
    assert alone[0][0].startswith('i\u0307stanbul')


def test_han_and_kana_are_read_in_pairs():
    texts = ['Python東京都に行く 3', 'コーヒー', '二〇二四年5月 X線', '東。京']
    assert tokenize(texts, 'english') == [
        ['python', '東京', '京都', '都に', 'に行', '行く'],
        ['コー', 'ーヒ', 'ヒー'],
        ['二〇', '〇二', '二四', '四年', '5月', 'x線'],
        [],  # One character is no word, as one letter is none.
    ]


def test_words_keep_their_vowel_signs():
    found = tokenize(['हिन्दी भाषा', 'தமிழ் மொழி', 'cafe\u0301 a\u0300 la'], 'german')
    assert found == [['हिन्दी', 'भाषा'], ['தமிழ்', 'மொழி'], ['café', 'la']]
    # Thai has no spaces: with its marks, sentences would be words. An emoji's mark is no letter.
    assert tokenize(['สวยงาม ที่นี่', '5\ufe0f\u20e3 हि'], 'german') == [['สวยงาม'], ['हि']]
