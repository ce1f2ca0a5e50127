"""Fine-tunes encoders on the labels before the first round."""

import pathlib
from typing import Any

import numpy as np

from jdkd.config import EncoderSpec
from jdkd.distillation.objective import Objective
from jdkd.distillation.train_loop import train_loop
from jdkd.distillation.trainer import make_trainer
from jdkd.lists import candidates, dataset, loader
from jdkd.lists.features import record_features
from jdkd.run import Queries, Run
from jdkd.systems.encoders import Encoder, load_encoder
from jdkd.systems.ranking import ranking_inputs
from jdkd.systems.roles import fine_tuning_length, system_spec
from jdkd.systems.system import System
from jdkd.systems.training import make_batches, restore_encoder

_LISTS = 'lists.npz'  # Features of the lists by name.


def train_from_labels(
    run: Run, name: str, encoder: Encoder, digest: str, miner: System
) -> tuple[Encoder, str]:
    """Fine-tunes an encoder contrastively on the labels, with hard negatives of a miner.

    Takes and returns an encoder with its digest. The negatives are the miner's top passages; a
    dual-encoder reads passages cut to `train_passage_length`.
    """
    config, spec = run.config, encoder.spec.train
    length = fine_tuning_length(config, encoder.spec)
    labels, queries = run.pseudo_labels, run.train_with_pseudo_labels
    num_lists = min(spec.steps * spec.batch_size, 4 * int(queries.is_labelled.sum()))
    data_path, path = f'systems/{name}/dataset', f'systems/{name}/train'
    data = run.stage(
        data_path,
        {
            **ranking_inputs(run, [miner], queries, depth=min(config.depth, spec.depth)),
            **({'pseudo_labels': labels.digest} if labels else {}),
            'lists': num_lists,
            'hard_negatives': spec.hard_negatives,
            'labelled': config.candidates.labelled if labels else None,
            'seed': config.seed,
        },
        lambda out: _write_lists(run, out, queries, miner, spec, num_lists),
    )

    def build_stage(out: pathlib.Path):
        objective = Objective.of_labels(config, encoder.spec)
        trainer = make_trainer(objective, mesh=run.mesh, model=encoder.model, params=encoder.params)
        with np.load(run.workdir / data_path / _LISTS) as f:
            lists = dict(f)
        batches = make_batches(
            run,
            encoder,
            run.train,
            dataset.Arrays(lists),
            lists,
            loader.BatchOrder(spec.batch_size, [config.seed]),
            trainer.rows,
            length=length,
            steps=spec.steps,
        )
        train_loop(
            run,
            name,
            out,
            trainer,
            lambda: trainer.init(encoder.params),
            batches,
            steps=range(spec.steps),
            planned_steps=spec.steps,
            total_steps=spec.total_steps,
            desc=f'train {name} from labels',
        )
        return {'steps': spec.steps}

    inputs = {'start': digest, 'dataset': data['digest'], 'seed': config.seed, 'length': length}
    inputs['rows'] = config.rows.to_dict()  # Dropout depends on them.
    manifest = run.stage(path, inputs, build_stage, resumable=True)
    return restore_encoder(run, encoder, run.workdir / path, spec.steps), manifest['digest']


def _write_lists(
    run: Run, out: pathlib.Path, queries: Queries, miner: System, spec, num_lists: int
) -> None:
    """Writes lists of a positive and hard negatives to train from labels."""
    seeds = {'seed': run.config.seed, 'round_index': 0}
    group, own = run.collection.group, run.train.is_labelled
    ranking, _ = miner.rank(run.train)
    labelled = np.flatnonzero(queries.is_labelled)
    share = run.config.candidates.labelled
    rows, copies = candidates.choose_labelled(labelled, own, num_lists, share=share, **seeds)
    passages = candidates.sample_lists(
        rows,
        copies,
        query_ids=queries.ids,
        positives=queries.positives,
        best=queries.best,
        pool=candidates.mined_passages([ranking.passages], queries.positives, group, spec.depth),
        group=group,
        num_negatives=spec.hard_negatives,
        ranked=None,
        closed=False,
        **seeds,
    )
    lists = candidates.Lists.from_originals(rows, passages)
    features: dict[str, Any] = record_features(run, lists, queries.positives)
    features['false_negative'] = np.zeros(lists.passages.shape, bool)
    np.savez(out / _LISTS, **features)


def load_trained(run: Run, name: str) -> Encoder:
    """The encoder of a system as the run left it; trains nothing.

    Raises:
        FileNotFoundError: if the run has not trained it.
        ValueError: if there is no such system, or it has no weights.
    """
    spec = system_spec(run.config, name)
    if not isinstance(spec, EncoderSpec):
        raise ValueError(
            f"system '{name}' is of kind {spec.kind} and has no weights to export; name a "
            'dual_encoder or a cross_encoder.'
        )
    path = f'systems/{name}/train'
    if spec.train.steps and run.read_manifest(path) is None:
        raise FileNotFoundError(
            f"{run.workdir} has no trained '{name}'; name it in teacher.members or assistants and "
            'run jdkd train to its end first.'
        )
    encoder, steps = load_encoder(run, spec), spec.train.steps
    return restore_encoder(run, encoder, run.workdir / path, steps) if steps else encoder
