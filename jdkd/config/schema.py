"""Declares config sections: each field once, with its default, its range and its comment.

`to_config_dict` turns the defaults of a section into the ml_collections ConfigDict that config
files fill in and the command line overrides. `read` turns that into the section, whose fields
type checkers know. `errors` checks every value against its range.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import ml_collections
from ml_collections import config_dict

from jdkd.runtime.messages import brief

RANGES: dict[str, Callable[[float], bool]] = {
    'at least 0': lambda x: x >= 0,
    'at least 1': lambda x: x >= 1,
    'at least 3': lambda x: x >= 3,
    '0 or at least 3': lambda x: x == 0 or x >= 3,
    'above 0': lambda x: x > 0,
    'finite': lambda x: True,
    'within 0 and 1': lambda x: 0 <= x <= 1,
    'above 0 and at most 1': lambda x: 0 < x <= 1,
    'above 0 and below 1': lambda x: 0 < x < 1,
    'at least 0 and below 1': lambda x: 0 <= x < 1,
    '-1 (all that mesh.model leaves) or at least 1': lambda x: x == -1 or x >= 1,
}

Schedule = float | tuple
Options = tuple[str | None, ...]


def field(default: Any, comment: str, allowed: str | Options | None = None) -> Any:
    """Declares one field of a section.

    A section class as default stands for that section's own defaults. The comment says what the
    field decides, with its unit. `allowed` is a key of `RANGES` or the values to choose from.
    """
    metadata = {'comment': comment, 'allowed': allowed}
    if isinstance(default, type | dict):
        factory = default if isinstance(default, type) else default.copy
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
class Section:
    """A part of a config: subclasses become frozen dataclasses of `field`s."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def to_dict(self) -> dict[str, Any]:
        """Its fields as nested dicts, in alphabetical order, as config.json holds them."""
        return _plain(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some fields."""
        return dataclasses.replace(typing.cast(Any, self), **changes)


S = typing.TypeVar('S', bound=Section)


def to_config_dict(section: Section) -> ml_collections.ConfigDict:
    """The ConfigDict of a section's values, whose fields keep their declared types."""
    c = ml_collections.ConfigDict()
    hints = typing.get_type_hints(type(section))
    for f in _fields(section):
        value, hint = getattr(section, f.name), hints[f.name]
        if isinstance(value, Section):
            c[f.name] = to_config_dict(value)
        elif isinstance(value, Mapping):
            c[f.name] = ml_collections.ConfigDict(value)
        elif hint == Schedule:
            c[f.name] = config_dict.FieldReference(value, field_type=object)
        else:
            if type(None) in typing.get_args(hint):
                # `int` of `int | None`, `tuple` of `tuple[float, ...] | None`.
                member = next(t for t in typing.get_args(hint) if t is not type(None))
                c[f.name] = config_dict.placeholder(typing.get_origin(member) or member)
            c[f.name] = value
    return c


def read(cls: type[S], values: Mapping[str, Any], path: str = '') -> S:
    """The section of a ConfigDict, or of a dict as config.json holds it.

    Fields that `values` leaves out have their defaults. `path` is a prefix of fields in messages.

    Raises:
        ValueError: if there is a field that the section does not have, or a section is no mapping.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - {f.name for f in _fields(cls)})
    if unknown:
        raise ValueError(
            f"the config has no field '{brief(path + unknown[0])}'; remove it, or correct its name."
        )
    return cls(**{key: _read_value(hints[key], values[key], path + key) for key in values})


def errors(section: Section, prefix: str = '') -> Iterator[str]:
    """One sentence for each value that is out of its range or none of its options.

    None passes where a field may be left open. Sections within `Mapping`s (systems) are left out.
    `prefix` is the path of the section, such as `student.`.
    """
    for f in _fields(section):
        value, allowed = getattr(section, f.name), f.metadata['allowed']
        if isinstance(value, Section):
            yield from errors(value, f'{prefix}{f.name}.')
        elif isinstance(allowed, tuple):
            if value not in allowed:
                options = ', '.join(option for option in allowed if option is not None)
                yield f"{prefix}{f.name} is '{brief(value)}'; use one of {options}."
        elif allowed is not None and value is not None:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and math.isfinite(value) and RANGES[allowed](value)):
                yield f'{prefix}{f.name}={brief(value)} must be {allowed}.'


def type_errors(section: Section, prefix: str = '') -> Iterator[str]:
    """One sentence for each value that is not of the type of its field, None included.

    Other checks compute with values, and rely on this one. `prefix` is as for `errors`.
    """
    hints = typing.get_type_hints(type(section))
    for f in _fields(section):
        path, value, hint = f'{prefix}{f.name}', getattr(section, f.name), hints[f.name]
        if isinstance(value, Section):
            yield from type_errors(value, f'{path}.')
        elif isinstance(value, Mapping) and typing.get_origin(hint) is Mapping:
            for name, member in value.items():
                if isinstance(member, Section):
                    yield from type_errors(member, f'{path}.{name}.')
        elif value is None if hint == Schedule else not fits(value, hint):
            default = '' if f.default in (dataclasses.MISSING, None) else f', such as {f.default}'
            yield (
                f'{path} is {brief(value)}, but must be {describe(hint)}{default}; correct it, or '
                'leave it out.'
            )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that is no section is of the type of a field or an argument."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, member) for member in members)
    if origin is tuple:
        # A tuple of fixed length has a range of its own.
        return isinstance(value, tuple) and all(fits(item, members[0]) for item in value)
    if origin is Mapping:
        items = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(fits(key, members[0]) and fits(item, members[1]) for key, item in items)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, bool):
        return hint in (bool, Any)
    return hint is Any or isinstance(value, hint)


def describe(hint: Any) -> str:
    """Says in words what a type takes."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(map(describe, members))
    if origin is tuple:
        return f'a tuple of items that each are {describe(members[0])}'
    if origin is Mapping:
        return f'a mapping {{name: {describe(members[1])}}}'
    names = {int: 'a whole number', float: 'a number', str: 'text', bool: 'True or False'}
    return names.get(hint, 'None' if hint is type(None) else f'a {hint.__name__}')


def reference(cls: type[Section], prefix: str = '') -> Iterator[tuple[str, str, str, str]]:
    """Path, default, range and comment of every field of a section and the sections within."""
    hints = typing.get_type_hints(cls)
    for f in _fields(cls):
        hint, allowed = hints[f.name], f.metadata['allowed'] or ''
        if isinstance(allowed, tuple):
            allowed = ', '.join('None' if option is None else option for option in allowed)
        if isinstance(hint, type) and issubclass(hint, Section):
            yield f'{prefix}{f.name}', '', '', f.metadata['comment']
            yield from reference(hint, f'{prefix}{f.name}.')
            continue
        default = '' if f.default is dataclasses.MISSING else f.default
        yield f'{prefix}{f.name}', str(default), allowed, f.metadata['comment']


def lists_of_text(cls: type[Section], prefix: str = '') -> Iterator[str]:
    """Paths of the fields of a section, and of those within, that hold any number of texts."""
    for name, hint in typing.get_type_hints(cls).items():
        if hint == tuple[str, ...]:
            yield prefix + name
        elif isinstance(hint, type) and issubclass(hint, Section):
            yield from lists_of_text(hint, f'{prefix}{name}.')


def _fields(section: Section | type[Section]) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(typing.cast(Any, section))


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        value = {f.name: getattr(value, f.name) for f in _fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    return value


def _read_value(hint: Any, value: Any, path: str) -> Any:
    """A value as a section holds it: sections read, lists as tuples."""
    if typing.get_origin(hint) is Mapping or (isinstance(hint, type) and issubclass(hint, Section)):
        if not isinstance(value, Mapping | ml_collections.ConfigDict | Section):
            raise ValueError(f'{path}={value!r} must be a section of fields.')
        values = value.to_dict() if not isinstance(value, Mapping) else value
        if isinstance(hint, type):
            return read(hint, values, f'{path}.')
        member = typing.get_args(hint)[1]
        if member is Any:
            return as_tuples(values)
        return {key: _read_member(member, values[key], f'{path}.{key}') for key in sorted(values)}
    # What the command line makes of None.
    return None if value == (None,) and type(None) in typing.get_args(hint) else as_tuples(value)


def _read_member(member: Any, values: Any, path: str) -> Section:
    """The section of a union whose `kind` options include the one that `values` names."""
    kinds: dict[str, type[Section]] = {}
    for cls in typing.get_args(member):
        kind = next(f for f in _fields(cls) if f.name == 'kind')
        kinds |= dict.fromkeys(kind.metadata['allowed'], cls)
    kind = values.get('kind') if isinstance(values, Mapping) else None
    if kind not in kinds:
        raise ValueError(f"{path}.kind is '{brief(kind)}'; use one of {', '.join(kinds)}.")
    return read(kinds[kind], values, f'{path}.')


def as_tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, Mapping):
        return {key: as_tuples(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return tuple(map(as_tuples, value))
    return value
