"""Configs: checked overrides on the command line, and the resolved copy in the workdir."""

import difflib
import pathlib
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from jdkd.runtime import stages
from jdkd.runtime.messages import brief

FILE = 'config.json'
# Fields that list names.
_NAMES = {'assistants', 'members', 'retrievers', 'measures', 'collections', 'splits'}


def check_overrides(argv: Sequence[str], default: str) -> None:
    """Every `--config.x.y` on a command line names a field of its config file.

    Args:
        argv: The command line.
        default: The config file where it names none.

    Raises:
        ValueError: naming the fields that are nearest to one that does not exist, or the config
            file that does not.
    """
    path = default
    for i, arg in enumerate(argv):
        if match := re.match(r'--?config(?:=(.*))?$', arg):
            path = match[1] if match[1] is not None else (argv + [''])[i + 1]
    file, _, variant = path.partition(':')
    if not pathlib.Path(file).is_file():
        raise ValueError(
            f"there is no config file '{brief(file)}'; give one, for example {default}."
        )
    get_config = runpy.run_path(file)['get_config']
    fields = sorted(_paths(get_config(variant) if variant else get_config()))
    for arg in argv:
        if match := re.match(r'--?(?:no)?config\.([^=]+)', arg):
            name = re.sub(r'\[\d+\]$', '', match[1])
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
                hint = f'did you mean {" or ".join(near)}?' if near else f'see {file}.'
                raise ValueError(f"{path} has no field '{brief(name)}'; {hint}")


def resolve(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """The config that a run works with: references resolved, lists of names split, frozen."""
    config = config.copy_and_resolve_references()
    for owner in [config, *(config[key] for key in ('teacher', 'candidates') if key in config)]:
        for key in _NAMES.intersection(owner):
            # On the command line, a,b is one string.
            names = [owner[key]] if isinstance(owner[key], str) else owner[key]
            with owner.ignore_type():
                owner[key] = tuple(n for part in names for n in part.split(',') if n)
    return ml_collections.FrozenConfigDict(config)


def save(workdir: pathlib.Path, config: ml_collections.FrozenConfigDict) -> None:
    """Writes config.json, or checks that the workdir's is the same.

    Raises:
        ValueError: if the workdir belongs to a run of another config, naming what differs.
    """
    ours = stages.to_json(config)
    if (workdir / FILE).exists():
        theirs = stages.read_json(workdir / FILE)
        ours_flat, theirs_flat = dict(_flat(ours)), dict(_flat(theirs))
        changed = [
            f'{k} is {theirs_flat.get(k)} there and {ours_flat.get(k)} here'
            for k in sorted(ours_flat.keys() | theirs_flat.keys())
            if ours_flat.get(k) != theirs_flat.get(k)
        ]
        if changed:
            more = f' and {len(changed) - 3} more fields' if len(changed) > 3 else ''
            raise ValueError(
                f'{workdir} holds a run of another config ({"; ".join(changed[:3])}{more}); '
                'choose another --workdir.'
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    stages.write_json(workdir / FILE, ours)


def load(workdir: pathlib.Path) -> ml_collections.FrozenConfigDict:
    """The config of a run.

    Raises:
        FileNotFoundError: if the workdir holds no run.
    """
    if not (workdir / FILE).exists():
        raise FileNotFoundError(
            f'{workdir} holds no run (it has no {FILE}); run --mode train with this --workdir '
            'first.'
        )
    return ml_collections.FrozenConfigDict(_tuples(stages.read_json(workdir / FILE)))


def digest(config: ml_collections.FrozenConfigDict) -> str:
    """sha256 of the resolved config."""
    return stages.digest(config)


def _paths(config: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
    """Dotted names of all fields, inner ones too."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from _paths(value, f'{prefix}{key}.')


def _flat(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value


def _tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return value
