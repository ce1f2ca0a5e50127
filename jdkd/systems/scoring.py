"""Scores candidate lists, in parts that processes share and a restart keeps."""

import math
import pathlib
from collections.abc import Iterable

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.run import Queries, Run
from jdkd.runtime.parts import write_parts
from jdkd.systems.system import System, unique

_PART_LISTS = 4096  # Lists a file: the most that a restart scores again.


def score_in_parts(
    system: System, queries: Queries, lists: Lists, directory: pathlib.Path, name: str
) -> np.ndarray:
    """Scores lists with a system; each process scores some of them.

    Writes `<name>.<part>.npy` for every 4,096 lists into the directory of a resumable stage, where
    a restart keeps them. Returns `[M, N_o + N_d]` float32 raw scores; see `check_finite`.
    """
    scorer = system.list_scorer(queries)

    def write(i, file):
        part = lists[i * _PART_LISTS : (i + 1) * _PART_LISTS]
        scores = scorer(part)
        check_finite(system.name, scores, system.run, queries, part)
        np.save(file, scores)

    count = math.ceil(len(lists) / _PART_LISTS)
    desc = f'{system.name}: scores {queries.split}'
    write_parts(directory, f'{name}.{{}}.npy', count, write, desc=desc)
    return read_parts(directory, name, len(lists))


def score_with(
    systems: Iterable[System],
    queries: Queries,
    lists: Lists,
    directory: pathlib.Path,
    prefix: str = '',
    there: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Scores by name as `score_in_parts` gives them; `prefix` comes before the names of files.

    NaN where `there`, `[M, N_o]` bool, is False.
    """
    scores = {
        s.name: score_in_parts(s, queries, lists, directory, prefix + s.name)
        for s in unique(systems)
    }
    if there is None:
        return scores
    return {name: np.where(there, values, np.nan) for name, values in scores.items()}


def read_parts(directory: pathlib.Path, name: str, num_lists: int) -> np.ndarray:
    """The scores that `score_in_parts` wrote, of so many lists."""
    paths = [directory / f'{name}.{i:05d}.npy' for i in range(math.ceil(num_lists / _PART_LISTS))]
    if not paths:
        return np.zeros((0, 1), np.float32)  # Goes with any number of candidates.
    return np.concatenate([np.load(path) for path in paths])


def covered(systems: Iterable[System], queries: Queries, lists: Lists) -> np.ndarray:
    """Marks the originals of lists that all of some systems have scores for, `[M, N_o]` bool.

    Row -1, which is no passage, has none.
    """
    there = lists.passages >= 0
    return np.logical_and.reduce([there, *(s.covers(queries, lists) for s in systems)])


def check_finite(name: str, scores: np.ndarray, run: Run, queries: Queries, lists: Lists) -> None:
    """Checks the scores `[M, ..., N]` that a system, or a group of systems, gave lists.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if not len(bad):
        return
    row, column = bad[0][0], bad[0][-1]
    dark = column - lists.passages.shape[1]
    query, passage = queries.ids[int(lists.query[row])], f'dark example {dark}'
    if dark < 0:
        passage = f"passage '{run.collection.passage_ids[int(lists.passages[row, column])]}'"
    raise FloatingPointError(
        f"'{name}' gives query '{query}' and {passage} the score "
        f'{scores[tuple(bad[0])]}, and {len(bad)} of {scores.size} scores of split '
        f"'{queries.split}' are not finite; look at its weights or its file, or take it out of the "
        'config.'
    )
