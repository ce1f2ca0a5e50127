"""Numbers that a run can go on with, but its user should know: each with its figure.

A caution is a dict: `what` (its kind), `round` (None for the whole run), `system`, `figure` and
`message`, a sentence. It is logged where it is found and kept in the report. The limits are ours.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
from absl import logging

# Shares of the lists whose scores are all the same, and of the scores that lie at an end of their
# range: more of them is no chance.
CONSTANT, SATURATED = 0.05, 0.2
# A list is near one-hot if its largest probability is above the first; more such lists than the
# second share leave little for a student to learn beside the labels (ADAM, section 1).
ONE_HOT, ONE_HOT_SHARE = 0.99, 0.5
# Mean cosine of two passages. Trained encoders may have a common direction and rank well all the
# same (E5's cosines lie around 0.75, raw BERT's up to 0.9): this is far beyond those, where what
# tells passages apart drowns in the rounding of bfloat16.
ALIKE = 0.99

Caution = dict[str, Any]


def constant_share(values: np.ndarray, starts: np.ndarray) -> float:
    """Share of the lists of several scores that are all the same.

    Args:
        values: `[n]` scores, list after list.
        starts: `[lists + 1]`; list i has `values[starts[i]:starts[i + 1]]`, at least one.
    """
    several = np.diff(starts) > 1
    low = np.minimum.reduceat(values, starts[:-1])
    high = np.maximum.reduceat(values, starts[:-1])
    return float((low == high)[several].mean()) if several.any() else 0.0


def saturated_share(values: np.ndarray) -> float:
    """Share of `[n]` scores within a thousandth of their range from its ends, but for one each."""
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


def of_flatness(
    system: str, figures: Mapping[str, float], round_index: int | None = None
) -> list[Caution]:
    """Whether scores are flat.

    Args:
        system: Whose they are.
        figures: `constant_share` and, where a score has no bound of its own, `saturated_share`.
        round_index: In which they are used.
    """
    found = []
    if (share := figures['constant_share']) > CONSTANT:
        text = f'the scores of {share:.1%} of the lists are all the same: nothing is learned there'
        found.append(_caution('constant', round_index, system, share, f'{system}: {text}.'))
    if (share := figures.get('saturated_share', 0.0)) > SATURATED:
        text = (
            f'{share:.1%} of the scores lie within a thousandth of their range from one of its '
            'ends: rounding or a sigmoid has flattened them; give raw scores (logits)'
        )
        found.append(_caution('saturated', round_index, system, share, f'{system}: {text}.'))
    return found


def of_scores(round_index: int, scores: Mapping[str, Any]) -> list[Caution]:
    """What to say of a round's scores; see `gen_dataset.generate`."""
    found = []
    for system, figures in scores['flatness'].items():
        found += of_flatness(system, figures, round_index)
    for system, scale in scores['scales'].items():
        if scale == 0:
            text = (
                f'{system}: the scale that was fitted to the labels of D_eval is 0, since its '
                'scores do not tell positives from their hard negatives, so that its '
                f'distributions are uniform; set systems.{system}.scale, or take it out'
            )
            found.append(_caution('weightless', round_index, system, 0.0, f'{text}.'))
    if not any(scores['teacher'].values()):
        text = (
            "the teacher's distributions are uniform, since the weights of all its members are 0: "
            'what was fitted to the labels of D_eval found none that tells positives from their '
            'hard negatives; name other members, or set teacher.weights'
        )
        found.append(_caution('weightless', round_index, 'teacher', 0.0, f'{text}.'))
    shares = scores['one_hot']
    if (share := shares['originals']) > ONE_HOT_SHARE:
        text = (
            f'the teacher is near one-hot (a probability above {ONE_HOT}) in {share:.1%} of the '
            f'lists, and in {shares["all"]:.1%} with their dark examples: these say little more '
            'than the labels; raise loss.temperature or dark.reinforced, or mine harder negatives'
        )
        found.append(_caution('one_hot', round_index, 'teacher', share, f'{text}.'))
    return found


def of_comparison(
    round_index: int, measure: str, compared: Mapping[str, Any], first_stage: str, start: str
) -> list[Caution]:
    """What to say of Compare's measures on D_eval; see `iterate.compare`.

    Args:
        round_index: Of the comparison.
        measure: The one that decides.
        compared: Its result.
        first_stage: Name of the first stage, such as BM25.
        start: Name of the student before training.
    """
    found = []
    floor = compared['references'][first_stage][measure]
    for system, measures in compared['assistants'].items():
        if (ours := measures[measure]) < floor:
            if re.fullmatch(r'student_\d+', system):
                remedy = 'students need more steps_per_round before they can teach others'
            else:
                remedy = 'take it out of assistants, or train it from labels first'
            text = (
                f'assistant {system} ({measure} {ours:.4f} on D_eval) is worse than {first_stage} '
                f'({floor:.4f}): {remedy}'
            )
            found.append(_caution('weak_assistant', round_index, system, ours, f'{text}.'))
    ours, before = compared['student'][measure], compared['references'][start][measure]
    if ours < before:
        text = (
            f'the student ({measure} {ours:.4f} on D_eval) is worse than before training '
            f'({before:.4f}): lower the learning rate, or look at the losses'
        )
        found.append(_caution('worse_student', round_index, 'student', ours, f'{text}.'))
    if (cosine := compared['mean_cosine']) > ALIKE:
        text = (
            f'the student has collapsed: two passages have a cosine of {cosine:.4f} in the mean, '
            f'above {ALIKE}; lower the learning rate, or raise loss.contrastive or student.scale'
        )
        found.append(_caution('collapsed', round_index, 'student', cosine, f'{text}.'))
    return found


def of_teacher(
    measure: str, found: Mapping[str, Mapping[str, float]], first_stage: str
) -> list[Caution]:
    """Whether the teacher does not beat an assistant on D_eval, by the measure that decides.

    Args:
        measure: That one.
        found: {measure: value} of `teacher` and of each assistant.
        first_stage: What the teacher re-ranks.
    """
    values = {system: measures[measure] for system, measures in found.items()}
    teacher = values.pop('teacher')
    return [
        _caution(
            'weak_teacher',
            None,
            system,
            theirs,
            f'the teacher ({measure} {teacher:.4f} on D_eval, re-ranking {first_stage}) does not '
            f'beat assistant {system} ({theirs:.4f}): a student can learn more from the '
            'assistant; use a better teacher.',
        )
        for system, theirs in values.items()
        if theirs >= teacher
    ]


def log(found: Sequence[Caution]) -> list[Caution]:
    """Logs cautions and returns them."""
    for line in lines(found):
        logging.warning('%s', line)
    return list(found)


def lines(found: Sequence[Caution]) -> list[str]:
    """Cautions as text, one a line, with their rounds."""
    return [
        c['message'] if c['round'] is None else f'round {c["round"]}: {c["message"]}' for c in found
    ]


def _caution(what: str, round_index: int | None, system: str, figure: float, message: str):
    return {
        'what': what,
        'round': round_index,
        'system': system,
        'figure': figure,
        'message': message,
    }
