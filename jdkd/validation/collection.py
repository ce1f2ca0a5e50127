"""What the collection and the files of scores say of a config."""

import pathlib
from collections.abc import Iterator

import ml_collections
import numpy as np

from jdkd.retrieval import index, measures
from jdkd.run import Run
from jdkd.runtime import stages
from jdkd.systems import roles
from jdkd.validation.faults import caught


def file_faults(config: ml_collections.FrozenConfigDict, workdir: pathlib.Path) -> Iterator[str]:
    """Files of scores that are missing and were not read yet."""
    for name in roles.used(config):
        entry = config.systems.get(name)
        if entry is None or entry.kind != 'scores':
            continue
        there = (workdir / f'systems/{name}/scores' / stages.MANIFEST).exists()
        if not there and not pathlib.Path(entry.path).is_file():
            yield f'systems.{name}.path={entry.path!r}: there is no such file.'


def faults(run: Run) -> Iterator[str]:
    """Sizes that the collection does not give."""
    config, collection = run.config, run.collection
    texts = int((np.arange(len(collection)) == collection.group).sum())
    others = texts - run.max_relevant
    negatives = {'candidates': config.candidates.hard_negatives}
    trained = roles.trained(config)
    labelled = int(run.train.is_labelled.sum())
    negatives |= {f'systems.{n}.train': e.train.hard_negatives for n, e in trained.items()}
    for field, count in negatives.items():
        if count > others:
            yield (
                f'{field}.hard_negatives={count}, but beside the {run.max_relevant} relevant ones '
                f'of a query, collection {collection.name!r} has {others} different passages; '
                'lower it.'
            )
    for name, entry in trained.items():
        # No query is repeated more often in one training from labels.
        if entry.train.batch_size > 4 * labelled:
            yield (
                f'systems.{name}.train.batch_size={entry.train.batch_size} is more than four times '
                f'the {labelled} labelled train queries; lower it.'
            )
    if labelled < len(run.train) and not _distils(config):
        yield (
            f'{len(run.train) - labelled} of the {len(run.train)} train queries have no positive, '
            'and no term of the loss learns without; set collection.unlabelled=skip, or '
            'loss.teacher, or assistants with loss.assistant or loss.in_batch.'
        )
    for queries in (run.held_out, run.test):
        yield from caught(
            measures.check_grounds,
            config.measures,
            queries.split,
            any(len(rows) for rows in queries.positives),
            bool(collection.answers.get(queries.split)),
        )
    if config.index.kind == 'scann':
        yield from caught(index.check_installed, len(collection))


def _distils(config: ml_collections.FrozenConfigDict) -> bool:
    """Whether a term of the loss needs no labels."""
    loss = config.loss
    return bool(loss.teacher or (config.assistants and (loss.assistant or loss.in_batch)))
