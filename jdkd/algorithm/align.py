"""Alignment: before round 0 the student learns the embeddings of assistants (ours).

A student that begins in an assistant's space begins the rounds as a retriever: score distributions
then refine a ranking instead of building one. Compare EmbedDistill (Kim et al., 2023,
https://arxiv.org/abs/2301.12005) and LEAF (Vujanic and Rueckstiess, 2025,
https://arxiv.org/abs/2509.12539). The loss is the embedding term of `distillation/objective.py`
alone, over passages and train queries; the queries of D_eval and test stay out.
"""

import dataclasses
from typing import Any

import numpy as np

from jdkd.algorithm.student import Student
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.distillation.objective import Objective
from jdkd.distillation.train_loop import train_loop
from jdkd.distillation.trainer import make_trainer
from jdkd.lists import alignment, dataset, loader, packing
from jdkd.run import ALIGNMENT, STUDENT, Run
from jdkd.runtime import distributed, stages
from jdkd.runtime import mesh as meshes
from jdkd.systems.dual import DualEncoderSystem
from jdkd.systems.training import make_batches, restore_encoder

STAGE = 'align'
_PROJECTION, _KERNEL = 'projection', 'kernel.npy'


def align(run: Run, student: Student, targets: EmbeddingTargets) -> DualEncoderSystem:
    """The student aligned with targets, in a resumable stage; its start if `align.epochs` is 0."""
    config, start = run.config.align, student.initial
    if not config.epochs:
        return start
    group = run.collection.group
    texts = np.flatnonzero(np.arange(len(group)) == group)  # One passage of each text.
    first = _keep_projection(run, start, targets)
    rows = packing.resolve_rows(run.config.rows, run.mesh.shape['data'])
    size = alignment.plan_size(len(texts), len(run.train), config, rows.parts * rows.chunks)
    steps, length = size.steps, run.config.student.passage_length
    inputs = {
        'start': start.digest,
        'projection': first and first['digest'],
        'targets': targets.inputs,
        'collection': run.collection.fingerprint,
        'queries': stages.digest(list(run.train.ids)),
        'align': config.to_dict(),
        'length': length,
        'rows': run.config.rows.to_dict(),
        'seed': run.config.seed,
    }

    def build(out):
        encoder = student.start
        params = _with_projection(run, encoder.params) if first else encoder.params
        trainer = make_trainer(
            Objective.of_embeddings(run.config, steps),
            mesh=run.mesh,
            model=encoder.model,
            params=params,
        )
        queries, passages = alignment.draw(texts, len(run.train), size, seed=run.config.seed)
        lists = {'query_row': queries, 'passages': passages, 'group': group[passages]}
        batches = make_batches(
            run,
            encoder,
            run.train,
            dataset.Arrays(lists),
            lists,
            loader.BatchOrder(size.batch_size, [run.config.seed], shuffle=False),
            trainer.rows,
            length=length,
            steps=steps,
            targets=targets.of(run.train, length),
        )
        train_loop(
            run,
            ALIGNMENT,
            out,
            trainer,
            lambda: trainer.init(params),
            batches,
            steps=range(steps),
            planned_steps=steps,
            total_steps=steps,
            desc=f'align {STUDENT}',
        )
        return {'steps': steps}

    # On another number of devices the lists may be others, and with them what a step learns from.
    run.stage(STAGE, inputs, build, resumable=True, begun_with={'size': dataclasses.asdict(size)})
    return load(student)


def _keep_projection(run: Run, start: DualEncoderSystem, targets: EmbeddingTargets) -> dict | None:
    """Keeps the kernel that `student.projection` begins with, as a stage; None without one."""
    if run.config.student.projection is None:
        return None

    def build(out):
        kernel = targets.fit_projection(start)
        if distributed.is_primary():
            np.save(out / _KERNEL, kernel)

    inputs = {'start': start.digest, 'targets': targets.inputs}
    inputs['collection'] = run.collection.fingerprint
    return run.stage(_PROJECTION, inputs, build)


def _with_projection(run: Run, params: Any) -> Any:
    """Parameters with the kept kernel, in both towers where there are two."""
    if 'transformer' not in params:
        return {name: _with_projection(run, tower) for name, tower in params.items()}
    kernel = np.load(run.workdir / _PROJECTION / _KERNEL)
    return {**params, 'projection': {'kernel': meshes.put(kernel, run.mesh.local_mesh)}}


def load(student: Student) -> DualEncoderSystem:
    """The aligned student of a workdir; the student's start if `align.epochs` is 0.

    Raises:
        FileNotFoundError: if it has not been aligned.
    """
    run, start = student.run, student.initial
    if not run.config.align.epochs:
        return start
    manifest = run.require_manifest(STAGE)
    steps = manifest['result']['steps']
    encoder = restore_encoder(run, student.start, run.workdir / STAGE, steps)
    return student.system(f'{STUDENT}_aligned', manifest['digest'], encoder)
