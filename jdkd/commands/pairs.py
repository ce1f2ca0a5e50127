"""`jdkd pairs`: the pairs that a ranker elsewhere is to score."""

import pathlib
from collections.abc import Sequence

from jdkd import validation
from jdkd.algorithm import pairs as algorithm
from jdkd.commands.setup import hold_workdir, open_run
from jdkd.config import Config
from jdkd.runtime import distributed


def pairs(
    config: Config,
    workdir: pathlib.Path,
    splits: Sequence[str],
    output: str | None = None,
    *,
    update: bool = False,
) -> None:
    """Writes the pairs of the first round; see `algorithm.pairs.write`.

    Args:
        config: The config to train with; its files of scores need not be there yet.
        splits: Some of train, eval (D_eval) and test.
        output: The file; None for pairs.jsonl in the workdir.
        update: See `setup.hold_workdir`.

    Raises:
        ValueError: naming all errors of the config, before the workdir exists.
        FileExistsError: if the file is there and holds something else than pairs.
    """
    for split in splits:
        if split not in algorithm.SPLITS:
            raise ValueError(f"--splits names '{split}'; use {', '.join(algorithm.SPLITS)}.")
    distributed.from_primary(
        lambda: validation.before_start(config, workdir, needs_scores=False), 'the config'
    )
    path = pathlib.Path(output) if output else workdir / 'pairs.jsonl'
    distributed.from_primary(lambda: algorithm.check_output(path), 'the output')
    with hold_workdir(workdir, config, update=update):
        run = open_run(config, workdir)
        distributed.from_primary(lambda: validation.before_work(run), 'the collection')
        count = algorithm.write(run, path, splits)
        if distributed.is_primary():
            print(f'wrote {count} pairs to {path}')
