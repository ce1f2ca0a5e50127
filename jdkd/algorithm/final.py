"""Which student a run ends with: the best on D_eval, or the last (ours).

Where labels mislead, rounds can lose what alignment gave; D_eval tells.
"""

from collections.abc import Mapping, Sequence

from jdkd.algorithm import align
from jdkd.algorithm.lists import round_path
from jdkd.algorithm.student import Student
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.config import Config
from jdkd.run import STUDENT
from jdkd.systems import roles
from jdkd.systems.build import build
from jdkd.systems.dual import AsymmetricSystem, DualEncoderSystem, as_dual


def last_round(config: Config, start: Mapping[str, float], rounds: Sequence[Mapping]) -> int:
    """The round after which the final student is taken; -1 for before round 0.

    Args:
        config: `final` is 'best' (by `compare`; of equals, the latest) or 'last'.
        start: {measure: value} on D_eval of the student as it entered round 0.
        rounds: {measure: value} on D_eval of the student after each round.
    """
    if config.final == 'last':
        return len(rounds) - 1
    values = [measures[config.compare] for measures in (start, *rounds)]
    return max(range(len(values)), key=lambda i: (values[i], i)) - 1


def load(student: Student, index_of: str | None = None) -> DualEncoderSystem:
    """The student that a finished run ended with.

    Args:
        student: The run's.
        index_of: The system whose passages, and index, the student's queries are to search; None
            for the student's own.

    Raises:
        FileNotFoundError: if the run has not been trained to its end.
        ValueError: if the student does not share the space of `index_of`.
    """
    best = _load_best(student)
    if index_of is None:
        return best
    targets = EmbeddingTargets(
        student.run,
        student.start,
        [as_dual(build(student.run, name)) for name in roles.aligned_with(student.run.config)],
    )
    shared = targets.shared
    if shared is None or shared.name != index_of:
        space = f'that of {shared.name!r}' if shared else 'a space of its own'
        raise ValueError(
            f'the student has {space}, so its queries cannot search the index of {index_of!r}; '
            'align it with that one alone (align.to), at the same width.'
        )
    return AsymmetricSystem.of(f'{STUDENT}_on_{index_of}', best, shared)


def _load_best(student: Student) -> DualEncoderSystem:
    run, config = student.run, student.run.config
    begun, last = align.load(student), student.after_round(config.rounds - 1)
    manifests = [run.read_manifest(round_path(i, 'eval')) for i in range(config.rounds)]
    compared = [manifest['result'] for manifest in manifests if manifest]
    if len(compared) < config.rounds:
        raise FileNotFoundError(
            f'{run.workdir} lacks measures on D_eval after some round; run --mode train with this '
            '--workdir to its end first.'
        )
    start = compared[0]['references'][begun.name]
    chosen = last_round(config, start, [c['student'] for c in compared])
    if chosen == config.rounds - 1:
        return last
    return student.after_round(chosen) if chosen >= 0 else begun
