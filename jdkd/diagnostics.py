"""Conditions that do not stop a run but that its user should know about.

Each is logged when it is detected and kept in the report with the figure that triggered it. The
thresholds are ours.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import scipy.special
from absl import logging

# Shares above these are no chance: lists with equal scores, and scores at an end of their range.
CONSTANT, SATURATED = 0.05, 0.2
# A list is near one-hot if its largest probability exceeds the first. If more than the second share
# of the lists are, a student learns little beside the labels (ADAM, section 1).
ONE_HOT, ONE_HOT_SHARE = 0.99, 0.5
# Mean cosine of two passages. Trained encoders may share a direction and still rank well (E5 has
# about 0.75, raw BERT up to 0.9). Beyond this, differences drown in the rounding of bfloat16.
COLLAPSED = 0.99


class RunWarning(TypedDict):
    """An entry of `warnings` in report.json."""

    what: str  # Its kind.
    round: int | None  # None if it concerns the whole run.
    system: str
    figure: float  # The value that gave rise to it.
    message: str  # A sentence, with a remedy.


def constant_share(values: np.ndarray, starts: np.ndarray) -> float:
    """Share of the lists with several scores whose scores are all equal.

    List i has the scores `values[starts[i]:starts[i + 1]]`, at least one.
    """
    several = np.diff(starts) > 1
    low, high = (f.reduceat(values, starts[:-1]) for f in (np.minimum, np.maximum))
    return float((low == high)[several].mean()) if several.any() else 0.0


def saturated_share(values: np.ndarray) -> float:
    """Share of `[n]` scores within 0.1% of their range from its ends, less one score at each."""
    low, high = values.min(), values.max()
    if low == high or len(values) < 3:
        return 0.0
    margin = (high - low) / 1000
    near = (values <= low + margin) | (values >= high - margin)
    return float((near.sum() - 2) / (len(near) - 2))


def one_hot_share(logits: np.ndarray, temperature: float) -> float:
    """Share of `[M, N]` lists whose score distribution is near one-hot at a temperature."""
    return float((scipy.special.softmax(logits / temperature, axis=1).max(axis=1) > ONE_HOT).mean())


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine of all pairs of `[n, dim]` vectors; 0 for fewer than two."""
    n = len(vectors)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    total = (vectors / np.maximum(length, 1e-30)).astype(np.float64).sum(axis=0)
    return float((total @ total - n) / (n * (n - 1))) if n > 1 else 0.0


def flatness_warnings(
    system: str, figures: Mapping[str, float], round_index: int | None = None
) -> list[RunWarning]:
    """Warns of scores of a system that do not distinguish passages.

    `figures` has `constant_share` and, unless scores are bounded by nature, `saturated_share`.
    """
    warnings = []
    if (share := figures['constant_share']) > CONSTANT:
        message = f'{system}: {share:.1%} of the lists have equal scores: nothing is learned there.'
        warnings.append(_warning('constant', round_index, system, share, message))
    if (share := figures.get('saturated_share', 0.0)) > SATURATED:
        message = (
            f'{system}: {share:.1%} of the scores lie within a thousandth of their range from one '
            'of its ends: rounding or a sigmoid has flattened them; give raw scores (logits).'
        )
        warnings.append(_warning('saturated', round_index, system, share, message))
    return warnings


def score_warnings(
    round_index: int, scores: Mapping[str, Any], *, has_labels: bool
) -> list[RunWarning]:
    """Warns of a round's scores; see `gen_dataset.generate`.

    `has_labels` says whether weights and scales were fitted to labels of D_eval.
    """
    warnings = []
    for system, figures in scores['flatness'].items():
        warnings += flatness_warnings(system, figures, round_index)
    warnings += _one_hot_warnings(round_index, scores['one_hot'])
    return warnings if round_index else warnings + _weightless_warnings(scores, has_labels)


def _weightless_warnings(scores: Mapping[str, Any], has_labels: bool) -> list[RunWarning]:
    """Warns of weights and scales of 0, which all rounds share."""
    warnings = []
    reason = 'do not tell positives from their hard negatives' if has_labels else 'are all equal'
    for system, scale in scores['scales'].items():
        if scale == 0:
            message = (
                f'{system}: its scale on D_eval is 0, because its scores there {reason}: its '
                f'distributions are uniform; set systems.{system}.scale, or take it out.'
            )
            warnings.append(_warning('weightless', 0, system, 0.0, message))
    if not any(scores['teacher'].values()):
        message = (
            "the teacher's distributions are uniform: every member has the weight 0, because its "
            f'scores on D_eval {reason}; name other members, or set teacher.weights.'
        )
        warnings.append(_warning('weightless', 0, 'teacher', 0.0, message))
    return warnings


