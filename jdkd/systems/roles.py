"""The systems that a config uses, by their roles."""

import math
from collections.abc import Callable

from absl import logging

from jdkd.config import Config, EncoderSpec, SystemSpec


def used(config: Config) -> list[str]:
    """Names of the systems that a run builds, each once, also those without an entry."""
    names = list(
        dict.fromkeys(
            [
                *retrievers(config),
                *config.teacher.members,
                *aligned_with(config),
                *config.pseudo_labels.systems,
            ]
        )
    )
    for name in names:  # Grows: a system that mines for another may be trained itself.
        miner = miner_of(config, name)
        if miner is not None and miner not in names:
            names.append(miner)
    return names


def retrievers(config: Config) -> list[str]:
    """Names of the systems that search the collection."""
    return [config.first_stage, *config.assistants, *config.candidates.retrievers]


def rankers(config: Config) -> list[str]:
    """Names of the systems that rank the train queries: retrievers, or for pseudo-labels."""
    return [*retrievers(config), *config.pseudo_labels.systems]


def dense_rankers(config: Config) -> set[str]:
    """Config fields of the encoders that rank the train queries, the student included."""
    return {'student', *(f'systems.{name}' for name in rankers(config))} & {*encoders(config)}


def aligned_with(config: Config) -> tuple[str, ...]:
    """Names of the dual-encoders whose embeddings the student learns."""
    return config.align.to if config.align.epochs or config.loss.embedding else ()


def cut_targets(config: Config) -> list[tuple[str, EncoderSpec]]:
    """Names and entries of `aligned_with` that embed the collection once more, for each length.

    The student reads whole passages as it is aligned, and cut ones in the rounds.
    """
    lengths = {config.student.passage_length} if config.align.epochs else set()
    lengths |= {config.train_passage_length} if config.loss.embedding else set()
    specs = ((name, config.systems.get(name)) for name in aligned_with(config))
    return [
        (name, spec.replace(passage_length=length))
        for name, spec in specs
        for length in sorted(lengths)
        if isinstance(spec, EncoderSpec) and spec.passage_length > length
    ]


def fine_tuning_length(config: Config, spec: EncoderSpec) -> int:
    """Tokens of a passage in fine-tuning; a cross-encoder reads its pairs whole."""
    if spec.kind == 'cross_encoder':
        return spec.passage_length
    return min(spec.passage_length, config.train_passage_length)


def trained(config: Config) -> dict[str, EncoderSpec]:
    """Entries of the systems that are trained from labels, by name."""
    specs = ((name, config.systems.get(name)) for name in used(config))
    return {n: s for n, s in specs if isinstance(s, EncoderSpec) and s.train.steps}


def count_pseudo_labels(config: Config, unlabelled: int) -> int:
    """How many of so many unlabelled train queries get a pseudo-label, at most."""
    spec = config.pseudo_labels
    return math.ceil(spec.share * unlabelled) if spec.systems else 0


def fit_to_labels(config: Config, count: Callable[[], tuple[int, int]]) -> Config:
    """Fits pseudo-labels and fine-tuning to the labels of the train queries.

    Where nothing is fine-tuned or every query has a label, no system gives pseudo-labels.
    Fine-tuning is shortened to `max_epochs` passes over the queries with labels and pseudo-labels,
    none if these are less than a quarter of a batch; its warm-up and schedule shrink alike.
    `count` returns the numbers of queries with a label, and of those without one that may get a
    pseudo-label.
    """
    tuned = trained(config)
    labelled, unlabelled = count() if tuned else (0, 0)
    if not labelled and not config.pseudo_labels.systems:
        return config  # Which is an error, of which `validation` tells.
    if not unlabelled:
        config = config.replace(pseudo_labels=config.pseudo_labels.replace(systems=()))
    labelled += count_pseudo_labels(config, unlabelled)
    systems = dict(config.systems)
    for name, spec in tuned.items():
        train = spec.train
        most = int(train.max_epochs * labelled / train.batch_size)
        most = max(most // train.accumulate, labelled > 0) * train.accumulate
        if train.batch_size > 4 * labelled:  # A batch would repeat each query over and over.
            most = 0
        if most < train.steps:
            message = 'fine-tuning of %s: %d steps instead of %d, for %d labelled queries'
            logging.log(
                logging.INFO if most else logging.WARNING,
                message,
                name,
                most,
                train.steps,
                labelled,
            )
            fields = ('steps', 'warmup_steps', 'total_steps', 'cycle_steps')
            shorter = {field: getattr(train, field) * most // train.steps for field in fields}
            systems[name] = spec.replace(train=train.replace(**shorter))
    return config.replace(systems=systems)


def miner_of(config: Config, name: str) -> str | None:
    """The system that mines a system's training negatives; None if it is not trained."""
    spec = config.systems.get(name)
    if not isinstance(spec, EncoderSpec) or not spec.train.steps:
        return None
    return spec.train.negatives_from


def encoders(config: Config) -> dict[str, EncoderSpec]:
    """Entries of the encoders that a run loads, by their field, the student's last."""
    specs = {f'systems.{name}': config.systems.get(name) for name in used(config)}
    specs['student'] = config.student
    return {field: spec for field, spec in specs.items() if isinstance(spec, EncoderSpec)}


def system_spec(config: Config, name: str) -> SystemSpec:
    """The entry `systems.<name>`.

    Raises:
        ValueError: if there is none.
    """
    spec = config.systems.get(name)
    if spec is None:
        raise ValueError(
            f"'{name}' is no entry of config.systems; there are: {', '.join(config.systems)}."
        )
    return spec
