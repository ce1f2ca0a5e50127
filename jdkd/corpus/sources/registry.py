"""Opens the source of a collection by the name that a config gives it."""

import dataclasses
import functools
import importlib
import inspect
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from jdkd.config import schema
from jdkd.corpus.sources.base import Source
from jdkd.corpus.sources.questions import add_questions
from jdkd.runtime import files
from jdkd.runtime.messages import brief

# Kind, which is also the name of its module -> what follows the colon, if anything does.
_KINDS = {
    'python_docs': None,
    'beir': 'PATH',
    'msmarco': 'PATH',
    'tables': 'PATH',
    'hf': 'NAME',
    'irds': 'NAME',
    'tfds': 'NAME',
}
SOURCES = tuple(f'{kind}:{argument}' if argument else kind for kind, argument in _KINDS.items())


def open_source(
    name: str, /, *, questions: Mapping[str, str] | None = None, **options: Any
) -> Source:
    """Opens one of SOURCES by its name.

    Args:
        questions: {split: file} of questions with answers, as splits beside the source's own.
        **options: Keyword arguments of `open_source` in the module of the kind. Kinds with an
            argument also take `name`, the collection's name in reports instead of that of its
            directory or dataset, and `license`, the terms of the texts.

    Raises:
        ValueError: The source or an option is unknown, or an option is missing.
        FileNotFoundError: The source's directory or a file in it is missing.
    """
    kind, argument = parse_name(name)
    # Imported on use: some of the libraries behind sources take seconds.
    opener = importlib.import_module(f'jdkd.corpus.sources.{kind}').open_source
    hints = typing.get_type_hints(opener)
    if argument:
        if _KINDS[kind] == 'PATH':
            files.require_local(argument, 'collection.source')
        opener = functools.partial(opener, argument)
    parameters = inspect.signature(opener).parameters
    common = ['name', 'license'] if argument else []
    known = [*parameters, *common, 'questions']
    for option in options:
        if option not in known:
            raise ValueError(
                f'source {name!r} has no option {option!r}: it has {", ".join(known)}; '
                'where a config sets it for another source, add --config.collection.options={}.'
            )
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(
                f'source {name!r} needs the option {option!r}: set collection.options.{option}.'
            )
    hints['questions'] = Mapping[str, str] | None
    _check_types({**options, 'questions': questions}, hints)
    labels = {option: options.pop(option, None) for option in common}
    source = opener(**options)
    if argument:
        name, license = labels['name'] or source.name, labels['license']
        source = dataclasses.replace(source, name=name, license=license)
    for field in ('name', 'license'):
        value = getattr(source, field)
        # Reports, model cards and terminals show them.
        if value is not None and not (isinstance(value, str) and value.isprintable() and value):
            raise ValueError(
                f'collection.options.{field}={value!r}, but a {field} is a line of printable text.'
            )
    return add_questions(source, questions) if questions else source


def open_passages(name: str, /, **options: Any) -> Source:
    """Opens passages alone: one of SOURCES, or a file of passages.

    A file is JSON lines, CSV, TSV or parquet with the fields `_id`, `text` and optionally `title`;
    a glob names several. Options are those of the source, or `fields` for a file.

    Raises:
        ValueError: as `open_source`.
        FileNotFoundError: There is neither such a source nor such a file.
    """
    if (kind := name.partition(':')[0]) in _KINDS:
        if kind == 'beir':
            options.setdefault('unjudged', 'train')  # Passages need no judgements.
        return open_source(name, **options)
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        raise FileNotFoundError(
            f'{path} is a directory; give a file of passages in it, such as '
            f'{path / "corpus.jsonl"}, or a source: {", ".join(SOURCES)}.'
        )
    tables = importlib.import_module('jdkd.corpus.sources.tables')
    if unknown := set(options) - {'fields'}:
        raise ValueError(f'a file of passages has no option {min(unknown)!r}: it has fields.')
    _check_types(options, typing.get_type_hints(tables.open_passages))
    try:
        return tables.open_passages(name, **options)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'there is no file {name!r}, nor is that a source; give a .jsonl, .csv, .tsv or '
            f'.parquet file, or one of {", ".join(SOURCES)}.'
        ) from None


def _check_types(options: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if option in hints and not schema.fits(schema.as_tuples(value), hints[option]):
            raise ValueError(
                f'collection.options.{option} is {brief(value)}, but must be '
                f'{schema.describe(hints[option])}.'
            )


def parse_name(name: str) -> tuple[str, str]:
    """Splits a source's name into kind and argument; raises ValueError for other forms."""
    kind, colon, argument = name.partition(':')
    if kind not in _KINDS or bool(argument) != bool(_KINDS[kind]) or (colon and not argument):
        raise ValueError(f'unknown collection source {name!r}: use one of {", ".join(SOURCES)}.')
    return kind, argument
