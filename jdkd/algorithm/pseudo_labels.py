"""Pseudo-labels: before anything is trained, rankers label the train queries that they are sure of.

Where a query has no label, the passage that BM25 and an off-the-shelf model together rank first is
often its positive, and the more so, the further it leads the second: of the half with the largest
margins, about seven in ten are right where it was measured. Assistants are fine-tuned on these as
on labels: self-training with a confidence threshold (Lee, 2013,
https://api.semanticscholar.org/CorpusID:18507866), whose labels come from the sum of two rankers'
scores (ours). The student learns from the teacher, of which such an assistant is a member, and
whose best passages are better labels.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from absl import logging

from jdkd.algorithm.mining import best_passages
from jdkd.algorithm.teacher import Teacher, fit_of
from jdkd.lists import candidates
from jdkd.lists.candidates import Lists
from jdkd.run import PseudoLabels, Run
from jdkd.runtime import distributed
from jdkd.systems import roles, scoring
from jdkd.systems.build import build
from jdkd.systems.ranking import ranking_inputs

STAGE = 'pseudo_labels'
_FILE = 'labels.npz'


def label(run: Run) -> Run:
    """The run with pseudo-labels, chosen in a resumable stage if the config asks for them.

    Of the unlabelled train queries, the `pseudo_labels.share` with the largest margins get one.
    Ties get none, nor do pseudo-queries: their words are those of their passages, and would only
    teach to match words. The scores of the rankers are summed as the teacher's are: with weights
    fitted to the labels of D_eval or, without any, at one spread. The stage's result has these
    `weights`, the least `margin` in logits, and of D_eval's queries with such a margin the share
    whose best passage is a positive, `precision`; None where there is no such number.

    Raises:
        ValueError: if no query gets one, and none has a label.
    """
    config, run = run.config, dataclasses.replace(run, pseudo_labels=None)
    unlabelled = set(run.collection.unlabelled(run.train.split))
    rows = np.flatnonzero([i in unlabelled for i in run.train.ids]).astype(np.int32)
    if not config.pseudo_labels.systems or not len(rows):
        return run
    rankers = [build(run, name) for name in config.pseudo_labels.systems]

    def build_stage(out):
        ensemble = Teacher(rankers)
        ensemble = ensemble.with_weights(_weights(run, ensemble, rows, out))

        def best(queries, rows, prefix):
            lists = best_passages(run, queries, rows, rankers)
            return _lead(lists, ensemble.logits(queries, lists, out, prefix=prefix))

        passages, margins = best(run.train, rows, 'train.')
        count = roles.count_pseudo_labels(config, len(rows))
        chosen = np.argsort(-margins, kind='stable')[:count]
        chosen = np.sort(chosen[margins[chosen] > 0])
        if not (len(chosen) or run.train.is_labelled.any()):
            names = ', '.join(config.pseudo_labels.systems)
            raise ValueError(
                f'pseudo_labels.systems={names} put no passage first for any train query; name '
                'other systems.'
            )
        if distributed.is_primary():
            np.savez(out / _FILE, queries=rows[chosen], passages=passages[chosen])
        least, precision = float(margins[chosen].min(initial=np.inf)), None
        if run.eval_has_labels:
            judged = np.flatnonzero(run.held_out.is_labelled)
            on_eval, leads = best(run.held_out, judged, 'eval.')
            precision = _precision(run, judged[leads >= least], on_eval[leads >= least])
        return {
            'labels': len(chosen),
            'weights': ensemble.weights,
            'margin': least if np.isfinite(least) else None,
            'precision': precision,
        }

    inputs = {
        **ranking_inputs(run, rankers, run.train, run.held_out),
        'queries': candidates.array_digest(rows),
        'share': config.pseudo_labels.share,
        'best': config.candidates.stand_ins,
        'spread': None if run.eval_has_labels else config.spread,
        'hard_negatives': config.candidates.hard_negatives if run.eval_has_labels else None,
        'floor': config.fit_floor,
        'seed': config.seed,
    }
    result = run.stage(STAGE, inputs, build_stage, resumable=True)['result']
    message = 'pseudo-labels for %d of %d unlabelled train queries'
    logging.info(message, result['labels'], len(rows))
    if result['precision'] is not None:
        share = 100 * result['precision']
        logging.info("of D_eval's queries, such labels are right for %.0f%%", share)
    return read(run)


def read(run: Run) -> Run:
    """The run with the pseudo-labels that its workdir holds, if the config asks for them."""
    manifest = run.read_manifest(STAGE) if run.config.pseudo_labels.systems else None
    if manifest is None:
        return run
    with np.load(run.workdir / STAGE / _FILE) as f:
        labels = PseudoLabels(f['queries'], f['passages'], manifest['digest'])
    return dataclasses.replace(run, pseudo_labels=labels)


def _weights(run: Run, ensemble: Teacher, rows: np.ndarray, out) -> Mapping[str, float]:
    """Weights of the rankers by name: fitted to D_eval, or from the train queries' scores."""
    config, queries = run.config, run.held_out
    if run.eval_has_labels:
        prefix = 'fit.'
        judged = np.flatnonzero(queries.is_labelled).astype(np.int32)
        rankings = [ranker.rank(queries)[0].passages for ranker in ensemble.members]
        group, depth = run.collection.group, config.candidates.stand_ins
        lists = Lists.from_originals(
            judged,
            candidates.sample_lists(
                judged,
                np.zeros_like(judged),
                query_ids=queries.ids,
                positives=queries.positives,
                best=queries.best,
                pool=candidates.mined_passages(rankings, queries.positives, group, depth),
                group=group,
                num_negatives=config.candidates.hard_negatives,
                ranked=None,
                closed=False,
                seed=config.seed,
                round_index=0,
            ),
        )
        there = np.ones(lists.passages.shape, bool)
    else:
        prefix = 'train.'  # The scores that labels are chosen by: they are read again there.
        queries, best = run.train, best_passages(run, run.train, rows, ensemble.members)
        lists, kept = best.filled(best.passages >= 0)
        there = best.passages[kept] >= 0
    scores = scoring.score_with(ensemble.members, queries, lists, out, prefix, there)
    return ensemble.fit(scores, fit_of(run))


def _lead(lists: Lists, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each list's best passage `[M]`, -1 for none, and the margin `[M]` by which it leads."""
    values = np.where(np.isnan(logits), -np.inf, logits)
    order = np.argsort(-values, axis=1, kind='stable')[:, :2]
    first, second = np.take_along_axis(values, order, axis=1).T
    passages = np.take_along_axis(lists.passages, order[:, :1], axis=1)[:, 0]
    there = np.isfinite(first)
    # Where both are -inf, their difference is no number.
    margins = np.where(there, first, 0) - np.where(there, second, np.inf)
    return np.where(there, passages, -1).astype(np.int32), margins


def _precision(run: Run, rows: np.ndarray, passages: np.ndarray) -> float | None:
    """Share of D_eval's queries whose passage has the text of a positive."""
    group, positives = run.collection.group, run.held_out.positives
    right = [group[p] in group[positives[row]] for row, p in zip(rows, passages, strict=True)]
    return float(np.mean(right)) if right else None
