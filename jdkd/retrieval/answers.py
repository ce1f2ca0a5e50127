"""Relevance by answers: a passage is relevant if it contains one of the answers to the query.

This is how DPR counts R@20 on Natural Questions (Karpukhin et al., EMNLP 2020, section 5). Texts
are compared as lower-case tokens of its SimpleTokenizer, after Unicode's NFD normalisation.
"""

import unicodedata
from collections.abc import Iterable

import regex

# Runs of letters, numbers and marks, or other single characters except separators and controls.
_TOKEN = regex.compile(r'[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]')


def normalize(text: str) -> str:
    r"""Puts a NUL around each token of a text, so that a run of tokens is a substring.

    >>> normalize('The Sun!')
    '\x00the\x00sun\x00!\x00'
    """
    tokens = _TOKEN.findall(unicodedata.normalize('NFD', text))
    return ''.join(f'\0{token}' for token in tokens).lower() + '\0' if tokens else ''


def has_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether a text (without its title, as in DPR) contains the token sequence of any answer.

    An answer without tokens, such as a blank, is in no text.
    """
    tokens = normalize(text)
    return any(answer and answer in tokens for answer in map(normalize, answers))
