"""GenDataset of Algorithm 1: retrieve, draw candidates, score them, write D_train and D_eval."""

from collections.abc import Iterator, Sequence

import numpy as np

from jdkd import diagnostics
from jdkd.algorithm import calibration, mining, scored_pool
from jdkd.algorithm.round_files import (
    PART_LISTS,
    SPLITS,
    has_stand_ins,
    load_originals,
    positives,
    read_dark_tokens,
    read_fitted,
    round_path,
    split_queries,
)
from jdkd.algorithm.scores import keep_scores, load_logits
from jdkd.algorithm.teacher import Teacher, false_negatives
from jdkd.distillation import schedules
from jdkd.lists import dataset
from jdkd.lists.features import record_features
from jdkd.run import Run
from jdkd.runtime import distributed, stages
from jdkd.systems.encoders import Encoder
from jdkd.systems.system import System, unique


def generate(
    run: Run,
    round_index: int,
    *,
    teacher: Teacher,
    miners: Sequence[System],
    pool: Sequence[System],
    student: System,
    encoder: Encoder,
    active: np.ndarray,
) -> tuple[dict, dict]:
    """Builds `rounds/<i>/{runs,candidates,pool,scores,dataset}`.

    Round 0 also builds `fitted` and `stand_ins`, which all rounds share.

    Args:
        miners: Retrievers that mine hard negatives beside the pool and the student.
        student, encoder: M, as it enters the round, and its tokenizer and lengths.
        active: Rows of the train queries of this round.

    Returns:
        The result of `scores.keep_scores` with the `one_hot` shares of the teacher's lists, and
        the dataset's manifest.
    """
    retrievers = unique([*miners, *pool, student])
    mined = mining.mine(run, round_index, retrievers, [*teacher.members, *pool])
    if round_index == 0:
        calibration.fit(run, mined, teacher, pool, retrievers)
        teacher = teacher.with_weights(read_fitted(run)['teacher'])
        if has_stand_ins(run):
            calibration.find_stand_ins(run, teacher, pool, retrievers)
    scored = None
    if run.config.candidates.hardest:
        scored = scored_pool.keep(run, round_index, mined, teacher)
    drawn = mining.keep_lists(run, round_index, mined, encoder, active, scored)
    scores = keep_scores(run, round_index, drawn, teacher, pool)
    path = round_path(round_index, 'dataset')
    rule = [run.config.candidates.false_negatives, run.config.candidates.margin]
    inputs = {'scores': scores['digest'], 'false_negatives': rule}

    def write(out):
        dataset.write(out, {split: _features(run, round_index, split) for split in SPLITS})

    files = [run.workdir / path / stages.MANIFEST]
    written = distributed.from_primary(lambda: run.stage(path, inputs, write), path, writes=files)
    return {**scores['result'], 'one_hot': _one_hot_shares(run, round_index)}, written


def load_records(
    run: Run, round_index: int, split: str, assistants: Sequence[str]
) -> dataset.WithFeatures:
    """D_train or D_eval of a round: its records, with the logits of teacher and assistants."""
    source = dataset.read(run.workdir / round_path(round_index, 'dataset'), split)
    return dataset.WithFeatures(source, load_logits(run, round_index, split, assistants))


def _features(run: Run, round_index: int, split: str) -> Iterator[dict[str, np.ndarray]]:
    """Yields the features of D_train or D_eval in parts; scores stay in their own stage."""
    all_lists = load_originals(run, round_index, split)
    relevant, config = positives(run, split), run.config.candidates
    teacher = load_logits(run, round_index, split)['teacher']
    dark = read_dark_tokens(run, round_index, split)
    for start in range(0, len(all_lists), PART_LISTS):
        lists = all_lists[start : start + PART_LISTS]
        features = record_features(run, lists, relevant)
        if has_stand_ins(run):
            features['labelled'] = split_queries(run, split).is_labelled[lists.query]
        if (tokens := next(dark, None)) is not None:
            features['dark'] = tokens.astype(np.int32)
        originals = teacher[start : start + PART_LISTS, : lists.passages.shape[1]]
        marks = false_negatives(originals, config.false_negatives, config.margin)
        yield features | {'false_negative': marks}


def _one_hot_shares(run: Run, round_index: int) -> dict[str, float]:
    """Shares of the train lists, without and with dark examples, whose teacher is near one-hot.

    Measured at the temperature that the round begins with: no stage before training depends on it.
    """
    config = run.config
    tau = float(schedules.value(config.loss.temperature, round_index / config.rounds))
    teacher = load_logits(run, round_index, 'train')['teacher']
    originals = teacher[:, : 1 + config.candidates.hard_negatives]
    return {
        name: diagnostics.one_hot_share(logits, tau)
        for name, logits in (('originals', originals), ('all', teacher))
    }
