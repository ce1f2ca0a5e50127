"""The teacher: an ensemble of scorers, its logits, and its re-ranking of the first stage."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
import scipy.optimize
import scipy.special

from jdkd.algorithm.round_files import eval_inputs, eval_qrels
from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.systems import measuring, scoring
from jdkd.systems.ranking import measure_inputs, ranking_inputs
from jdkd.systems.system import System, unique

Fit = Callable[[Sequence[np.ndarray]], list[float]]  # Raw scores `[M, N]` -> their weights.
_NO_SPREAD = 1e-9  # Of the largest score: what is left is rounding.


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An ensemble whose logit is the weighted sum of its members' scores."""

    members: Sequence[System]
    weights: Mapping[str, float] | None = None  # By name; None while they are to be fitted.

    @classmethod
    def alone(cls, system: System) -> Self:
        """The teacher that one system is by itself."""
        return cls([system], {system.name: 1.0})

    def logits(
        self,
        queries: Queries,
        lists: Lists,
        directory: pathlib.Path,
        within: Sequence[System] = (),
        prefix: str = '',
    ) -> np.ndarray:
        """Logits `[M, N]` of lists; NaN for row -1, and where a member has no score.

        NaN too where a system `within` which it is asked for has none. `prefix` comes before the
        names of members in the names of files; see `scoring.score_in_parts`.
        """
        there = scoring.covered([*self.members, *within], queries, lists)
        filled, rows = lists.filled(there)

        def score(member):
            name = prefix + member.name
            return scoring.score_in_parts(member, queries, filled, directory, name)

        logits = np.full(there.shape, np.nan)
        logits[rows] = self._sum(score)
        return np.where(there, logits, np.nan)

    def search(self, first: System, depth: int, question: str, k: int) -> Ranking:
        """Re-ranks the first stage's `depth` best passages of a question; `[1, k]` or fewer."""
        rows = first.search(question, depth).passages[0]
        scores = self._sum(lambda member: member.score(question, rows))
        order = np.argsort(-scores, kind='stable')[:k]
        return Ranking(rows[None, order], scores[None, order])

    def with_weights(self, weights: Mapping[str, float]) -> Self:
        """The teacher with weights that were fitted, or that it has."""
        return dataclasses.replace(self, weights=weights)

    def fit(self, scores: Mapping[str, np.ndarray], fit: Fit) -> Mapping[str, float]:
        """Its weights by name; where it has none, those fitted to scores `[M, N]` by name."""
        if self.weights is not None:
            return self.weights
        names = [m.name for m in self.members]
        return dict(zip(names, fit([scores[name] for name in names]), strict=True))

    @property
    def inputs(self) -> dict[str, list]:
        """Everything that decides its logits, as inputs of the stages that read them."""
        return {m.name: [m.digest, self._weights[m.name]] for m in self.members}

    @property
    def _weights(self) -> Mapping[str, float]:
        assert self.weights is not None, 'the weights are to be fitted first'
        return self.weights

    def _sum(self, scores: Callable[[System], np.ndarray]) -> np.ndarray:
        return np.asarray(sum(self._weights[m.name] * scores(m) for m in self.members))


def weighted_sum(weights: Mapping[str, float], scores: Callable[[str], np.ndarray]) -> np.ndarray:
    """The sum of scores, each times its weight; `scores` gives those of a name, one at a time."""
    return np.asarray(sum(weight * scores(name) for name, weight in weights.items()))


def fit_of(run: Run) -> Fit:
    """How scores of D_eval become logits: fitted to its labels; without any, at one spread."""
    if run.eval_has_labels:
        return functools.partial(fit_weights, floor=run.config.fit_floor)
    return functools.partial(spread_weights, spread=run.config.spread)


