"""Decides once, in the first round, what all rounds share.

Weights of the teacher's members and scales of assistants are fitted to the labels of D_eval, or
bring scores to one spread where it has none; passages stand in for the positives of unlabelled
queries. The teacher never changes, so later rounds keep them.
"""

from collections.abc import Sequence

import numpy as np

from jdkd.algorithm import coverage
from jdkd.algorithm.mining import best_passages, draw
from jdkd.algorithm.round_files import (
    FITTED,
    SPLITS,
    STAND_INS,
    num_lists,
    split_queries,
    without_positive,
)
from jdkd.algorithm.teacher import Teacher, fit_of
from jdkd.lists.candidates import Lists
from jdkd.run import Run
from jdkd.runtime import distributed
from jdkd.systems import scoring
from jdkd.systems.ranking import ranking_inputs
from jdkd.systems.system import System


def fit(
    run: Run,
    mined: dict,
    teacher: Teacher,
    pool: Sequence[System],
    retrievers: Sequence[System],
) -> None:
    """Fits weights of the teacher's members and scales of assistants to the labels of D_eval.

    These are held out: members may have been trained on the labels of the train queries. Without
    any, brings scores to `config.spread`, over the retrievers' best passages.
    """
    config, queries = run.config, run.held_out
    members = teacher.members if teacher.weights is None else []
    unscaled = [s for s in pool if s.scale is None]
    has_labels, partial = run.eval_has_labels, coverage.partial([*teacher.members, *pool])

    def build(out):
        fit_to = fit_of(run)
        if has_labels:
            rows, _, passages = draw(run, 'eval', 0, run.eval_rows)
            drawn = Lists.from_originals(rows, passages)
            there = passages >= 0
        else:
            rows = without_positive(run, 'eval')
            best = best_passages(run, queries, rows, retrievers, partial)
            drawn, kept = best.filled(best.passages >= 0)
            there = best.passages[kept] >= 0
            if not len(drawn):
                names = [s.name for s in partial]
                raise ValueError(coverage.none_usable(config, queries.split, names))
        systems = [*members, *unscaled]
        scores = scoring.score_with(systems, queries, drawn, out, there=there)
        return {
            'teacher': teacher.fit(scores, fit_to),
            'scales': {s.name: fit_to([scores[s.name]])[0] for s in unscaled},
        }

    inputs = {
        'runs': mined['digest'],
        'lists': num_lists(run)['eval'],
        'hard_negatives': config.candidates.hard_negatives,
        'spread': None if has_labels else [config.spread, config.candidates.stand_ins],
        'seed': config.seed,
        'teacher': {m.name: m.digest for m in teacher.members},
        'weights': teacher.weights,
        'floor': config.fit_floor,
        'assistants': {s.name: [s.digest, s.scale] for s in pool},
    }
    run.stage(FITTED, inputs, build, resumable=True)


def find_stand_ins(
    run: Run, teacher: Teacher, pool: Sequence[System], retrievers: Sequence[System]
) -> None:
    """Keeps for each unlabelled query the passage that stands in for its positive (ours).

    That is the teacher's best among the retrievers' best passages, or among those that imported
    scores of the teacher and the pool cover; row -1 where there is none.
    """
    partial = coverage.partial([*teacher.members, *pool])
    depth = run.config.candidates.stand_ins

    def build(out):
        for split in SPLITS:
            rows = without_positive(run, split)
            if not len(rows):
                continue
            queries = split_queries(run, split)
            drawn = best_passages(run, queries, rows, retrievers, partial)
            logits = teacher.logits(queries, drawn, out, prefix=f'{split}.')
            if distributed.is_primary():
                best = np.argmax(np.where(np.isnan(logits), -np.inf, logits), axis=1)
                np.save(out / f'{split}.npy', drawn.passages[np.arange(len(best)), best])

    inputs = {
        **ranking_inputs(run, retrievers, run.train, run.held_out, depth=depth),
        'teacher': teacher.inputs,
        'partial': {s.name: s.digest for s in partial} or None,
    }
    run.stage(STAND_INS, inputs, build, resumable=True)
