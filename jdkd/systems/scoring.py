"""Scores of candidate lists, in parts that processes share and a restart keeps."""

import pathlib

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.run import Queries, Run
from jdkd.runtime.parts import write_parts
from jdkd.systems.system import System

_LISTS = 4096  # Scored at once: what a restart may have to do again.


def score_in_parts(
    system: System, queries: Queries, lists: Lists, directory: pathlib.Path, name: str
) -> np.ndarray:
    """A system's scores of many lists, `[M, N_o + N_d]` float32, of which each process does some.

    Args:
        system: The scorer.
        queries: Of the lists.
        lists: What is scored.
        directory: Of a resumable stage: a restart does not score again what is there.
        name: Of the files there, one for 4,096 lists.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    scorer = system.list_scorer(queries)

    def write(i, file):
        part = lists[i * _LISTS : (i + 1) * _LISTS]
        scores = scorer(part)
        check_finite(system.name, scores, system.run, queries, part)
        np.save(file, scores)

    paths = write_parts(directory, f'{name}.{{}}.npy', -(-len(lists) // _LISTS), write)
    return np.concatenate([np.load(path) for path in paths])


def check_finite(name: str, scores: np.ndarray, run: Run, queries: Queries, lists: Lists) -> None:
    """Checks scores of candidate lists.

    Args:
        name: What gave them.
        scores: `[M, ..., N]`.
        run: The run.
        queries: Of the lists.
        lists: What was scored.

    Raises:
        FloatingPointError: if a score is not finite, naming system, query and passage.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if not len(bad):
        return
    row, column = bad[0][0], bad[0][-1]
    dark = column - lists.passages.shape[1]
    passage = f'dark example {dark}'
    if dark < 0:
        passage = f"passage '{run.collection.passage_ids[lists.passages[row, column]]}'"
    raise FloatingPointError(
        f"'{name}' gives query '{queries.ids[lists.query[row]]}' and {passage} the score "
        f'{scores[tuple(bad[0])]}, and {len(bad)} of {scores.size} scores of split '
        f"'{queries.split}' are not finite; look at its weights or its file, or take it out of the "
        'config.'
    )
