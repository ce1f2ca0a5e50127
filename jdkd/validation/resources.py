"""Checks a config against this machine's devices, files and disk, and against the collection."""

import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from jdkd.config import Config, EvalConfig, LLMSpec, ScoresSpec
from jdkd.distillation import objective
from jdkd.planning import disk
from jdkd.retrieval import measures
from jdkd.run import Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems import roles
from jdkd.systems.llm import answers, client
from jdkd.validation.errors import catch


def device_errors(config: Config) -> Iterator[str]:
    """Errors of a mesh that does not match the devices, or of batches that it does not divide."""
    if errors := list(mesh_errors(config)):
        yield from errors
        return
    ways = meshes.make_mesh(config.mesh.data, config.mesh.model).shape['data']
    sizes = {'batch_size': config.batch_size}
    for name, spec in roles.trained(config).items():
        sizes[f'systems.{name}.train.batch_size'] = spec.train.batch_size
    parts, chunks = config.rows.parts or ways, config.rows.chunks
    if parts % ways:
        yield (
            f'rows.parts={parts} does not divide over the {ways} devices of mesh axis data; '
            'set it to a multiple, or to 0.'
        )
    for field, size in sizes.items():
        if size % ways:
            yield (
                f'{field}={size} does not divide over the {ways} devices of mesh axis data; '
                'change it or mesh.data.'
            )
        elif size % (parts * chunks):
            yield (
                f'{field}={size} does not divide among {parts} parts (rows.parts) of {chunks} '
                'chunks (rows.chunks) each; change it or these.'
            )


def mesh_errors(config: Config | EvalConfig) -> Iterator[str]:
    """Errors of a mesh that does not match the devices."""
    if config.mesh.model >= 1:  # Otherwise its range is the error.
        yield from catch(meshes.make_mesh, config.mesh.data, config.mesh.model)


def score_file_errors(config: Config, workdir: pathlib.Path) -> Iterator[str]:
    """Errors of score files that are missing and were not imported before."""
    for name in roles.used(config):
        spec = config.systems.get(name)
        imported = workdir / f'systems/{name}/scores'
        if isinstance(spec, ScoresSpec) and not stages.exists(imported):
            if not pathlib.Path(spec.path).expanduser().is_file():
                yield f'systems.{name}.path={spec.path!r}: there is no such file.'


def llm_errors(config: Config) -> Iterator[str]:
    """Errors of language models that this machine cannot ask: no HTTP client, or no API key."""
    for name, spec in _llms(config):
        if not client.is_installed():
            yield f"systems.{name} needs httpx2: pip install 'jdkd[llm]'."
        yield from catch(client.read_key, spec, prefix=f'systems.{name}')


def endpoint_errors(run: Run) -> Iterator[str]:
    """Errors of endpoints that do not answer, of language models that were not asked yet."""
    for name, spec in _llms(run.config):
        if not answers.has_any(run.workdir, name):
            yield from catch(client.check, name, spec)


def _llms(config: Config) -> Iterator[tuple[str, LLMSpec]]:
    for name in roles.used(config):
        spec = config.systems.get(name)
        if isinstance(spec, LLMSpec):
            yield name, spec


def collection_errors(run: Run) -> Iterator[str]:
    """Errors of fields that ask for more than the collection has."""
    config, collection = run.config, run.collection
    distinct = int((np.arange(len(collection)) == collection.group).sum())
    negatives = distinct - run.max_relevant
    labelled = int(run.train.is_labelled.sum())
    unlabelled = len(collection.unlabelled(run.train.split))
    tuned_on = labelled + roles.count_pseudo_labels(config, unlabelled)
    trained = {f'systems.{name}.train': spec.train for name, spec in roles.trained(config).items()}
    for field, owner in {'candidates': config.candidates, **trained}.items():
        if owner.hard_negatives > negatives:
            yield (
                f'{field}.hard_negatives={owner.hard_negatives}, but beside the '
                f'{run.max_relevant} relevant ones of a query, collection {collection.name!r} has '
                f'{negatives} different passages; lower it.'
            )
    for field, training in trained.items():
        if not tuned_on:
            yield (
                f'{field}.steps={training.steps} trains from labels, but no train query of '
                f'collection {collection.name!r} has one; set {field}.steps=0, or name systems '
                'that give pseudo-labels in pseudo_labels.systems.'
            )
    if config.twin and not run.num_rounds:
        yield (
            'twin learns in rounds, and none is trained: all queries of D_eval were made from '
            'passages, which cannot tell which student is better; set twin=False.'
        )
    if config.twin and not labelled:
        yield (
            f'twin needs labels to learn from, but no train query of collection '
            f'{collection.name!r} has one; set twin=False.'
        )
    if run.num_rounds and labelled < len(run.train) and not objective.distils(config):
        yield (
            f'{len(run.train) - labelled} of the {len(run.train)} train queries have no positive, '
            'and no term of the loss learns without; set collection.unlabelled=skip, or '
            'loss.teacher, embedding or pool, or assistants with loss.assistant or loss.in_batch.'
        )
    if len(run.test):
        yield from measure_errors(run, run.test.split)
    if run.eval_has_labels:
        yield from measure_errors(run, run.held_out.split)
    else:  # Stand-ins are measured, which are judged and hold no answers.
        split = run.held_out.split
        yield from catch(measures.check_available, config.measures, split, True, False)


def measure_errors(run: Run, split: str) -> Iterator[str]:
    """Errors of measures that the judgements or answers of a split do not allow."""
    names, collection = run.config.measures, run.collection
    qrels = collection.qrels.get(split, {})
    is_judged, is_answered = any(qrels.values()), bool(collection.answers.get(split))
    errors = list(catch(measures.check_available, names, split, is_judged, is_answered))
    passage_ids = collection.passage_ids[:3]
    yield from errors or catch(measures.check_computable, names, split, qrels, passage_ids)


def disk_errors(run: Run) -> Iterator[str]:
    """Errors of a disk that is too small for the run; a run that has begun passes."""
    if any((run.workdir / name).exists() for name in ('tokens', 'systems', 'rounds')):
        return
    parts = disk.estimate_run(run)
    total, free = sum(parts.values()), shutil.disk_usage(run.workdir).free
    if total > free:
        listed = ', '.join(f'{name} {_size(size)}' for name, size in parts.items())
        yield (
            f'the run will write about {_size(total)} ({listed}), but the disk of {run.workdir} '
            f'has {_size(free)} free; free some, choose another --workdir, or set '
            'index.store=bfloat16 or int8, fewer rounds or a smaller depth.'
        )


def _size(size: int) -> str:
    return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.1f} MiB'
