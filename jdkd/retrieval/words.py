"""Words of texts, as BM25 counts them: bm25s' tokens, also in scripts that it cuts wrongly.

bm25s is imported inside a function; see `jdkd.retrieval.bm25`.
"""

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Sequence

import Stemmer

VERSION = 3  # Of what `tokenize` gives: an index of other words is built anew.

_WORD = r'(?u)\b\w\w+\b'  # bm25s' own: two letters, digits or underscores at least.
# Runs of Hiragana, Katakana and Han: unified ideographs with extensions, and compatible forms.
_CJK = re.compile(
    '[\u3005\u3007\u3041-\u3096\u309d\u309e\u30a1-\u30fa\u30fc-\u30fe'
    '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+'
)
# Scripts without spaces whose marks would only join sentences: Thai, Lao, Myanmar and Khmer. And
# variation selectors, which follow symbols.
_LEFT_OUT = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ufe00-\ufe0f]')


def tokenize(texts: Sequence[str], language: str) -> list[list[str]]:
    """The stemmed words of each text: of two letters at least, without English stop words.

    Words hold combining marks, such as the vowels of Devanagari and Tamil, which Python's `\\w`
    leaves out; Han, Hiragana and Katakana are read in pairs. All other texts have the tokens that
    bm25s gives.
    """
    import bm25s

    # In small letters, as bm25s reads them: the dot of a Turkish İ is then a mark of its own.
    texts = [text if text.isascii() else split_cjk(text).lower() for text in texts]
    marks = _marks() & set().union(*(text for text in texts if not text.isascii()))
    words = bm25s.tokenize(
        texts,
        token_pattern=rf'(?u)\w[\w{"".join(sorted(marks))}]+' if marks else _WORD,
        stopwords='en' if language == 'english' else [],
        stemmer=Stemmer.Stemmer(language),
        return_ids=False,
        show_progress=False,
    )
    assert isinstance(words, list)  # Since ids are not returned.
    return words


def split_cjk(text: str) -> str:
    """Writes pairs of characters for words in Han, Hiragana and Katakana, which know no spaces.

    Each run of these gives its overlapping pairs, as in Lucene's CJKAnalyzer; one character alone
    stays as it is, with its neighbours.

    >>> split_cjk('Python 東京都 5月')
    'Python  東京 京都  5月'
    """
    return _CJK.sub(_pairs, unicodedata.normalize('NFC', text))


def _pairs(run: re.Match[str]) -> str:
    return f' {" ".join(a + b for a, b in itertools.pairwise(run[0]))} ' if run[0][1:] else run[0]


@functools.cache
def _marks() -> frozenset[str]:
    """Combining marks of scripts whose words they belong to."""
    codes = map(chr, range(0x300, sys.maxunicode + 1))
    marks = (c for c in codes if unicodedata.category(c) in ('Mn', 'Mc'))
    return frozenset(c for c in marks if not _LEFT_OUT.match(c))
