"""Builds a system by its name in the config: loads it, or trains it from labels first."""

from jdkd.config import BM25Spec, LLMSpec, ScoresSpec
from jdkd.run import Run
from jdkd.systems import fine_tuning, imported, lexical
from jdkd.systems.cross import CrossEncoderSystem
from jdkd.systems.dual import DualEncoderSystem
from jdkd.systems.encoders import load_encoder, start_digest
from jdkd.systems.llm import system as llm
from jdkd.systems.roles import system_spec
from jdkd.systems.system import System


def build(run: Run, name: str) -> System:
    """The system of the config entry `systems.<name>`.

    Raises:
        ValueError: if there is no such entry.
    """
    spec = system_spec(run.config, name)
    if isinstance(spec, BM25Spec):
        return lexical.load(run, name, spec)
    if isinstance(spec, ScoresSpec):
        return imported.load(run, name, spec)
    if isinstance(spec, LLMSpec):
        first = build(run, run.config.first_stage) if llm.needs_first_stage(spec) else None
        return llm.load(run, name, spec, first)
    encoder = load_encoder(run, spec)
    digest = start_digest(encoder)
    if spec.train.steps:
        miner = build(run, spec.train.negatives_from)
        encoder, digest = fine_tuning.train_from_labels(run, name, encoder, digest, miner)
    kind = CrossEncoderSystem if spec.kind == 'cross_encoder' else DualEncoderSystem
    return kind(name, digest, spec.scale, run, encoder)
