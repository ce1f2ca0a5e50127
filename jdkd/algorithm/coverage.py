"""Coverage: which pairs and queries a run can use where scores are imported.

A file of scores made elsewhere rarely has every pair that a run asks for: an LLM has scored the top
passages of one retriever for some queries. Unless `systems.<name>.missing` gives the rest a score,
lists hold scored pairs alone, and queries without enough of them are left out.
"""

from collections.abc import Sequence

import numpy as np
from absl import logging

from jdkd import diagnostics
from jdkd.config import Config, ScoresSpec
from jdkd.lists.candidates import Lists
from jdkd.run import Queries, Run
from jdkd.systems import imported, scoring
from jdkd.systems.imported import ImportedScores
from jdkd.systems.system import System, unique


def partial(systems: Sequence[System]) -> list[System]:
    """Those of some systems that have scores for some pairs alone."""
    return [s for s in unique(systems) if s.is_partial]


def partial_names(config: Config) -> list[str]:
    """Names of the systems whose imported scores decide which passages lists may hold."""
    return [
        name
        for name in dict.fromkeys([*config.teacher.members, *config.assistants])
        if isinstance(spec := config.systems[name], ScoresSpec) and spec.missing is None
    ]


def covered_first(
    systems: Sequence[System], queries: Queries, passages: np.ndarray, first: int = 0
) -> np.ndarray:
    """Keeps of each query's passages those with scores, in order, and pads with -1.

    `passages` is `[n, depth]`, of the queries from row `first` on.
    """
    if not systems:
        return passages
    rows = np.arange(first, first + len(passages), dtype=np.int32)
    lists = Lists.from_originals(rows, passages)
    there = scoring.covered(systems, queries, lists)
    order = np.argsort(~there, axis=1, kind='stable')
    return np.take_along_axis(np.where(there, passages, np.int32(-1)), order, axis=1)


def covered_rows(
    systems: Sequence[System], queries: Queries, rows: Sequence[np.ndarray]
) -> np.ndarray:
    """Marks those of each query's passages that have scores, all queries' after another."""
    query = np.repeat(np.arange(len(rows), dtype=np.int32), [len(own) for own in rows])
    lists = Lists.from_originals(query, np.concatenate(rows).astype(np.int32)[:, None])
    return scoring.covered(systems, queries, lists)[:, 0]


def usable(
    config: Config,
    split: str,
    names: Sequence[str],
    best: Sequence[np.ndarray],
    pool: np.ndarray,
    asked: np.ndarray,
) -> np.ndarray:
    """Marks the queries that lists can be drawn for, `[Q]` bool, and logs how many are left out.

    Args:
        split: Name of the queries' split, for messages.
        names: The systems with imported scores.
        best: Rows of each query's positives that have scores, or of its stand-in.
        pool: `[Q, U]` mined passages that have scores, padded with -1.
        asked: Rows of the queries that lists are asked for, which the log is about.

    Raises:
        ValueError: if no query is left, naming the files and the remedies.
    """
    wanted = config.candidates.hard_negatives
    has_best = np.array([len(rows) > 0 for rows in best])
    has_enough = (pool >= 0).sum(axis=1) >= wanted
    kept = has_best & has_enough
    if not kept.any():
        raise ValueError(none_usable(config, split, names))
    if not kept[asked].all():
        logging.info(
            '%d of %d queries of split %r are left out, for lack of scores of %s: %d have no '
            'scored positive, and %d of the others fewer than %d scored mined passages',
            (~kept[asked]).sum(),
            len(asked),
            split,
            ', '.join(names),
            (~has_best[asked]).sum(),
            (has_best & ~has_enough)[asked].sum(),
            wanted,
        )
    return kept


def check(run: Run) -> list[diagnostics.RunWarning]:
    """Checks score files before other work, and says what the report will lack.

    Raises:
        ValueError: if none of the train queries, or of D_eval, has scores for a list; or if the
            first stage has none of D_eval's or the test queries.
    """
    config, warnings = run.config, []
    _check_first_stage(run)
    for name in partial_names(config) if run.num_rounds else ():
        system = imported.load(run, name, config.systems[name])
        rows = np.arange(len(run.train)), run.eval_rows
        for queries, own in zip((run.train, run.held_out), rows, strict=True):
            if not any(_may_be_usable(system, queries, i) for i in own.tolist()):
                raise ValueError(none_usable(config, queries.split, [name]))
        if name in config.teacher.members and len(run.test):
            count = sum(query in system.scores.queries for query in run.test.ids)
            warnings += diagnostics.coverage_warnings(
                name, str(system.path), count, len(run.test), run.test.split, config.first_stage
            )
    return warnings


def _check_first_stage(run: Run) -> None:
    """Raises a ValueError if its imported scores leave out D_eval or test."""
    name = run.config.first_stage
    spec = run.config.systems[name]
    if not isinstance(spec, ScoresSpec):
        return
    found = imported.load(run, name, spec).scores.queries
    for queries in (run.held_out, run.test):
        if len(queries) and not any(query in found for query in queries.ids):
            raise ValueError(
                f'systems.{name}.path={spec.path!r} has no query of split {queries.split!r}, whose '
                'passages the first stage gives; add them to the file, or name another first_stage.'
            )


def _may_be_usable(system: ImportedScores, queries: Queries, row: int) -> bool:
    """Whether a file has enough scores for a list, as far as that can be told before mining."""
    passages, _ = system.scores.of(queries.ids[row])
    is_positive = np.isin(passages, queries.positives[row])
    negatives = system.run.config.candidates.hard_negatives
    if not len(queries.positives[row]):
        return len(passages) > negatives  # One stands in for the positive.
    return bool(np.isin(queries.best[row], passages).any()) and (~is_positive).sum() >= negatives


def none_usable(config: Config, split: str, names: Sequence[str]) -> str:
    """The message for imported scores that leave a split without a list."""
    specs = {name: config.systems[name] for name in names}
    files = ' and '.join(
        f'systems.{name}.path={spec.path!r}'
        for name, spec in specs.items()
        if isinstance(spec, ScoresSpec)
    )
    return (
        f"{files}: no query of split '{split}' has scores for a positive and for "
        f'{config.candidates.hard_negatives} mined passages (candidates.hard_negatives); add the '
        'scores of the pairs that --mode pairs writes, name the system in candidates.retrievers '
        f'so that its own passages are mined, or set systems.{names[0]}.missing.'
    )
