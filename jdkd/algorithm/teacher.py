"""The teacher: an ensemble of scorers, its logits, and its re-ranking of the first stage."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.special

from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.systems import measuring, scoring
from jdkd.systems.ranking import measure_inputs, ranking_inputs
from jdkd.systems.system import System


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An ensemble whose logit is the weighted sum of its members' scores."""

    members: Sequence[System]
    weights: Sequence[float] | None  # One a member; None to fit them to the labels.

    def score(
        self, weights: Mapping[str, float], queries: Queries, lists: Lists, directory: pathlib.Path
    ) -> np.ndarray:
        """Logits `[M, N]` of lists, with weights by name; see `scoring.score_in_parts`."""
        scores = (
            weights[m.name] * scoring.score_in_parts(m, queries, lists, directory, m.name)
            for m in self.members
        )
        return np.asarray(sum(scores))

    def weights_by_name(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The config's weights by name; without them, weights fitted to scores `[M, N]`."""
        names = [m.name for m in self.members]
        weights = self.weights
        if weights is None:
            weights = fit_weights([scores[name] for name in names])
        return dict(zip(names, weights, strict=True))

    def inputs(self, weights: Mapping[str, float]) -> dict[str, list]:
        """Everything that decides its logits, as inputs of the stages that read them."""
        return {m.name: [m.digest, weights[m.name]] for m in self.members}


def fit_weights(scores: Sequence[np.ndarray]) -> list[float]:
    """Fits non-negative weights of scores to the labels.

    Minimises the mean listwise cross-entropy -log softmax(sum_m w_m s_m)[positive] (ours), which
    also calibrates the distribution: its softmax at temperature 1 is as sharp as it is right.

    Scores are raw, `[M, N]` for each member, with the positive at index 0.
    """
    stacked = np.stack(scores).astype(np.float64)
    # Scores of members differ by orders of magnitude: the search runs on unit spread.
    spread = np.maximum(stacked.std(axis=(1, 2)), 1e-12)
    stacked /= spread[:, None, None]

    def loss_and_gradient(weights):
        logits = np.einsum('k,kmn->mn', weights, stacked)
        log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        error = np.exp(log_p)
        error[:, 0] -= 1
        gradient = np.einsum('kmn,mn->k', stacked, error) / len(logits)
        return -log_p[:, 0].mean(), gradient

    optimum = scipy.optimize.minimize(
        loss_and_gradient,
        np.ones(len(scores)),
        jac=True,
        method='L-BFGS-B',
        bounds=[(0, None)] * len(scores),
    )
    return [float(w) for w in optimum.x / spread]


def score_histogram(
    teacher: np.ndarray, labelled: np.ndarray, num_originals: int, num_reinforced: int
) -> dict:
    """Histograms of the teacher's logits by kind of candidate, and the share in the gap (ADAM).

    ADAM fills the gap above the upper quartile of the hard negatives and below the lower quartile
    of the positives. Where these overlap there is no gap, and their overlap takes its place.

    Args:
        teacher: `[M, N]` logits: positive, hard negatives, reinforced negatives, noisy positives.
        labelled: `[M]` bool, False where the positive is a stand-in, a kind of its own.
        num_originals, num_reinforced: Candidates that are originals, and reinforced negatives.

    Returns:
        `edges` of the bins, `counts` and `between` (the share in the gap) by kind, and the `gap`:
        the two quartiles, the first of which is the higher where they overlap.
    """
    end = num_originals + num_reinforced
    kinds = {
        'positive': teacher[labelled, :1],
        'stand_in': teacher[~labelled, :1],
        'hard_negative': teacher[:, 1:num_originals],
        'reinforced_negative': teacher[:, num_originals:end],
        'noisy_positive': teacher[:, end:],
    }
    kinds = {name: scores.ravel() for name, scores in kinds.items() if scores.size}
    edges = np.histogram_bin_edges(teacher, bins=40)
    positives = kinds['positive' if 'positive' in kinds else 'stand_in']
    gap = np.quantile(kinds['hard_negative'], 0.75), np.quantile(positives, 0.25)
    low, high = sorted(gap)
    return {
        'edges': [round(float(e), 4) for e in edges],
        'counts': {n: np.histogram(s, edges)[0].tolist() for n, s in kinds.items()},
        'between': {n: float(np.mean((s > low) & (s < high))) for n, s in kinds.items()},
        'gap': [float(end) for end in gap],
    }


def false_negatives(teacher: np.ndarray, rule: str, margin: float) -> np.ndarray:
    """Marks hard negatives that may be relevant, which the contrastive term must not push away.

    The rule `mask` marks those, `[M, N_o]` bool, whose logits `[M, N_o]` are less than a margin
    below those of the positive at index 0; the KL terms keep them, since the teacher's distribution
    says how relevant they are. `keep` marks none.

    Raises:
        ValueError: if the rule is neither.
    """
    if rule not in ('mask', 'keep'):
        raise ValueError(f"candidates.false_negatives is '{rule}'; use 'mask' or 'keep'.")
    above = teacher > teacher[:, :1] - margin
    above[:, 0] = False
    return above if rule == 'mask' else np.zeros_like(above)


def rerank(
    run: Run,
    name: str,
    teacher: Teacher,
    weights: Mapping[str, float],
    first: System,
    queries: Queries,
) -> Ranking:
    """Re-ranks a first stage's top passages, as the stage `systems/<name>/reranking-<split>`."""

    def build_stage(out):
        ranking, _ = first.rank(queries)
        # A slot without a passage is scored as its query's first passage and then put last.
        filled = np.where(ranking.passages >= 0, ranking.passages, ranking.passages[:, :1])
        rows = np.flatnonzero(filled[:, 0] >= 0).astype(np.int32)
        if not len(rows):
            raise ValueError(
                f"first_stage '{first.name}' finds no passage for any query of split "
                f"'{queries.split}', so that there is nothing to re-rank; name another system."
            )
        logits = teacher.score(weights, queries, Lists.from_originals(rows, filled[rows]), out)
        if not distributed.is_primary():
            return
        scores = np.full(filled.shape, -np.inf, np.float32)
        scores[rows] = np.where(ranking.passages[rows] >= 0, logits, -np.inf)
        order = np.argsort(-scores, axis=1, kind='stable')
        Ranking(
            np.take_along_axis(ranking.passages, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
        ).save(out, 'ranking')

    path = f'systems/{name}/reranking-{queries.split}'
    inputs = {**ranking_inputs(run, [first]), 'teacher': teacher.inputs(weights)}
    run.stage(path, inputs, build_stage, resumable=True)
    return Ranking.load(run.workdir / path, 'ranking')


def measure_teacher(
    run: Run, teacher: Teacher, scores: Mapping, first: System, pool: Sequence[System]
) -> dict[str, dict[str, float]]:
    """{system: {measure: value}} on D_eval: `teacher`, re-ranking the first stage, and the pool."""

    def build_stage(out):
        ranking = rerank(run, 'teacher', teacher, scores['teacher'], first, run.held_out)
        rankings = {'teacher': ranking, **{s.name: s.rank(run.held_out)[0] for s in pool}}
        return {n: measuring.measure(run, r, run.held_out).means for n, r in rankings.items()}

    inputs = {
        **measure_inputs(run, {s.name: s for s in (first, *pool)}.values()),
        'teacher': teacher.inputs(scores['teacher']),
        'first': first.name,
    }
    return run.stage('rounds/00/teacher_eval', inputs, build_stage)['result']
