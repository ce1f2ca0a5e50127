"""Foreign text in messages is escaped and short."""

from jdkd.runtime.messages import brief, shown


def test_control_characters_are_escaped():
    assert shown('a\x1b[31m\n') == r"'a\x1b[31m\n'"
    assert shown({'a': 1}) == "{'a': 1}"


def test_only_the_ends_of_long_values_are_shown():
    text = shown('a' * 500 + 'b' * 500)
    assert len(text) == 100 and text.startswith("'aaa") and text.endswith("bbb'") and '...' in text
    assert len(shown(10**500)) == 100


def test_long_words_keep_both_ends():
    path = '/' + 'a' * 400 + '/evil'
    assert brief(f'{path} is no file') == f'/{"a" * 66}...{"a" * 25}/evil is no file'


def test_long_errors_are_cut_and_line_breaks_removed():
    assert brief('a\n  b') == 'a b'
    text = brief(ValueError('word ' * 1000))
    assert len(text) <= 300 and text.startswith('word word') and text.endswith(' ...')
