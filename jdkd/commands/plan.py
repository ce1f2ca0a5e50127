"""`jdkd plan`: what a run needs of devices, time, disk and memory."""

import pathlib

from jdkd import validation
from jdkd.config import Config
from jdkd.planning import plan as planning


def plan(config: Config, topology: str, workdir: pathlib.Path | None) -> None:
    """Prints the plan of a run, and writes plan.json if there is a workdir.

    See `planning.make_plan`; a topology is for example `v5e:2x4`, or `local`.
    """
    validation.validate(config)
    print(planning.format_plan(planning.make_plan(config, topology, workdir)))
