"""What a finished run left in its workdir, as pictures and comparisons need it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jdkd import config as configs
from jdkd.run import STUDENT
from jdkd.runtime import metrics, stages

FILE = 'report.json'


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has reached its end.

    Attributes:
        workdir: Where it is kept.
        config: Its config.
        report: As in report.json.
        records: Of the student's training, by step; see `metrics.read_series`.
    """

    workdir: pathlib.Path
    config: ml_collections.FrozenConfigDict
    report: Mapping[str, Any]
    records: Sequence[Mapping[str, float]]


def of(workdir: pathlib.Path, config: ml_collections.FrozenConfigDict, report: Mapping) -> Finished:
    """A run whose report is at hand."""
    return Finished(workdir, config, report, metrics.read_series(workdir, STUDENT))


def read(workdir: pathlib.Path) -> Finished:
    """A run as its workdir has it.

    Raises:
        FileNotFoundError: if the workdir holds no run, or one that is not finished.
        ValueError: if its config or what is read of it is damaged, of another version, or of
            measurements alone.
    """
    config, report = configs.load(workdir), read_report(workdir)
    if 'teacher_eval' not in report:
        raise ValueError(
            f'{workdir / FILE} is not of a training, or of an older jdkd; name the workdir of '
            '--mode train, and give its command once more with --update if it is older.'
        )
    for stage in ('collection', 'test'):
        if stages.read_manifest(workdir / stage) is None:
            raise FileNotFoundError(
                f'{workdir / stage} is not there; give the command of the run once more, which '
                'makes it anew.'
            )
    return of(workdir, config, report)


def read_report(workdir: pathlib.Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = workdir / FILE
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is not there; run --mode train with this --workdir to its end first.'
        )
    return stages.read_json(path)
