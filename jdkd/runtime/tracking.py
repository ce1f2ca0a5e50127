"""Sends metrics to Weights & Biases and to trackio too, where the environment asks for it.

`JDKD_TRACK=wandb`, `trackio` or both, with a comma. It is no config field, since it decides no
result. Their own variables say where to: `WANDB_PROJECT`, `WANDB_MODE=offline`, `WANDB_DIR`;
`TRACKIO_PROJECT`, `TRACKIO_DIR`, `TRACKIO_SPACE_ID`.
"""

import importlib
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jdkd.runtime import stages

VARIABLE = 'JDKD_TRACK'
FILE = 'tracking.json'  # In the workdir: the id under which its series are known elsewhere.
_PROJECT = 'jdkd'
_CONFIG = 'config.json'


class Tracker(Protocol):
    """A series of metrics elsewhere."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of a step."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


def names() -> list[str]:
    """Names of the trackers that the environment asks for.

    Raises:
        ValueError: if one is unknown.
        ImportError: if its package is missing.
    """
    asked = [name.strip() for name in os.environ.get(VARIABLE, '').split(',') if name.strip()]
    for name in asked:
        if name not in _TRACKERS:
            raise ValueError(f'{VARIABLE} names {name!r}; use {" or ".join(_TRACKERS)}.')
        try:
            importlib.import_module(name)  # A name of the table above, never of data.
        except ImportError as error:
            raise ImportError(
                f"{VARIABLE}={name} needs that package ({error}): pip install 'jdkd[track]'."
            ) from None
    return list(dict.fromkeys(asked))


def start(workdir: pathlib.Path, series: str) -> list[Tracker]:
    """Starts a series of a workdir with every tracker, or goes on with it after a restart.

    Raises:
        ValueError, ImportError: see `names`.
    """
    return [_TRACKERS[name](workdir, series) for name in names()]


class _WandB:
    """A run of Weights & Biases for each series, and a group for each workdir.

    Of steps that a resumed training writes again, it keeps the first.
    """

    def __init__(self, workdir: pathlib.Path, series: str):
        import wandb

        self._run = wandb.init(
            project=os.environ.get('WANDB_PROJECT', _PROJECT),
            dir=os.environ.get('WANDB_DIR', workdir),
            id=f'{_identity(workdir)}-{series}',
            name=f'{workdir.name}/{series}',
            group=workdir.name,
            config=_config(workdir),
            resume='allow',
            reinit='create_new',
            settings=wandb.Settings(console='off', disable_git=True, disable_code=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio for each series, and a group for each workdir."""

    def __init__(self, workdir: pathlib.Path, series: str):
        import trackio

        self._run = trackio.init(
            project=os.environ.get('TRACKIO_PROJECT', _PROJECT),
            name=f'{workdir.name}/{series} {_identity(workdir)}',
            group=workdir.name,
            config=_config(workdir),
            resume='allow',
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: dict[str, Callable[[pathlib.Path, str], Tracker]] = {
    'wandb': _WandB,
    'trackio': _Trackio,
}


def _identity(workdir: pathlib.Path) -> str:
    """The workdir's id, drawn once: another run in a directory of the same name has its own."""
    path = workdir / FILE
    if not path.exists():
        stages.write_json(path, {'id': secrets.token_hex(4)})
    return stages.read_json(path)['id']


def _config(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / _CONFIG
    return stages.read_json(path) if path.exists() else {}