def _one_hot_warnings(round_index: int, shares: Mapping[str, float]) -> list[RunWarning]:
    warnings = []
    if (share := shares['originals']) > ONE_HOT_SHARE:
        message = (
            f'the teacher is near one-hot (a probability above {ONE_HOT}) in {share:.1%} of the '
            f'lists, and in {shares["all"]:.1%} with their dark examples: these say little more '
            'than the labels; raise loss.temperature or dark.reinforced, or mine harder negatives.'
        )
        warnings.append(_warning('one_hot', round_index, 'teacher', share, message))
    return warnings


def comparison_warnings(
    round_index: int,
    measure: str,
    compared: Mapping[str, Any],
    first_stage: str | None,
    start: str,
    outside: Collection[str],
    backtrack: float,
) -> list[RunWarning]:
    """Warns of what Compare measured on D_eval; see `iterate.compare`.

    `measure` decides, and `start` is the name of the student before round 0, aligned or not.
    `first_stage` is None where D_eval has no labels that could tell a weak assistant. `outside`
    names the assistants that are no members of the teacher: a member may be weak alone, and the
    teacher has weighted it; a student in the pool beat what it replaced.
    """
    warnings = []
    floor = compared['references'][first_stage][measure] if first_stage else 0.0
    for system, measures in compared['assistants'].items():
        if system in outside and (value := measures[measure]) < floor:
            message = (
                f'assistant {system} ({measure} {value:.4f} on D_eval) is worse than {first_stage} '
                f'({floor:.4f}): train it from labels (systems.{system}.train.steps), or take it '
                'out of assistants.'
            )
            warnings.append(_warning('weak_assistant', round_index, system, value, message))
    value, before = compared['student'][measure], compared['references'][start][measure]
    if value < before:
        remedy = 'lower the learning rate' + ('' if backtrack else ', set backtrack')
        message = (
            f'the student ({measure} {value:.4f} on D_eval) is worse than {start} '
            f'({before:.4f}), before round 0: {remedy}, or look at the losses.'
        )
        warnings.append(_warning('worse_student', round_index, 'student', value, message))
    if (cosine := compared['mean_cosine']) > COLLAPSED:
        message = (
            f'the student has collapsed: two passages have a mean cosine of {cosine:.4f}, above '
            f'{COLLAPSED}; lower the learning rate, or raise loss.contrastive or student.scale.'
        )
        warnings.append(_warning('collapsed', round_index, 'student', cosine, message))
    return warnings


def teacher_warnings(
    measure: str, measured: Mapping[str, Mapping[str, float]], first_stage: str
) -> list[RunWarning]:
    """Warns of assistants that are better than the teacher on D_eval.

    `measured` has {measure: value} of `teacher` and of assistants, all re-ranking the passages of
    the first stage: on the whole collection, an assistant also finds what the teacher is not shown.
    """
    values = {system: measures[measure] for system, measures in measured.items()}
    if 'teacher' not in values:  # It has no scores of the first stage's passages.
        return []
    teacher = values.pop('teacher')
    message = (
        f'the teacher ({measure} {teacher:.4f} on D_eval, re-ranking {first_stage}) is worse than '
        'assistant {} ({:.4f}, re-ranking the same passages): a student can learn more from the '
        'assistant; use a better teacher.'
    )
    return [
        _warning('weak_teacher', None, system, value, message.format(system, value))
        for system, value in values.items()
        if value > teacher
    ]


def coverage_warnings(
    system: str, path: str, count: int, total: int, split: str, first_stage: str
) -> list[RunWarning]:
    """Warns of imported scores of a teacher's member that lack test queries.

    `count` of the `total` queries have any.
    """
    if count == total:
        return []
    lacks = f'{system}: {path} has scores for {count} of the {total} queries of split {split!r}: '
    lacks += (
        f"the teacher's re-ranking keeps the order of {first_stage} for the others."
        if count
        else "the report has no row for the teacher's re-ranking."
    )
    return [_warning('coverage', None, system, count / total, lacks)]


def skipped_rounds_warnings(rounds: int, trained: int) -> list[RunWarning]:
    """Warns of rounds that are not trained; see `Run.num_rounds`."""
    if trained == rounds:
        return []
    message = (
        'all queries of D_eval were made from passages, which cannot tell which student is better: '
        'no round is trained, and the run ends with the aligned student. Give a log of queries, or '
        'those of a generator (collection.pseudo_queries.file); final=last trains the rounds.'
    )
    return [_warning('no_rounds', None, 'student', float(rounds), message)]


def log(warnings: Sequence[RunWarning]) -> list[RunWarning]:
    """Logs warnings and returns them."""
    for line in lines(warnings):
        logging.warning('%s', line)
    return list(warnings)


def lines(warnings: Sequence[RunWarning]) -> list[str]:
    """One line of text for each warning, with its round."""
    return [
        w['message'] if w['round'] is None else f'round {w["round"]}: {w["message"]}'
        for w in warnings
    ]


def _warning(what: str, round_index, system: str, figure: float, message: str) -> RunWarning:
    return RunWarning(what=what, round=round_index, system=system, figure=figure, message=message)
