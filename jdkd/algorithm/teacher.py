"""The teacher: what its logits are, and what they say of the lists."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.special

from jdkd.lists.candidates import Lists
from jdkd.retrieval import index
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import distributed
from jdkd.systems import measuring, scoring
from jdkd.systems.ranking import measure_inputs, ranking_inputs
from jdkd.systems.system import System


@dataclasses.dataclass(frozen=True)
class Teacher:
    """An ensemble of named scorers: its logit is the weighted sum of theirs.

    Attributes:
        members: The scorers.
        weights: One a member; None to fit them to the labels.
    """

    members: Sequence[System]
    weights: Sequence[float] | None

    def score(
        self,
        weights: Mapping[str, float],
        queries: Queries,
        lists: Lists,
        directory: pathlib.Path,
    ) -> np.ndarray:
        """`[M, N]` logits, given the weights by name; see `scoring.score_in_parts`."""
        return sum(
            weights[m.name] * scoring.score_in_parts(m, queries, lists, directory, m.name)
            for m in self.members
        )

    def weights_on(self, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Weights by name: those given, or fitted to scores `[M, N]` of each member."""
        names = [m.name for m in self.members]
        weights = self.weights
        if weights is None:
            weights = fit_weights([scores[name] for name in names])
        return dict(zip(names, weights, strict=True))


def fit_weights(scores: Sequence[np.ndarray]) -> list[float]:
    """Non-negative weights whose sum of scores explains the labels best.

    Minimises the mean listwise cross-entropy -log softmax(sum_m w_m s_m)[positive] (ours), which
    also calibrates the distribution: its softmax at temperature 1 is as sharp as it is right.

    Args:
        scores: For each member `[M, N]` raw scores, the positive at index 0.

    Returns:
        One weight a member.
    """
    stacked = np.stack(scores).astype(np.float64)
    # Members differ in scale by orders of magnitude; the search runs on scores of unit spread.
    spread = np.maximum(stacked.std(axis=(1, 2)), 1e-12)
    stacked /= spread[:, None, None]

    def loss_and_gradient(weights):
        logits = np.einsum('k,kmn->mn', weights, stacked)
        log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        error = np.exp(log_p)
        error[:, 0] -= 1
        gradient = np.einsum('kmn,mn->k', stacked, error) / len(logits)
        return -log_p[:, 0].mean(), gradient

    found = scipy.optimize.minimize(
        loss_and_gradient,
        np.ones(len(scores)),
        jac=True,
        method='L-BFGS-B',
        bounds=[(0, None)] * len(scores),
    )
    return [float(w) for w in found.x / spread]


def score_histogram(
    teacher: np.ndarray, labelled: np.ndarray, num_originals: int, num_reinforced: int
) -> dict:
    """The teacher's logits by kind of candidate, and how many of each lie between (ADAM's figure).

    "Between" is the gap that ADAM fills: above the upper quartile of the hard negatives and below
    the lower quartile of the positives. Where these overlap there is no gap, and it is what both
    have in common.

    Args:
        teacher: `[M, N]` logits: positive, hard negatives, reinforced negatives, noisy positives.
        labelled: `[M]` bool, False where the positive is a stand-in, which is another kind.
        num_originals: Positive and hard negatives.
        num_reinforced: Reinforced negatives.

    Returns:
        `edges` of the bins, `counts` and `between` (a share) by kind, and the two quartiles as the
        `gap`, of which the first is the higher where there is none.
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
    positives = kinds.get('positive', kinds.get('stand_in'))
    gap = np.quantile(kinds['hard_negative'], 0.75), np.quantile(positives, 0.25)
    low, high = sorted(gap)
    return {
        'edges': [round(float(e), 4) for e in edges],
        'counts': {n: np.histogram(s, edges)[0].tolist() for n, s in kinds.items()},
        'between': {n: float(np.mean((s > low) & (s < high))) for n, s in kinds.items()},
        'gap': [float(end) for end in gap],
    }


def false_negatives(teacher: np.ndarray, rule: str) -> np.ndarray:
    """Originals that the contrastive term must not push away.

    Args:
        teacher: `[M, N_o]` logits, the positive at index 0.
        rule: `mask` takes hard negatives that the teacher scores above the positive out of the
            contrastive term; the KL terms keep them, since the teacher's distribution says how
            relevant they are. `keep` treats them as negatives.

    Returns:
        `[M, N_o]` bool.

    Raises:
        ValueError: if the rule is neither.
    """
    if rule not in ('mask', 'keep'):
        raise ValueError(f"candidates.false_negatives is '{rule}'; use 'mask' or 'keep'.")
    above = teacher > teacher[:, :1]
    return above if rule == 'mask' else np.zeros_like(above)


def rerank(
    run: Run,
    name: str,
    teacher: Teacher,
    weights: Mapping[str, float],
    first: System,
    queries: Queries,
) -> Ranking:
    """The first stage's top passages in the order of a teacher's scores, kept as a stage.

    Args:
        run: The run.
        name: Of the teacher; the stage is `systems/<name>/reranking-<split>`.
        teacher: Scores.
        weights: Of its members, by name.
        first: Its top passages are scored.
        queries: A split's.
    """

    def build_stage(out):
        ranking, _ = first.rank(queries)
        # Slots without a passage are scored as the first one of their query and then put last.
        known = np.where(ranking.passages >= 0, ranking.passages, ranking.passages[:, :1])
        found = np.flatnonzero(known[:, 0] >= 0).astype(np.int32)
        if not len(found):
            raise ValueError(
                f"first_stage '{first.name}' finds no passage for any query of split "
                f"'{queries.split}', so that there is nothing to re-rank; name another system."
            )
        logits = teacher.score(weights, queries, Lists.from_originals(found, known[found]), out)
        if not distributed.is_primary():
            return
        scores = np.full(known.shape, -np.inf, np.float32)
        scores[found] = np.where(ranking.passages[found] >= 0, logits, -np.inf)
        order = np.argsort(-scores, axis=1, kind='stable')
        Ranking(
            np.take_along_axis(ranking.passages, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
        ).save(out, 'ranking')

    path = f'systems/{name}/reranking-{queries.split}'
    run.stage(
        path,
        {
            **ranking_inputs(run, [first]),
            'teacher': {m.name: [m.digest, weights[m.name]] for m in teacher.members},
        },
        build_stage,
        resumable=True,
    )
    return index.load_ranking(run.workdir / path, 'ranking')


def measure_teacher(
    run: Run, teacher: Teacher, scores: Mapping, first: System, pool: Sequence[System]
) -> dict[str, dict[str, float]]:
    """{system: {measure: value}} on D_eval: the pool, and `teacher` re-ranking the first stage."""

    def build_stage(out):
        ranking = rerank(run, 'teacher', teacher, scores['teacher'], first, run.held_out)
        found = {'teacher': measuring.measure(run, ranking, run.held_out)}
        for system in pool:
            found[system.name] = measuring.measure(run, system.rank(run.held_out)[0], run.held_out)
        return {name: measured.means for name, measured in found.items()}

    return run.stage(
        'rounds/00/teacher_eval',
        {
            **measure_inputs(run, {s.name: s for s in (first, *pool)}.values()),
            'teacher': {m.name: [m.digest, scores['teacher'][m.name]] for m in teacher.members},
            'first': first.name,
        },
        build_stage,
    )['result']
