"""Fine-tunes encoders on the labels before the first round."""

import dataclasses
import pathlib

import numpy as np

from jdkd.distillation.objective import Objective
from jdkd.distillation.step import TrainState
from jdkd.distillation.train_loop import train_loop
from jdkd.distillation.trainer import make_trainer
from jdkd.lists import candidates, dataset, loader
from jdkd.lists.features import record_features
from jdkd.run import Run
from jdkd.runtime import checkpoint
from jdkd.runtime import mesh as meshes
from jdkd.runtime.metrics import MetricsWriter
from jdkd.systems.encoders import (
    Encoder,
    load_encoder,
    token_lookup,
)
from jdkd.systems.ranking import ranking_inputs
from jdkd.systems.roles import system_spec
from jdkd.systems.system import System

CHECKPOINTS = 'checkpoints'  # Of a stage that trains.


_LISTS = 'lists.npz'  # Which queries and passages the lists of a dataset have.


def train_from_labels(
    run: Run, name: str, encoder: Encoder, digest: str, miner: System
) -> tuple[Encoder, str]:
    """Fine-tunes an encoder contrastively on the labels, with BM25's hard negatives.

    Args:
        run: Its train queries.
        name: Of the system.
        encoder: Where training starts from.
        digest: Of the encoder.
        miner: The retriever whose top passages are the hard negatives.

    Returns:
        The trained encoder and its digest.
    """
    config, spec = run.config, encoder.spec
    trained = spec.train
    trainer = make_trainer(
        Objective.of_labels(config, spec), mesh=run.mesh, model=encoder.model, params=encoder.params
    )
    num_lists = min(trained.steps * trained.batch_size, 4 * int(run.train.is_labelled.sum()))
    written = run.stage(
        f'systems/{name}/dataset',
        {
            **ranking_inputs(run, [miner], depth=min(config.depth, trained.depth)),
            'lists': num_lists,
            'hard_negatives': trained.hard_negatives,
            'seed': config.seed,
        },
        lambda out: _write_lists(run, out, miner, trained, num_lists),
    )

    def build_stage(out: pathlib.Path):
        order = loader.BatchOrder(trained.batch_size, [config.seed])
        to_tokens = token_lookup(run, encoder, run.train, spec.passage_length)
        directory = run.workdir / f'systems/{name}/dataset'
        with np.load(directory / _LISTS) as lists:
            to_batch = loader.make_row_packer(
                to_tokens, lists, order, trainer.rows, run.mesh, steps=trained.steps
            )
        batches = loader.batches(dataset.read(directory, 'train'), to_batch, order, run.mesh)
        with checkpoint.Checkpoints(out / CHECKPOINTS) as saved:
            writer = MetricsWriter(
                run.workdir,
                name,
                resume_step=saved.latest_step() or 0,
                last_step=trained.steps,
                total_steps=trained.steps,
            )
            train_loop(
                trainer,
                lambda: trainer.init(encoder.params),
                batches,
                saved,
                writer,
                first_step=0,
                last_step=trained.steps,
                total_steps=trained.total_steps,
                query_ids=run.train.ids,
                log_every=config.log_every,
                checkpoint_every=config.checkpoint_every,
                desc=f'train {name} from labels',
            )
            writer.close()
            saved.keep_only(trained.steps)
        return {'steps': trained.steps}

    path = f'systems/{name}/train'
    inputs = {'start': digest, 'dataset': written['digest'], 'seed': config.seed}
    manifest = run.stage(path, inputs, build_stage, resumable=True)
    directory = run.workdir / path / CHECKPOINTS
    return restored(run, encoder, directory, trained.steps, trainer.abstract), manifest['digest']


def _write_lists(run: Run, out: pathlib.Path, miner: System, trained, num_lists: int) -> None:
    """Lists of a positive and hard negatives, as a dataset, to train from labels."""
    config, queries = run.config, run.train
    ranking, _ = miner.rank(queries)
    pool = candidates.mining_pool(
        [ranking.passages], queries.positives, run.collection.group, trained.depth
    )
    rows, copies = candidates.choose_queries(
        np.flatnonzero(queries.is_labelled), num_lists, seed=config.seed, round_index=0
    )
    lists = candidates.Lists.from_originals(
        rows,
        candidates.sample_lists(
            rows,
            copies,
            query_ids=run.train.ids,
            positives=queries.positives,
            best=queries.best,
            pool=pool,
            group=run.collection.group,
            num_negatives=trained.hard_negatives,
            seed=config.seed,
            round_index=0,
        ),
    )
    features = record_features(run, lists, queries.positives)
    features['false_negative'] = np.zeros(lists.passages.shape, bool)
    dataset.write(out, {'train': features})
    np.savez(out / _LISTS, query_row=lists.query, passages=lists.passages)


def load_trained(run: Run, name: str) -> Encoder:
    """The encoder of a system as the run left it; nothing is trained.

    Raises:
        FileNotFoundError: if the run has not trained it.
        ValueError: if there is no such system, or it has no weights.
    """
    spec = system_spec(run.config, name)
    if spec.kind not in ('dual_encoder', 'cross_encoder'):
        raise ValueError(
            f"system '{name}' is of kind {spec.kind} and has no weights to export; name a "
            'dual_encoder or a cross_encoder.'
        )
    if not spec.train.steps:
        return load_encoder(run, spec)
    if run.read_manifest(f'systems/{name}/train') is None:
        raise FileNotFoundError(
            f"{run.workdir} has no trained '{name}'; name it in teacher.members or assistants and "
            'run --mode train to its end first.'
        )
    encoder = load_encoder(run, spec)
    directory = run.workdir / f'systems/{name}/train' / CHECKPOINTS
    trainer = make_trainer(
        Objective.of_labels(run.config, spec),
        mesh=run.mesh,
        model=encoder.model,
        params=encoder.params,
    )
    return restored(run, encoder, directory, spec.train.steps, trainer.abstract)


def restored(
    run: Run, encoder: Encoder, directory: pathlib.Path, step: int, abstract: TrainState
) -> Encoder:
    """The encoder with the parameters of a checkpoint, on each of this process' devices."""
    state = checkpoint.restore_state(directory, step, abstract)
    return dataclasses.replace(encoder, params=meshes.to_local(state.params, run.mesh))
