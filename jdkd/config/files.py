"""Resolves configs, and keeps the resolved config in the workdir."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from jdkd.config import schema
from jdkd.config.fields import Config, EvalConfig
from jdkd.config.overrides import NAMES, iterate, owner_of, split_names
from jdkd.runtime import lock, stages
from jdkd.runtime.files import MANIFEST
from jdkd.runtime.messages import escape
from jdkd.runtime.stages import digest

FILE = 'config.json'
_FORMAT, _SHA256 = 'format', 'sha256'  # Keys of config.json beside the config's fields.
# Names of a run's files and stages that others may use as well.
_OWN = (
    'collection', 'tokens', 'systems', 'rounds', 'align', 'projection', 'topics', 'pseudo_labels',
    'pseudo_queries', 'test', 'costs', 'student', 'pictures', 'report.json', 'report.html',
    'run.trec', 'metrics.jsonl',
)  # fmt: skip


def resolve(config: ml_collections.ConfigDict) -> Config | EvalConfig:
    """Turns a ConfigDict into the typed, frozen config that a run reads.

    Resolves references and splits lists of names.

    Raises:
        ValueError: if a field is unknown, or the kind of a system.
    """
    config = config.copy_and_resolve_references()
    for path, value in list(iterate(config)):
        if path in NAMES and not isinstance(value, ml_collections.ConfigDict):
            names = [value] if isinstance(value, str) else value or ()
            owner, key = owner_of(config, path)
            with owner.ignore_type():
                owner[key] = tuple(n for part in names for n in split_names(str(part)))
    return _read_config(config.to_dict())


def _read_config(values: Mapping[str, Any]) -> Config | EvalConfig:
    return schema.read(EvalConfig if 'collections' in values else Config, values)


def save(workdir: pathlib.Path, config: Config | EvalConfig) -> None:
    """Writes config.json, or checks that the one in the workdir is equal.

    With --update, a different config moves to `replaced/`, as do the stages built from it.

    Raises:
        ValueError: if the workdir holds a run of another config, naming the fields that differ, a
            run of a newer version, or what is no run and has names of a run's files.
    """
    ours = stages.to_json(config)
    path = workdir / FILE
    if path.exists():
        theirs = _read(workdir)
        changed = [
            f'{escape(f"{field} is {there} there")} and {here} here'
            for field, (there, here) in differences(theirs, ours).items()
        ]
        if not changed:
            return
        if not ((held := lock.current()) and held.update):
            more = f' and {len(changed) - 3} more fields' if len(changed) > 3 else ''
            raise ValueError(
                f'{workdir} holds a run of another config ({"; ".join(changed[:3])}{more}); '
                'choose another --workdir, or add --update to rebuild what these fields decide.'
            )
        lock.set_aside(path, f'the config changed ({"; ".join(changed)})')
    else:
        _check_foreign(workdir, _OWN if isinstance(config, Config) else ('report.json',))
    workdir.mkdir(parents=True, exist_ok=True)
    stages.write_json(path, {**ours, _FORMAT: stages.FORMAT, _SHA256: digest(config)})


def _check_foreign(workdir: pathlib.Path, own: Iterable[str]) -> None:
    """Raises a ValueError if a run would take what is in a directory without a run for its own."""
    collections = 'collection', '*/collection'  # Of a run, and of an evaluation.
    if any(path for kind in collections for path in workdir.glob(f'{kind}/{MANIFEST}')):
        return  # A run whose config.json was removed.
    if there := [name for name in own if (workdir / name).exists()]:
        raise ValueError(
            f'{workdir} holds {there[0]} and no run (it has no {FILE}); choose another --workdir, '
            'or move what is there.'
        )


def load(workdir: pathlib.Path) -> Config | EvalConfig:
    """Reads the config of a workdir.

    Raises:
        FileNotFoundError: if the workdir holds no run.
        ValueError: if config.json is damaged, or of a newer version.
    """
    if not (workdir / FILE).exists():
        raise FileNotFoundError(
            f'{workdir} holds no run (it has no {FILE}); run --mode train with this --workdir '
            'first.'
        )
    return _read_config(_read(workdir))


def _read(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / FILE
    try:
        values = stages.read_json(path)
        written, sha256 = values.pop(_FORMAT, 0), values.pop(_SHA256, None)
        if sha256 != (stages.digest(values) if written else None):
            raise ValueError
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f'{path} is damaged or was edited; remove it and give the command that made this '
            'workdir, such as jdkd train, again: it writes the file and keeps what has the same '
            'config.'
        ) from None
    if not written and 'architectures' in values:
        raise ValueError(
            f'{path} is of a model, such as an exported student, and of no run; give the workdir '
            'of a run.'
        )
    if written > stages.FORMAT:
        raise ValueError(
            f'{workdir} holds a run of a newer jdkd (format {written}; this one reads '
            f'{stages.FORMAT}); upgrade jdkd, or choose another --workdir.'
        )
    return values


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Maps each field that differs to its values in both configs; None where a field is absent."""
    flat_a, flat_b = (
        {name: value for name, value in iterate(stages.to_json(x)) if not isinstance(value, dict)}
        for x in (a, b)
    )
    return {
        field: (flat_a.get(field), flat_b.get(field))
        for field in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(field) != flat_b.get(field)
    }
