"""Answers in passages, by the rules of DPR's SimpleTokenizer."""

import doctest

import pytest

from jdkd.retrieval import answers
from jdkd.retrieval.answers import has_answer


def test_the_example_of_the_docstring():
    assert doctest.testmod(answers).failed == 0


@pytest.mark.parametrize(
    ('text', 'answer', 'found'),
    [
        ('The Sun is a STAR.', 'star', True),
        ('Start here.', 'star', False),  # Tokens, not characters.
        ('It was 1,969 metres', '1 , 969', True),  # A comma is a token of its own.
        ('It was 1969 metres', '1,969', False),
        ('In New\u00a0York\tCity', 'new york city', True),
        ('New, York', 'New York', False),  # Punctuation between counts.
        ('U.S.A.', 'U.S.', True),
        ('caf\u00e9 society', 'CAFE\u0301', True),  # Composed and decomposed.
        ('cafe society', 'caf\u00e9', False),  # Marks stay.
        (
            '\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2',
            '\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2',
            True,
        ),
        ('\u4e1c\u4eac\u90fd', '\u4e1c\u4eac', False),  # A run of letters is one token.
        ('snake_case', 'case', True),  # An underscore is punctuation here, unlike in re's \w.
        ('a\u200bb', 'a b', True),  # A zero-width space is of category Cf, which separates.
        ('\u00bd cup', '\u00bd', True),
        ('star', 'a star', False),
        ('anything', ' \t', False),
        ('', 'x', False),
    ],
)
def test_has_answer(text, answer, found):
    assert has_answer(text, [answer]) is found
    assert has_answer(text, ['no such thing', answer]) is found


def test_no_answers():
    assert not has_answer('The Sun', [])
