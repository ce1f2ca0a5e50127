"""What a config of a training can be told before anything is read or built."""

import re

import ml_collections

from jdkd.data import sources
from jdkd.distill import assistants, schedules
from jdkd.retrieval import evaluate

_OPTIONS = {
    'selection.fusion': assistants.FUSIONS,
    'selection.distance': ('kl', 'footrule', 'rbo'),
    'selection.per': ('batch', 'query'),
    'self_paced.weighting': ('hard', 'linear'),
    'loss.distance': ('kl', 'margin_mse'),
    'candidates.false_negatives': ('mask', 'keep'),
}


def validate(config: ml_collections.FrozenConfigDict) -> None:
    """Checks a resolved config.

    Raises:
        ValueError: naming the first field that cannot work and how to mend it.
    """
    systems = config.systems

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(message)

    for name in systems:
        require(
            re.fullmatch(r'[\w.-]+', name) is not None and not re.match(r'(student|teacher)', name),
            f"'{name}' cannot name a system: names are letters, digits, '-', '_' and '.', and do "
            "not begin with 'student' or 'teacher', which reports use.",
        )
    sources.parse(config.collection.source)
    evaluate.check(config.measures)
    imports = {'collection': config.collection}
    imports |= {f'systems.{name}': s for name, s in systems.items() if s.kind == 'scores'}
    for name, spec in imports.items():
        require(
            spec.on_error in ('stop', 'skip'),
            f"{name}.on_error is '{spec.on_error}'; use stop or skip.",
        )
    retrievers = [config.first_stage, *config.assistants, *config.candidates.retrievers]
    used = [*retrievers, *config.teacher.members]
    for name in used:
        require(
            name in systems,
            f"'{name}' is no entry of config.systems; there are: {', '.join(systems)}.",
        )
    require(bool(config.teacher.members), 'teacher.members is empty; name at least one system.')
    for name in retrievers:
        require(
            systems[name].kind != 'cross_encoder',
            f"system '{name}' is a cross-encoder and cannot search a collection; use it in "
            'teacher.members, not in assistants, first_stage or candidates.retrievers.',
        )
    for name in (*config.teacher.members, *config.assistants):
        require(
            systems[name].kind != 'scores' or not (config.dark.reinforced + config.dark.noisy),
            f"system '{name}' has imported scores and cannot score dark examples, which are new "
            'text; set dark.reinforced=0 and dark.noisy=0, or take it out of teacher.members and '
            'assistants.',
        )
    for name in config.assistants:
        require(
            systems[name].kind != 'scores' or not config.loss.in_batch,
            f"assistant '{name}' has imported scores, which do not reach beyond a query's own "
            'list; set loss.in_batch=0, or take it out of assistants.',
        )
    weights = config.teacher.weights
    require(
        weights is None or len(weights) == len(config.teacher.members),
        f'teacher.weights={weights} does not give one weight for each of teacher.members='
        f'{config.teacher.members}.',
    )
    require(config.student.kind == 'dual_encoder', "student.kind must be 'dual_encoder'.")
    require(
        config.student.scale is not None,
        'student.scale is not set; give the inverse temperature of its scores, for example 20.',
    )
    require(config.candidates.hard_negatives >= 1, 'candidates.hard_negatives must be at least 1.')
    require(
        config.candidates.depth <= config.depth,
        f'candidates.depth={config.candidates.depth} is more than is kept of a ranking, '
        f'depth={config.depth}; raise that.',
    )
    for field, options in _OPTIONS.items():
        owner, name = field.split('.')
        require(
            config[owner][name] in options,
            f"{field} is '{config[owner][name]}'; use one of {', '.join(options)}.",
        )
    for name in schedules.WEIGHTS:
        schedules.check(f'loss.{name}', config.loss[name], low=0)
    for name in schedules.TEMPERATURES:
        schedules.check(f'loss.{name}', config.loss[name], low=1e-3)
    schedules.check('self_paced.share', config.self_paced.share, low=1e-3, high=1)
    require(config.rounds >= 1, 'rounds must be at least 1.')
    require(
        config.compare in config.measures,
        f"compare='{config.compare}' is not among measures={config.measures}; add it.",
    )
    trainings = {'optimizer': config.optimizer}
    trainings |= {
        f'systems.{name}.train': systems[name].train
        for name in used
        if 'train' in systems[name] and systems[name].train.steps
    }
    for name, training in trainings.items():
        require(
            training.warmup_steps < training.total_steps,
            f'{name}.warmup_steps={training.warmup_steps} leaves nothing of the '
            f'{training.total_steps} steps of that training; lower it.',
        )
