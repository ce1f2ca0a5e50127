"""Reads finished runs from their workdirs for pictures and comparisons."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jdkd import config as configs
from jdkd.config import Config, EvalConfig
from jdkd.run import ALIGNMENT, STUDENT
from jdkd.runtime import metrics, stages

FILE = 'report.json'


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that has reached its end."""

    workdir: pathlib.Path
    config: Config
    report: Mapping[str, Any]  # Content of report.json.
    # Metrics of the student's training, by step; see `metrics.read_series`.
    records: Sequence[Mapping[str, float]]
    alignment: Sequence[Mapping[str, float]] = ()  # Those of its alignment.

    @classmethod
    def of(cls, workdir: pathlib.Path, config: Config, report: Mapping[str, Any]) -> 'Finished':
        """A run with the metrics of its workdir."""
        records, alignment = (metrics.read_series(workdir, name) for name in (STUDENT, ALIGNMENT))
        # Others are of an earlier config.
        last = len(report['rounds']) * config.steps_per_round
        records = [record for record in records if record[metrics.STEP] <= last]
        return cls(workdir, config, report, records, alignment if config.align.epochs else ())

    @property
    def test_split(self) -> str:
        """Split of its test queries; raises a ValueError if it was not tested."""
        split = self.config.collection.test_split
        if split is None:
            raise ValueError(f'{self.workdir} was not tested (collection.test_split=None).')
        return split


def read(workdir: pathlib.Path) -> Finished:
    """Reads a finished run.

    Raises:
        FileNotFoundError: if the workdir holds no run, or an unfinished one.
        ValueError: if its files are damaged or of another version, or it holds a zero-shot
            evaluation.
    """
    config, report = configs.load(workdir), read_report(workdir)
    if isinstance(config, EvalConfig) or 'teacher_eval' not in report:
        raise ValueError(
            f'{workdir / FILE} is not of a training, or of an older jdkd; give the workdir of a '
            'training run, and run its command again with --update if it is older.'
        )
    for stage in ('collection', *(['test'] if report['test'] else [])):
        if stages.read_manifest(workdir / stage) is None:
            raise FileNotFoundError(
                f'{workdir / stage} is not there; run --mode train with this --workdir again, '
                'which makes it anew.'
            )
    return Finished.of(workdir, config, report)


def read_report(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the report of a finished run.

    Raises:
        FileNotFoundError: if there is none yet.
        ValueError: if it is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        raise FileNotFoundError(
            f'{path} is not there; run --mode train with this --workdir to its end first.'
        )
    try:
        return stages.read_json(path)
    except ValueError:
        raise ValueError(
            f'{path} is damaged; run --mode train with this --workdir again, which writes it anew.'
        ) from None
