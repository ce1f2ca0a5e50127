"""Overrides of a config on the command line: `--config.x.y=value`."""

import difflib
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from jdkd.config import schema
from jdkd.config.fields import Config, EvalConfig
from jdkd.runtime.messages import brief, shown

# Fields that list names: the command line gives a,b as one string.
NAMES = {*schema.lists_of_text(Config), *schema.lists_of_text(EvalConfig)}

_FLAG = re.compile(r'--?(?P<no>no)?config\.(?P<name>[^=]*)(?:=(?P<value>.*))?', re.DOTALL)
# A name in quotation marks, maybe after a kind and a colon; or one whose commas are in parentheses.
_QUOTED = re.compile(r"""\s*(\w+:)?(["'])(.*?)\2\s*(?:,|$)""")
_NAME = re.compile(r'((?:\([^()]*\)|[^,])*)(?:,|$)')


class _OrNone(flags.ArgumentParser):
    """A parser of flags that takes `None` too; whether a field does is for validation to say."""

    def __init__(self, parser: flags.ArgumentParser, expected: str):
        super().__init__()
        self._parser, self._expected = parser, expected

    def parse(self, argument: Any) -> Any:
        if argument == 'None':
            return None
        try:
            return self._parser.parse(argument)
        except (TypeError, ValueError):
            raise ValueError(f'{shown(argument)} must be {self._expected}') from None

    def flag_type(self) -> str:
        return self._parser.flag_type()


_PARSERS = {
    int: _OrNone(flags.IntegerParser(), 'a whole number'),
    float: _OrNone(flags.FloatParser(), 'a number'),
    bool: _OrNone(flags.BooleanParser(), 'true or false'),
    str: _OrNone(flags.ArgumentParser(), 'text'),
}


def register_parsers() -> None:
    """Makes ml_collections take `None` as the value of any field, for this process."""
    for kind, parser in _PARSERS.items():
        config_flags.register_flag_parser_for_type(kind, parser)


def check_overrides(argv: Sequence[str], default: str) -> list[str]:
    """Checks the overrides on a command line against its config file.

    The config file is `default` if the command line has no --config.

    Returns:
        The command line with the last override of each field alone, as ml_collections would join
        those of a tuple.

    Raises:
        ValueError: if there is no such config file; if there is no such field, naming the nearest;
            or if the value of a number or a switch is none.
    """
    path = default
    for arg, following in zip(argv, [*argv[1:], ''], strict=False):
        if match := re.match(r'--?config(?:=(.*))?$', arg):
            path = following if match[1] is None else match[1]
    file, _, variant = path.partition(':')
    if not pathlib.Path(file).is_file():
        raise ValueError(
            f"there is no config file '{brief(file)}'; give one, for example {default}."
        )
    config = run_file(file, variant)
    values = dict(iterate(config))
    fields = sorted(values)
    kept: dict[Any, list[str]] = {}
    for words in _group(argv):
        match = _FLAG.fullmatch(words[0])
        if not match:
            kept[object()] = words
            continue
        name = re.sub(r'\[\d+\]$', '', match['name'])
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
            hint = f'did you mean {" or ".join(near)}?' if near else f'see {file}.'
            raise ValueError(f"{path} has no field '{brief(name)}'; {hint}")
        if name != match['name'] and not isinstance(values[name], list):
            raise ValueError(
                f'--config.{match["name"]}: tuples are replaced as a whole; give --config.{name} '
                'with all of its items.'
            )
        value = words[1] if len(words) == 2 else match['value']
        kept.pop(match['name'], None)  # The last one also keeps its place.
        kept[match['name']] = _check_value(config, match['name'], value) or words
    return [word for words in kept.values() for word in words]


def run_file(file: str, argument: str = '') -> ml_collections.ConfigDict:
    """Runs a config file, which is code, for its config."""
    get_config = runpy.run_path(file)['get_config']
    return get_config(argument) if argument else get_config()


def split_names(text: str) -> list[str]:
    """Splits names at commas, but for those in parentheses and in names in quotation marks.

    >>> split_names('P(rel=2,judged_only=True)@10,R@5,"beir:a,b"')
    ['P(rel=2,judged_only=True)@10', 'R@5', 'beir:a,b']
    """
    names, at = [], 0
    while at < len(text):
        if match := _QUOTED.match(text, at):
            names.append((match[1] or '') + match[3])
        elif match := _NAME.match(text, at):
            names.append(match[1].strip())
        assert match
        at = match.end()
    return [name for name in names if name]


def iterate(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all fields and sections of a mapping or ConfigDict."""
    for key, value in config.items():
        yield prefix + key, value
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from iterate(value, f'{prefix}{key}.')


def owner_of(config: ml_collections.ConfigDict, path: str) -> tuple[Any, str]:
    """The section that holds a field, and the field's name there."""
    *sections, key = path.split('.')
    owner: Any = config
    for section in sections:
        owner = owner[section]
    return owner, key


def _group(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yields the words of a command line, each override with a value that stands apart."""
    words = list(argv)
    while words:
        flag = words.pop(0)
        match = _FLAG.fullmatch(flag)
        is_open = match and match['value'] is None and not match['no']
        has_value = is_open and words and not re.match('--?[A-Za-z]', words[0])
        yield [flag, words.pop(0)] if has_value else [flag]


def _check_value(
    config: ml_collections.ConfigDict, name: str, value: str | None
) -> list[str] | None:
    """Checks the value of an override; returns other words for it where ml_collections needs them.

    Raises:
        ValueError: if a number or a switch is none.
    """
    owner, key = owner_of(config, name)
    if value is None or key not in owner:  # A switch, or an item of a tuple.
        return None
    kind = owner.get_type(key)
    if kind in _PARSERS:
        try:
            _PARSERS[kind].parse(value)
        except ValueError as error:
            raise ValueError(f'--config.{name}: {error}.') from None
    if value == 'None' and issubclass(kind, ml_collections.ConfigDict):
        raise ValueError(f'--config.{name} is a section, not None; override its fields.')
    is_list = kind is tuple and name in NAMES and value[:1] not in ('(', '[')
    # As text: names may look like numbers or Python.
    text = () if value == 'None' else value
    return [f'--config.{name}={text!r}'] if is_list else None
