"""The scored pool: mined passages with the teacher's logits, from which hard negatives are drawn.

A passage that the teacher ranks close to the positive or above it is probably relevant, and one far
below teaches nothing. So negatives come from the passages that it ranks highest among those clearly
below the positive: positive-aware mining (Moreira et al., 2024, https://arxiv.org/abs/2407.15831),
with a margin in logits (ours). A pair is scored once: each round adds the passages that no earlier
one has mined, and all copies of a query draw from what was scored so far.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdkd.algorithm.round_files import (
    SPLITS,
    best_positives,
    load_mined,
    read_fitted,
    read_stand_ins,
    round_path,
    split_queries,
)
from jdkd.algorithm.teacher import Teacher, weighted_sum
from jdkd.lists.candidates import Lists, Ranked
from jdkd.run import Run
from jdkd.runtime import distributed
from jdkd.systems import scoring

_STAGE = 'pool'
_POSITIVES = 'positives'


def keep(run: Run, round_index: int, mined: dict, teacher: Teacher) -> dict[str, Any]:
    """Scores a round's newly mined passages with the teacher's members, as a stage.

    `mined` is the manifest of `mining.mine`. Of each query's mined passages the first
    `candidates.scored` count: the best ranked by each retriever. Returns everything that decides
    the pool, as inputs of the stages that draw from it.
    """
    stand_ins, config = read_stand_ins(run), run.config.candidates
    before = None
    if round_index:
        before = run.require_manifest(round_path(round_index - 1, _STAGE))['digest']

    def build(out):
        for split in SPLITS:
            queries = split_queries(run, split)
            passages = _new_passages(run, round_index, split)
            drawn = {split: _to_score(passages)[0]}
            if not round_index:
                drawn[f'{split}.{_POSITIVES}'] = _positive_pairs(run, split)
            for name, lists in drawn.items():
                for member in teacher.members:  # One in memory at a time.
                    scoring.score_in_parts(member, queries, lists, out, f'{name}.{member.name}')
            if distributed.is_primary():
                np.save(out / f'{split}.npy', passages)

    inputs = {
        'runs': mined['digest'],
        'before': before,
        'scored': config.scored,
        'stand_ins': stand_ins and stand_ins['digest'],
        'teacher': {m.name: m.digest for m in teacher.members},
    }
    manifest = run.stage(round_path(round_index, _STAGE), inputs, build, resumable=True)
    choice = {'hardest': config.hardest, 'margin': config.margin}
    return {'pairs': manifest['digest'], 'teacher': teacher.inputs, **choice}


def load(run: Run, round_index: int, split: str) -> tuple[np.ndarray, Ranked]:
    """The pool of a split up to a round: passages `[Q, U]` padded with -1, and their logits."""
    weights, config = read_fitted(run)['teacher'], run.config.candidates
    passages = [_load_passages(run, i, split) for i in range(round_index + 1)]
    scores = []
    for i, own in enumerate(passages):
        lists, rows = _to_score(own)
        scores.append(np.full(own.shape, np.nan))
        scores[i][rows] = _logits(run, i, split, weights, len(lists))
    counts = [len(rows) for rows in best_positives(run, split)]
    flat = _logits(run, 0, f'{split}.{_POSITIVES}', weights, sum(counts)).ravel()
    best = np.split(flat, np.cumsum(counts)[:-1])
    ranked = Ranked(np.concatenate(scores, axis=1), best, config.margin, config.hardest)
    return np.concatenate(passages, axis=1), ranked


def positive_and_top(run: Run, round_index: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """A query's first positive and its `candidates.scored` passages that the teacher ranks highest.

    Returns `[Q, U]` int32 passages, padded with -1, and `[Q, U]` float32 logits.
    """
    passages, ranked = load(run, round_index, split)
    positive = _first(best_positives(run, split), -1)
    # Texts of the positive may stand in the pool, too.
    group = run.collection.group
    repeats = (group[passages] == group[positive]) & (positive >= 0)
    passages = np.where(repeats, -1, passages)
    logits = np.where(passages >= 0, ranked.logits, -np.inf)
    order = np.argsort(-logits, axis=1, kind='stable')[:, : run.config.candidates.scored]
    passages = np.take_along_axis(passages, order, axis=1)
    logits = np.take_along_axis(logits, order, axis=1)
    passages = np.concatenate([positive, passages], axis=1)
    logits = np.concatenate([_first(ranked.best, np.nan), logits], axis=1)
    there = np.isfinite(logits)  # Imported scores may lack some.
    return (
        np.where(there, passages, -1).astype(np.int32),
        np.where(there, logits, 0.0).astype(np.float32),
    )


def _first(rows: Sequence[np.ndarray], missing: float) -> np.ndarray:
    """`[Q, 1]`: the first of each row; `missing` where imported scores left none."""
    return np.array([own[0] if len(own) else missing for own in rows])[:, None]


def _positive_pairs(run: Run, split: str) -> Lists:
    """Lists of one passage: each query with each of its positives."""
    best = best_positives(run, split)
    query = np.repeat(np.arange(len(best)), [len(rows) for rows in best])
    return Lists.from_originals(query.astype(np.int32), np.concatenate(best)[:, None])


def _new_passages(run: Run, round_index: int, split: str) -> np.ndarray:
    """Mined passages `[Q, W]` whose texts no earlier round has, padded with -1."""
    mined = load_mined(run, round_index, split)
    group, depth = run.collection.group, run.config.candidates.scored
    earlier = [_load_passages(run, i, split) for i in range(round_index)]
    rows = []
    for i, own in enumerate(mined):
        own = own[own >= 0][:depth]
        for before in earlier:
            own = own[~np.isin(group[own], group[before[i][before[i] >= 0]])]
        rows.append(own)
    passages = np.full((len(rows), max(1, *map(len, rows))), -1, np.int32)
    for out, own in zip(passages, rows, strict=True):
        out[: len(own)] = own
    return passages


def _to_score(passages: np.ndarray) -> tuple[Lists, np.ndarray]:
    """Lists of the queries that have passages, and their rows; nothing reads filled slots."""
    lists = Lists.from_originals(np.arange(len(passages), dtype=np.int32), passages)
    return lists.filled(passages >= 0)


def _load_passages(run: Run, round_index: int, split: str) -> np.ndarray:
    return np.load(run.workdir / round_path(round_index, _STAGE) / f'{split}.npy')


def _logits(
    run: Run, round_index: int, name: str, weights: Mapping[str, float], count: int
) -> np.ndarray:
    """Logits of the teacher, of lists that `keep` scored under a name."""
    directory = run.workdir / round_path(round_index, _STAGE)
    return weighted_sum(weights, lambda m: scoring.read_parts(directory, f'{name}.{m}', count))
