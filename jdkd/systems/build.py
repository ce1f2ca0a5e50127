"""A system by its name in the config: loaded, or trained from labels first."""

import dataclasses
import pathlib

import ml_collections
import numpy as np

from jdkd.data import candidates, dataset, loader
from jdkd.distill import train
from jdkd.distill.step import TrainState
from jdkd.retrieval import bm25
from jdkd.run import Run
from jdkd.runtime import checkpoint, stages
from jdkd.runtime import mesh as meshes
from jdkd.runtime.metrics import MetricsWriter
from jdkd.systems import base, imported
from jdkd.systems.base import System
from jdkd.systems.encoders import (
    CrossEncoderSystem,
    DualEncoderSystem,
    Encoder,
    load_encoder,
    weights_digest,
)
from jdkd.systems.lexical import BM25System

KINDS = ('bm25', 'dual_encoder', 'cross_encoder', 'scores')
CHECKPOINTS = 'checkpoints'  # Of a stage that trains.
_LISTS = 'lists.npz'  # Which queries and passages the lists of a dataset have.


def build(run: Run, name: str) -> System:
    """The system of the config entry `systems.<name>`.

    Raises:
        ValueError: if there is no such entry, or its kind is unknown.
    """
    spec = _entry(run, name)
    if spec.kind == 'bm25':
        return _bm25(run, name, spec)
    if spec.kind == 'scores':
        return imported.load(run, name, spec)
    if spec.kind not in KINDS:
        raise ValueError(f"systems.{name}.kind is '{spec.kind}'; use one of {', '.join(KINDS)}.")
    encoder = load_encoder(run, spec)
    digest = stages.digest([weights_digest(encoder), encoder.spec.to_dict()])
    if spec.train.steps:
        encoder, digest = train_from_labels(run, name, encoder, digest)
    kind = CrossEncoderSystem if spec.kind == 'cross_encoder' else DualEncoderSystem
    return kind(name, digest, spec.scale, run, encoder)


def record_features(run: Run, lists: candidates.Lists, positives) -> dict[str, np.ndarray]:
    """Features of a record that do not depend on scores.

    Args:
        run: For the text groups.
        lists: Candidate lists.
        positives: Rows of each query's positives.
    """
    group = run.collection.group
    relevant = np.full((len(lists), run.max_relevant), -1, np.int32)
    for row, query in zip(relevant, lists.query, strict=True):
        groups = np.unique(group[positives[query]])
        row[: len(groups)] = groups
    return {
        'query_row': lists.query,
        'passages': lists.passages,
        'group': group[lists.passages],
        'relevant': relevant,
    }


def train_from_labels(run: Run, name: str, encoder: Encoder, digest: str) -> tuple[Encoder, str]:
    """Fine-tunes an encoder contrastively on the labels, with BM25's hard negatives.

    Args:
        run: Its train queries.
        name: Of the system.
        encoder: Where training starts from.
        digest: Of the encoder.

    Returns:
        The trained encoder and its digest.
    """
    config, spec = run.config, encoder.spec
    trained = spec.train
    miner = build(run, trained.negatives_from)
    trainer = labels_trainer(config, spec, run.mesh, encoder.model, encoder.params)
    num_lists = min(trained.steps * trained.batch_size, 4 * int(run.train.is_labelled.sum()))
    written = run.stage(
        f'systems/{name}/dataset',
        {
            **base.retrieval(run, [miner], depth=min(config.depth, trained.depth)),
            'lists': num_lists,
            'hard_negatives': trained.hard_negatives,
            'seed': config.seed,
        },
        lambda out: _write_lists(run, out, miner, trained, num_lists),
    )

    def build_stage(out: pathlib.Path):
        order = loader.Order(trained.batch_size, [config.seed])
        to_tokens = token_lookup(run, encoder, run.train, spec.passage_length)
        directory = run.workdir / f'systems/{name}/dataset'
        with np.load(directory / _LISTS) as lists:
            to_batch = loader.fit(
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
            train.fit(
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
    lists = candidates.Lists.originals(
        rows,
        candidates.sample(
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
    spec = _entry(run, name)
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
    trainer = labels_trainer(run.config, spec, run.mesh, encoder.model, encoder.params)
    return restored(run, encoder, directory, spec.train.steps, trainer.abstract)


def labels_trainer(config, spec, mesh, model, params) -> train.Trainer:
    """What trains an encoder on the labels; `abstract` is the state that its checkpoints hold.

    Args:
        config: The run's.
        spec: The encoder's entry.
        mesh: Where to.
        model: The encoder's module.
        params: Its parameters, or their shapes.
    """
    # Labels alone: the other terms of the loss need a teacher.
    loss = {key: 0.0 for key in config.loss} | {'contrastive': 1.0, 'temperature': 1.0}
    return train.make_trainer(
        ml_collections.FrozenConfigDict({**config.to_dict(), 'loss': loss}),
        spec.train,
        mesh=mesh,
        params=params,
        model=model,
        scale=spec.train.scale,
        num_assistants=0,
        dropout=spec.dropout,
    )


def restored(
    run: Run, encoder: Encoder, directory: pathlib.Path, step: int, abstract: TrainState
) -> Encoder:
    """The encoder with the parameters of a checkpoint, on each of this process' devices."""
    state = checkpoint.restore_state(directory, step, abstract)
    return dataclasses.replace(encoder, params=meshes.to_local(state.params, run.mesh))


def token_lookup(run: Run, encoder: Encoder, queries, length: int):
    """What turns records of a split into the token rows that an encoder trains on."""
    query_ids = encoder.query_tokens(run, queries)
    passage_ids = encoder.passage_tokens(run)
    if encoder.spec.kind == 'cross_encoder':
        return loader.CrossEncoderTokens(query_ids, passage_ids, encoder.separators)
    sep_id, dark = encoder.tokenizer.special['sep'], bool(run.config.loss.dark)
    return loader.DualEncoderTokens(query_ids, passage_ids, length, sep_id, dark)


def _entry(run: Run, name: str) -> ml_collections.FrozenConfigDict:
    spec = run.config.systems.get(name)
    if spec is None:
        raise ValueError(
            f"'{name}' is no entry of config.systems; there are: {', '.join(run.config.systems)}."
        )
    return spec


def _bm25(run: Run, name: str, spec) -> BM25System:
    parameters = {'k1': spec.k1, 'b': spec.b, 'language': spec.language}
    path = f'systems/{name}/index'
    manifest = run.stage(
        path,
        {'collection': run.collection.fingerprint, **parameters},
        lambda out: bm25.build(out, run.passages, **parameters),
        resumable=True,
    )
    model = bm25.load(run.workdir / path, **parameters)
    return BM25System(name, manifest['digest'], spec.scale, run, model)
