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

_WORD = r'(?u)\b\w\w+\b'  # bm25s' own: two letters, digits or underscores at least.
# Runs of Hiragana, Katakana and Han: unified ideographs with extensions, and compatible forms.
_CJK = re.compile(
    '[\u3005\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff'
    '\U00020000-\U0003ffff]+'
)


def tokenize(texts: Sequence[str], language: str) -> list[list[str]]:
    """The stemmed words of each text: of two letters at least, without English stop words.

    Words hold combining marks, and Han, Hiragana and Katakana are read in pairs; all other texts
    have the tokens that bm25s gives.
    """
    import bm25s

    texts, pattern = [*map(split_cjk, texts)], _WORD
    if not all(map(str.isascii, texts)):
        mark, with_marks = _words_with_marks()
        pattern = with_marks if any(map(mark.search, texts)) else _WORD
    words = bm25s.tokenize(
        texts,
        token_pattern=pattern,
        stopwords='en' if language == 'english' else [],
        stemmer=Stemmer.Stemmer(language),
        return_ids=False,
        show_progress=False,
    )
    assert isinstance(words, list)  # Since ids are not returned.
    return words


def split_cjk(text: str) -> str:
    """Writes pairs of characters for words in Han, Hiragana and Katakana, which know no spaces.

    Each run of these gives its overlapping pairs, as in Lucene's CJKAnalyzer; one alone, none.

    >>> split_cjk('Python 東京都 x')
    'Python  東京 京都  x'
    """
    return text if text.isascii() else _CJK.sub(_pairs, text)


def _pairs(run: re.Match[str]) -> str:
    return f' {" ".join(a + b for a, b in itertools.pairwise(run[0]))} '


@functools.cache
def _words_with_marks() -> tuple[re.Pattern[str], str]:
    """Finds combining marks, and the pattern of words that may hold them.

    Vowels are such marks in Devanagari, Tamil or Thai, and Python's `\\w` leaves them out.
    """
    codes = [c for c in map(chr, range(0x300, sys.maxunicode + 1)) if _is_mark(c)]
    marks = f'[{"".join(codes)}]'
    return re.compile(marks), rf'(?u)\w(?:\w|{marks})+'


def _is_mark(character: str) -> bool:
    return unicodedata.category(character) in ('Mn', 'Mc')
