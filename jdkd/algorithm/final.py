"""Which student a run ends with: the best on D_eval, or the last (ours).

Where labels mislead, rounds can lose what alignment gave; D_eval tells.
"""

from collections.abc import Mapping, Sequence

from jdkd.algorithm import align
from jdkd.algorithm.round_files import round_path
from jdkd.algorithm.student import Student
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.config import Config
from jdkd.run import STUDENT, Run
from jdkd.systems.dual import AsymmetricSystem, DualEncoderSystem


def choose(config: Config, measured: Sequence[Mapping[str, float]]) -> int:
    """Which student is the final one: 0 for the one that entered round 0, 1 for round 0's, ...

    Args:
        config: `final` is 'best' (by `compare`; of equals, the latest) or 'last'.
        measured: {measure: value} on D_eval of the student before round 0 and after each round.
    """
    return len(measured) - 1 if config.final == 'last' else best(config, measured)


def best(config: Config, measured: Sequence[Mapping[str, float]]) -> int:
    """Which student is the best by `compare`, the latest of equals; see `choose`."""
    return max(range(len(measured)), key=lambda i: (measured[i][config.compare], i))


def is_over(run: Run, measured: Sequence[Mapping[str, float]]) -> bool:
    """Whether no more rounds are trained: all are, or `config.patience` of them brought nothing.

    `measured` is as in `choose`.
    """
    config = run.config
    waited = len(measured) - 1 - best(config, measured)
    return len(measured) > run.num_rounds or 0 < config.patience <= waited


def load(student: Student, index_of: str | None = None) -> DualEncoderSystem:
    """The student that a finished run ended with.

    Args:
        student: The run's.
        index_of: The system whose passages, and index, the student's queries are to search; None
            for the student's own.

    Raises:
        FileNotFoundError: if the run has not been trained to its end.
        ValueError: if `index_of` is no system, or the student does not share its space.
    """
    if index_of is None:
        return _load_best(student)
    if index_of not in (systems := student.run.config.systems):
        raise ValueError(
            f'--index_of={index_of!r} is no system of the run; it has {", ".join(systems)}.'
        )
    ended, shared = _load_best(student), EmbeddingTargets.build(student.run, student.start).shared
    if shared is None:
        raise ValueError(
            f'the student has a space of its own, so its queries cannot search the index of '
            f'{index_of!r}; align it with that one alone (align.to), at its width '
            '(student.projection), normalised as it is (student.normalize) and without '
            'student.dims.'
        )
    if shared.name != index_of:
        raise ValueError(
            f'the student shares the space of {shared.name!r}, so its queries cannot search the '
            f'index of {index_of!r}; give --index_of={shared.name}.'
        )
    return AsymmetricSystem.of(f'{STUDENT}_on_{index_of}', ended, shared)


def _load_best(student: Student) -> DualEncoderSystem:
    run, config = student.run, student.run.config
    if not run.num_rounds:
        return align.load(student)
    first = f'{STUDENT}_{"aligned" if config.align.epochs else "init"}'
    compared = run.require_manifest(round_path(0, 'eval'))['result']
    measured = [compared['references'][first], compared['student']]
    while not is_over(run, measured):
        path = round_path(len(measured) - 1, 'eval')
        measured.append(run.require_manifest(path)['result']['student'])
    chosen = choose(config, measured)
    return student.after_round(chosen - 1) if chosen else align.load(student)