def fit_weights(scores: Sequence[np.ndarray], *, floor: float = 0.1) -> list[float]:
    """Fits non-negative weights of scores to the labels.

    Minimises the mean listwise cross-entropy -log softmax(sum_m w_m s_m)[positive] (ours), which
    also calibrates the distribution: its softmax at temperature 1 is as sharp as it is right.

    Where weights reach a cross-entropy below the floor, takes those of least norm (of scores at
    unit spread) that reach the floor (ours; training that stops at a loss is flooding, Ishida et
    al., 2020). Positives that always have the best score would otherwise ask for ever larger
    weights, and the distribution would be a copy of the labels. Scores that are constant within
    every list get the weight 0.

    Args:
        scores: Raw, `[M, N]` for each member, with the positive at index 0.
        floor: Least cross-entropy in nats: -log of the positive's (geometric mean) probability.
    """
    stacked = np.stack(scores).astype(np.float64)
    spread = stacked.std(axis=2).max(axis=1)
    tells = spread > _NO_SPREAD * np.abs(stacked).max(axis=(1, 2))
    if not tells.all():
        fitted = iter(fit_weights([*stacked[tells]], floor=floor) if tells.any() else ())
        return [next(fitted) if own else 0.0 for own in tells]
    # Scores of members differ by orders of magnitude: the search runs on unit spread.
    spread = stacked.std(axis=(1, 2))
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

    Scores are raw, `[M, N]` for each member, NaN where a list has no passage.

    >>> scores = np.array([[0.0, 2.0], [3.0, 1.0]])
    >>> spread_weights([scores, 10 * scores], 4)
    [2.0, 0.2]
    """
    stacked = np.stack(scores).astype(np.float64)

    def weight(values):
        own = np.nanstd(values, axis=1).mean()
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
    first: System,
    queries: Queries,
    within: Sequence[System] = (),
) -> Ranking | None:
    """Re-ranks a first stage's top passages, as the stage `systems/<name>/reranking-<split>`.

    Passages that the teacher's imported scores lack, or those of systems `within`, keep their order
    behind those that it ranks; None if it ranks none of any query.
    """

    def build_stage(out):
        ranking, _ = first.rank(queries)
        if not (ranking.passages >= 0).any():
            raise ValueError(
                f"first_stage '{first.name}' finds no passage for any query of split "
                f"'{queries.split}', so that there is nothing to re-rank; name another system."
            )
        rows = np.arange(len(queries), dtype=np.int32)
        lists = Lists.from_originals(rows, ranking.passages)
        logits = teacher.logits(queries, lists, out, within)
        if distributed.is_primary():
            reorder(ranking.passages, logits).save(out, 'ranking')
        return {'scored': int(np.isfinite(logits).sum())}

    path = f'systems/{name}/reranking-{queries.split}'
    inputs = {**ranking_inputs(run, [first]), 'teacher': teacher.inputs}
    inputs['within'] = {s.name: s.digest for s in within} or None
    result = run.stage(path, inputs, build_stage, resumable=True)['result']
    if result and not result['scored']:
        return None
    return Ranking.load(run.workdir / path, 'ranking')


def reorder(passages: np.ndarray, logits: np.ndarray) -> Ranking:
    """Orders each query's passages by their logits, with those that have none behind.

    Args:
        passages: `[Q, n]` rows, best first, -1 for none.
        logits: `[Q, n]`, NaN for none.

    Returns:
        The ranking; passages without logits keep their order, with falling scores below all.
    """
    low = np.min(logits, axis=1, keepdims=True, initial=0, where=np.isfinite(logits))
    behind = np.where(passages >= 0, low - 1 - np.arange(passages.shape[1]), -np.inf)
    scores = np.where(np.isnan(logits), behind, logits).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind='stable')
    passages, scores = (np.take_along_axis(x, order, axis=1) for x in (passages, scores))
    return Ranking(passages, scores)


def measure_teacher(
    run: Run, teacher: Teacher, first: System, pool: Sequence[System]
) -> dict[str, dict[str, float]]:
    """{system: {measure: value}} on D_eval: `teacher` and the pool re-rank the first stage.

    All re-rank the same passages, so that their figures compare: those that the teacher has scores
    for. Without it if there are none; assistants whose imported scores lack some are left out.
    """
    queries = run.held_out
    within = [member for member in teacher.members if member.is_partial]

    def build_stage(out):
        passages = first.rank(queries)[0].passages
        lists = Lists.from_originals(np.arange(len(passages), dtype=np.int32), passages)
        there = scoring.covered(within, queries, lists)
        rankings = {'teacher': rerank(run, 'teacher', teacher, first, queries)}
        for s in pool:
            if s.covers(queries, lists)[there].all():
                alone = Teacher.alone(s)
                rankings[s.name] = rerank(run, s.name, alone, first, queries, within)
        qrels = eval_qrels(run)
        return {
            name: measuring.measure(run, ranking, queries, qrels).means
            for name, ranking in rankings.items()
            if ranking is not None
        }

    inputs = {
        **measure_inputs(run, unique([first, *pool]), queries),
        **eval_inputs(run),
        'teacher': teacher.inputs,
        'first': first.name,
    }
    return run.stage('rounds/00/teacher_eval', inputs, build_stage)['result']
