"""The train queries of the next round: those that the student still has to learn."""

from collections.abc import Sequence

import numpy as np

from jdkd.algorithm.round_files import positives, read_stand_ins, round_path
from jdkd.algorithm.teacher import Teacher
from jdkd.lists import candidates
from jdkd.lists.candidates import Lists
from jdkd.retrieval import measures
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Run
from jdkd.runtime import distributed
from jdkd.systems.ranking import ranking_inputs
from jdkd.systems.system import System

_DEPTH = 15  # Of the student's ranking, as in PROD.
_FILE = 'hard.npy'


def find(run: Run, round_index: int, student: System, teacher: Teacher) -> np.ndarray:
    """Marks the hard train queries after a round, `[Q]` bool, as a stage.

    With `hard_queries=wrong` those are the queries without a positive (or its stand-in) at rank 1
    of the student. `prod` follows PROD (Lin et al., 2023): the student's first positive is at rank
    2 to 15, and the teacher puts a positive first among these 15.
    """
    relevant, group, rule = positives(run), run.collection.group, run.config.hard_queries

    def build_stage(out):
        ranking, _ = student.rank(run.train)
        if rule == 'wrong':
            hard = measures.wrong_queries(ranking, relevant, group)
        else:
            rows = _at_rank_2_to_15(ranking, relevant, group)
            passages = ranking.passages[rows, :_DEPTH]
            hard = np.zeros(len(relevant), bool)
            if len(rows):
                drawn = Lists.from_originals(rows, passages)
                logits = teacher.logits(run.train, drawn, out)
                scored = np.isfinite(logits)
                best = np.argmax(np.where(scored, logits, -np.inf), axis=1)
                first = passages[np.arange(len(rows)), best]
                pairs = zip(first, rows, strict=True)
                hard[rows] = [group[p] in group[relevant[row]] for p, row in pairs]
                hard[rows] &= scored.any(axis=1)  # Of imported scores, some queries have none.
        if distributed.is_primary():
            np.save(out / _FILE, hard)

    stand_ins = read_stand_ins(run)
    inputs = {
        **ranking_inputs(run, [student], run.train),
        'stand_ins': stand_ins and stand_ins['digest'],
        'rule': rule,
        'teacher': teacher.inputs if rule == 'prod' else None,
    }
    path = round_path(round_index, 'hard_queries')
    run.stage(path, inputs, build_stage, resumable=True)
    return np.load(run.workdir / path / _FILE)


def _at_rank_2_to_15(
    ranking: Ranking, relevant: Sequence[np.ndarray], group: np.ndarray
) -> np.ndarray:
    """Rows of the queries whose first positive is at such a rank."""
    top = ranking.passages[:, :_DEPTH]
    found = [
        np.isin(group[passages], group[rows]) & (passages >= 0)
        for passages, rows in zip(top, relevant, strict=True)
    ]
    is_positive = np.array(found).reshape(top.shape)
    return np.flatnonzero(is_positive[:, 1:].any(axis=1) & ~is_positive[:, 0]).astype(np.int32)


def choose(hard: np.ndarray, replay: float, *, seed: int, round_index: int) -> np.ndarray:
    """Rows of the next round's queries: all hard ones and a share `replay` of the others.

    Where that leaves none, all queries.
    """
    rng = candidates.item_rng(seed, round_index, candidates.REPLAY, '')
    others = np.flatnonzero(~hard)
    kept = rng.choice(others, round(replay * len(others)), replace=False)
    rows = np.sort(np.concatenate([np.flatnonzero(hard), kept])).astype(np.int32)
    return rows if len(rows) else np.arange(len(hard), dtype=np.int32)
