"""A system by its name in the config: loaded, or trained from labels first."""

from jdkd.retrieval import bm25
from jdkd.run import Run
from jdkd.runtime import stages
from jdkd.systems import fine_tuning, imported
from jdkd.systems.encoders import (
    CrossEncoderSystem,
    DualEncoderSystem,
    load_encoder,
    weights_digest,
)
from jdkd.systems.lexical import BM25System
from jdkd.systems.roles import system_spec
from jdkd.systems.system import System

KINDS = ('bm25', 'dual_encoder', 'cross_encoder', 'scores')


def build(run: Run, name: str) -> System:
    """The system of the config entry `systems.<name>`.

    Raises:
        ValueError: if there is no such entry, or its kind is unknown.
    """
    spec = system_spec(run.config, name)
    if spec.kind == 'bm25':
        return _bm25(run, name, spec)
    if spec.kind == 'scores':
        return imported.load(run, name, spec)
    if spec.kind not in KINDS:
        raise ValueError(f"systems.{name}.kind is '{spec.kind}'; use one of {', '.join(KINDS)}.")
    encoder = load_encoder(run, spec)
    digest = stages.digest([weights_digest(encoder), encoder.spec.to_dict()])
    if spec.train.steps:
        miner = build(run, spec.train.negatives_from)
        encoder, digest = fine_tuning.train_from_labels(run, name, encoder, digest, miner)
    kind = CrossEncoderSystem if spec.kind == 'cross_encoder' else DualEncoderSystem
    return kind(name, digest, spec.scale, run, encoder)


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
