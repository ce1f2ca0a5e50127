"""Relevance by answers: a passage is relevant if it contains one of the answers to the query.

So DPR counts R@20 on Natural Questions (Karpukhin et al., EMNLP 2020, section 5). Texts are
compared as the tokens of its SimpleTokenizer, after Unicode's NFD normalisation, in lower case.
"""

import unicodedata
from collections.abc import Iterable

import regex

# Runs of letters, numbers and marks; else single characters, but for separators and control codes.
_TOKEN = regex.compile(r'[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]')


def normalize(text: str) -> str:
    r"""The tokens of a text with a NUL around each, so that a run of tokens is a substring.

    >>> normalize('The Sun!')
    '\x00the\x00sun\x00!\x00'
    """
    found = _TOKEN.findall(unicodedata.normalize('NFD', text))
    return ''.join(f'\0{token}' for token in found).lower() + '\0' if found else ''


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether the tokens of one of the answers follow each other in a text.

    Args:
        text: Of a passage; DPR looks at the text alone, not at the title.
        answers: An answer without a token, such as a blank one, is in no text.
    """
    tokens = normalize(text)
    return any(answer and answer in tokens for answer in map(normalize, answers))
