"""The teacher: an ensemble of scorers, its logits, and its re-ranking of the first stage."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.special

from jdkd.algorithm.lists import eval_inputs, eval_qrels
from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.systems import measuring, scoring
from jdkd.systems.ranking import measure_inputs, ranking_inputs
from jdkd.systems.system import System

Fit = Callable[[Sequence[np.ndarray]], list[float]]  # Raw scores `[M, N]` -> their weights.


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An ensemble whose logit is the weighted sum of its members' scores."""

    members: Sequence[System]
    weights: Sequence[float] | None  # One a member; None to fit them to the labels.

    def score(
        self,
        weights: Mapping[str, float],
        queries: Queries,
        lists: Lists,
        directory: pathlib.Path,
        prefix: str = '',
    ) -> np.ndarray:
        """Logits `[M, N]` of lists, with weights by name; see `scoring.score_in_parts`.

        `prefix` comes before the names of members in the names of files.
        """
        scores = (
            weights[m.name] * scoring.score_in_parts(m, queries, lists, directory, prefix + m.name)
            for m in self.members
        )
        return np.asarray(sum(scores))

    def weights_by_name(self, scores: Mapping[str, np.ndarray], fit: Fit) -> dict[str, float]:
        """The config's weights by name; without them, weights fitted to scores `[M, N]`."""
        names = [m.name for m in self.members]
        weights = self.weights
        if weights is None:
            weights = fit([scores[name] for name in names])
        return dict(zip(names, weights, strict=True))

    def inputs(self, weights: Mapping[str, float]) -> dict[str, list]:
        """Everything that decides its logits, as inputs of the stages that read them."""
        return {m.name: [m.digest, weights[m.name]] for m in self.members}


def fit_weights(scores: Sequence[np.ndarray], *, floor: float = 0.1) -> list[float]:
    """Fits non-negative weights of scores to the labels.

    Minimises the mean listwise cross-entropy -log softmax(sum_m w_m s_m)[positive] (ours), which
    also calibrates the distribution: its softmax at temperature 1 is as sharp as it is right.

    Where weights reach a cross-entropy below the floor, takes those of least norm (of scores at
    unit spread) that reach the floor (ours; training that stops at a loss is flooding, Ishida et
    al., 2020). Positives that always have the best score would otherwise ask for ever larger
    weights, and the distribution would be a copy of the labels.

    Args:
        scores: Raw, `[M, N]` for each member, with the positive at index 0.
        floor: Least cross-entropy in nats: -log of the positive's (geometric mean) probability.
    """
    stacked = np.stack(scores).astype(np.float64)
    # Scores of members differ by orders of magnitude: the search runs on unit spread.
    spread = np.maximum(stacked.std(axis=(1, 2)), 1e-12)
    stacked /= spread[:, None, None]
    weights, entropy = _least_cross_entropy(stacked, 0.0)
    if entropy < floor * (1 - 1e-3):  # Within the optimiser's tolerance it is at the floor.

        def above_floor(log_penalty):
            return _least_cross_entropy(stacked, np.exp(log_penalty))[1] - floor

        # A penalty of e^5 leaves weights of almost 0, one of e^-35 is none.
        root = scipy.optimize.root_scalar(above_floor, bracket=(-35.0, 5.0), xtol=1e-3).root
        weights, _ = _least_cross_entropy(stacked, np.exp(root))
    return [float(w) for w in weights / spread]


def _least_cross_entropy(scores_KxMxN: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Weights that minimise cross-entropy + penalty / 2 |w|^2, and their cross-entropy."""

    def cross_entropy(weights):
        logits = np.einsum('k,kmn->mn', weights, scores_KxMxN)
        log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        error = np.exp(log_p)
        error[:, 0] -= 1
        return -log_p[:, 0].mean(), np.einsum('kmn,mn->k', scores_KxMxN, error) / len(logits)

    def penalised(weights):
        value, gradient = cross_entropy(weights)
        return value + penalty / 2 * weights @ weights, gradient + penalty * weights

    count = len(scores_KxMxN)
    optimum = scipy.optimize.minimize(
        penalised, np.ones(count), jac=True, method='L-BFGS-B', bounds=[(0, None)] * count
    )
    return optimum.x, cross_entropy(optimum.x)[0]


def spread_weights(scores: Sequence[np.ndarray], spread: float) -> list[float]:
    """Weights that bring scores to one spread, without labels (ours).

    The spread of scores is their standard deviation among a list's candidates, in the mean over
    lists. Every member's weighted scores have the same, and that of their sum is `spread` logits.
    Constant scores get the weight 0.

    Scores are raw, `[M, N]` for each member.

    >>> scores = np.array([[0.0, 2.0], [3.0, 1.0]])
    >>> spread_weights([scores, 10 * scores], 4)
    [2.0, 0.2]
    """
    stacked = np.stack(scores).astype(np.float64)

    def weight(values):
        own = values.std(axis=1).mean()
        return 1 / own if own > 1e-12 else 0.0

    weights = np.array([weight(values) for values in stacked])
    total = weight(np.einsum('k,kmn->mn', weights, stacked))
    return [float(w) for w in spread * total * weights]


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
        lists = _to_rerank(ranking)
        rows = lists.query
        if not len(rows):
            raise ValueError(
                f"first_stage '{first.name}' finds no passage for any query of split "
                f"'{queries.split}', so that there is nothing to re-rank; name another system."
            )
        logits = teacher.score(weights, queries, lists, out)
        if not distributed.is_primary():
            return
        scores = np.full(ranking.passages.shape, -np.inf, np.float32)
        # A slot without a passage has been scored as its query's first passage.
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
    """{system: {measure: value}} on D_eval: `teacher` and the pool re-rank the first stage.

    All re-rank the same passages, so that their figures compare. Assistants whose imported scores
    do not cover these are left out.
    """
    weights = scores['teacher']

    def build_stage(out):
        ranking, _ = first.rank(run.held_out)
        rankings = {'teacher': rerank(run, 'teacher', teacher, weights, first, run.held_out)}
        for s in pool:
            if s.coverage(run.held_out, _to_rerank(ranking)) in (None, 1.0):
                alone = Teacher([s], [1.0]), {s.name: 1.0}
                rankings[s.name] = rerank(run, s.name, *alone, first, run.held_out)
        qrels = eval_qrels(run)
        measured = {n: measuring.measure(run, r, run.held_out, qrels) for n, r in rankings.items()}
        return {name: measurements.means for name, measurements in measured.items()}

    inputs = {
        **measure_inputs(run, {s.name: s for s in (first, *pool)}.values()),
        **eval_inputs(run),
        'teacher': teacher.inputs(weights),
        'first': first.name,
    }
    return run.stage('rounds/00/teacher_eval', inputs, build_stage)['result']


def _to_rerank(ranking: Ranking) -> Lists:
    """The passages of each query that has any."""
    rows = np.flatnonzero(ranking.passages[:, 0] >= 0).astype(np.int32)
    return Lists.from_ranked(rows, ranking.passages[rows])
