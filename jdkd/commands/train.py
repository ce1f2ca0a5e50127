"""`jdkd train`: Algorithm 1 from the config to the report and the exported student."""

import dataclasses
import os
import pathlib
from typing import Any

import ml_collections

from jdkd import validation
from jdkd.algorithm import iterate
from jdkd.commands.setup import hold_workdir, open_run, read_config, resolve_training
from jdkd.config import Config
from jdkd.run import STUDENT
from jdkd.runtime import bucket, distributed


def train(
    config: Config, workdir: pathlib.Path, *, update: bool = False, exit_on_signals: bool = True
) -> dict[str, Any]:
    """Trains a run, or resumes it, and returns its report; see `iterate.train`.

    `update` and `exit_on_signals` are as for `setup.hold_workdir`.

    Raises:
        ValueError: naming all errors of the config, before the workdir exists.
    """
    distributed.from_primary(lambda: validation.before_start(config, workdir), 'the config')
    with hold_workdir(workdir, config, update=update, exit_on_signals=exit_on_signals):
        run = open_run(config, workdir)
        distributed.from_primary(lambda: validation.before_work(run), 'the collection')
        return iterate.train(run)


@dataclasses.dataclass(frozen=True)
class Distilled:
    """A finished run.

    Attributes:
        report: Content of report.json.
        student: Directory of the exported student; `jdkd.load` reads it.
    """

    report: dict[str, Any]
    student: pathlib.Path


def distill(
    config: Config | ml_collections.ConfigDict | str,
    workdir: str | os.PathLike[str],
    *,
    update: bool = False,
) -> Distilled:
    """Distils a student by Algorithm 1, as `jdkd train` does.

    A run that was interrupted resumes when it is called again.

    Args:
        config: A config, the path of a config file, or the name of a packaged one, such as
            `mta4dpr:tiny`.
        workdir: Directory that keeps the run, or its place in a bucket, such as `gs://mine/run`.
        update: Whether a run of another config in the workdir may be changed: stages that depend on
            the changed fields are made anew, the rest is kept.

    Returns:
        The report and the directory of the student.

    Raises:
        FileNotFoundError: if there is no such config file.
        ValueError: naming all errors of the config; or if the workdir holds a run of another one.
        RuntimeError: if another process uses the workdir.
    """
    if isinstance(config, str):
        config = read_config(config)
    if not isinstance(config, Config):
        config = resolve_training(config)
    workdir = bucket.open_workdir(workdir)
    report = train(config, workdir, update=update, exit_on_signals=False)
    return Distilled(report, workdir / STUDENT)
