"""Where collections come from, by the name that a config gives."""

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from jdkd.corpus.sources import questions as question_splits
from jdkd.corpus.sources.base import Source

# Kind, which is also the module's name, and what follows the colon, if anything does.
_KINDS = {
    'python_docs': None,
    'beir': 'PATH',
    'msmarco': 'PATH',
    'tables': 'PATH',
    'irds': 'NAME',
    'tfds': 'NAME',
}
SOURCES = tuple(f'{kind}:{what}' if what else kind for kind, what in _KINDS.items())


def open_source(
    name: str, /, *, questions: Mapping[str, str] | None = None, **options: Any
) -> Source:
    """A collection that can be read.

    Args:
        name: One of SOURCES.
        questions: {split: file} of questions with answers, as splits beside the source's own.
        **options: Keyword arguments of the `source` function of the kind's module.

    Raises:
        ValueError: the source or an option is unknown, or an option is missing.
        FileNotFoundError: the source's directory or a file in it is missing.
    """
    kind, argument = parse_name(name)
    # Imported when used: some of the libraries behind them take seconds.
    read = importlib.import_module(f'jdkd.corpus.sources.{kind}').open_source
    if argument:
        read = functools.partial(read, argument)
    parameters = inspect.signature(read).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(
                f'source {name!r} has no option {option!r}: it has '
                f'{", ".join([*parameters, "questions"])}.'
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(
                f'source {name!r} needs the option {option!r}: set collection.options.{option}.'
            )
    found = read(**options)
    for field in ('name', 'license'):
        told = getattr(found, field)
        # Reports, model cards and terminals show them.
        if told is not None and not (isinstance(told, str) and told.isprintable() and told):
            raise ValueError(
                f'collection.options.{field}={told!r}, but a {field} is a line of printable text.'
            )
    return question_splits.add_questions(found, questions) if questions else found


def parse_name(name: str) -> tuple[str, str]:
    """Kind and argument of a source's name.

    Raises:
        ValueError: the kind is unknown, or lacks its argument or has one too many.
    """
    kind, colon, argument = name.partition(':')
    if kind not in _KINDS or bool(argument) != bool(_KINDS[kind]) or (colon and not argument):
        raise ValueError(f'unknown collection source {name!r}: use one of {", ".join(SOURCES)}.')
    return kind, argument
