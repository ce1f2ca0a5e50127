"""Decides once, in the first round, what all rounds share.

Weights of the teacher's members and scales of assistants are fitted to the labels of D_eval;
passages stand in for the positives of unlabelled queries. The teacher never changes, so later
rounds keep them.
"""

from collections.abc import Sequence

import numpy as np

from jdkd.algorithm import lists
from jdkd.algorithm.teacher import Teacher, fit_weights
from jdkd.lists import candidates
from jdkd.lists.candidates import Lists
from jdkd.run import Run
from jdkd.runtime import distributed
from jdkd.systems import scoring
from jdkd.systems.ranking import ranking_inputs
from jdkd.systems.system import System

_FITTED = 'rounds/00/fitted'


def read_fitted(run: Run) -> dict:
    """`teacher` {member: weight} and `scales` {assistant: scale} as fitted in the first round."""
    return lists.read_manifest(run, _FITTED)['result']


def fit(run: Run, mined: dict, teacher: Teacher, pool: Sequence[System]) -> None:
    """Fits weights of the teacher's members and scales of assistants to the labels of D_eval.

    These are held out: members may have been trained on the labels of the train queries.
    """
    config, queries = run.config, run.held_out
    members = teacher.members if teacher.weights is None else []
    unscaled = [s for s in pool if s.scale is None]

    def build(out):
        labelled = np.flatnonzero(queries.is_labelled)
        rows, _, passages = lists.draw(run, 'eval', 0, labelled)
        drawn = Lists.from_originals(rows, passages)
        scores = {
            name: scoring.score_in_parts(s, queries, drawn, out, name)
            for name, s in {s.name: s for s in [*members, *unscaled]}.items()
        }
        return {
            'teacher': teacher.weights_by_name(scores),
            'scales': {
                s.name: fit_weights([scores[s.name]], floor=config.fit_floor)[0] for s in unscaled
            },
        }

    inputs = {
        'runs': mined['digest'],
        'lists': lists.num_lists(run)['eval'],
        'hard_negatives': config.candidates.hard_negatives,
        'seed': config.seed,
        'teacher': {m.name: m.digest for m in teacher.members},
        'weights': teacher.weights,
        'floor': config.fit_floor,
        'assistants': {s.name: [s.digest, s.scale] for s in pool},
    }
    run.stage(_FITTED, inputs, build, resumable=True)


def find_stand_ins(run: Run, teacher: Teacher, retrievers: Sequence[System]) -> None:
    """Keeps for each unlabelled query the passage that stands in for its positive (ours).

    That is the teacher's best among the retrievers' best passages.
    """
    weights = read_fitted(run)['teacher']
    depth = run.config.candidates.stand_ins

    def build(out):
        queries = np.flatnonzero(~run.train.is_labelled).astype(np.int32)
        rankings = [r.rank(run.train)[0].passages[queries] for r in retrievers]
        passages = candidates.interleave(rankings, run.collection.group, depth)
        # A slot without a passage repeats the first, which does not change the best.
        passages = np.where(passages >= 0, passages, passages[:, :1])
        drawn = Lists.from_originals(queries, passages)
        scores = teacher.score(weights, run.train, drawn, out)
        if distributed.is_primary():
            best = np.argmax(scores, axis=1)
            np.save(out / 'passages.npy', passages[np.arange(len(passages)), best])

    inputs = {**ranking_inputs(run, retrievers, depth=depth), 'teacher': teacher.inputs(weights)}
    run.stage(lists.STAND_INS, inputs, build, resumable=True)
