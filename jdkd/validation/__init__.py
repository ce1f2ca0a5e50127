"""What a run can be told before its work starts: all that is wrong, at once.

Where one fault hides another (a file that is missing, and what it holds), the second is told when
the first is mended.
"""

import pathlib

import ml_collections

from jdkd.corpus import importing
from jdkd.planning import disk
from jdkd.run import Run
from jdkd.validation import checkpoints, collection, fields, machine, roles
from jdkd.validation.faults import caught, raise_all


def validate(config: ml_collections.FrozenConfigDict) -> None:
    """Checks a resolved config by itself; nothing is read.

    Raises:
        ValueError: with every field that cannot work and how to mend it.
    """
    raise_all([*fields.faults(config), *roles.faults(config)])


def before_start(config: ml_collections.FrozenConfigDict, workdir: pathlib.Path) -> None:
    """Checks also what is named: devices, files and the configs of checkpoints on this machine.

    Weights are not read, and those of the hub are left to `before_work`.

    Args:
        config: The resolved config.
        workdir: Where the run is kept, or will be.

    Raises:
        ValueError: with everything that is wrong.
    """
    raise_all(
        [
            *fields.faults(config),
            *roles.faults(config),
            *machine.faults(config),
            *caught(importing.check_source, config.collection, workdir / 'collection'),
            *collection.file_faults(config, workdir),
            *checkpoints.faults(config, fetch=False),
        ]
    )


def before_work(run: Run) -> None:
    """Checks what the imported collection says, and the checkpoints of the hub, which it fetches.

    Raises:
        ValueError: with everything that is wrong.
    """
    found = [*collection.faults(run), *checkpoints.faults(run.config, fetch=True)]
    raise_all(found or disk.faults(run))  # Which needs the checkpoints.
