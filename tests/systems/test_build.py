"""Systems by their entries: the kind that is built, and the miner of what is trained first."""

import types

import pytest

from jdkd.config import BM25Spec, Config, EncoderSpec, FineTuningConfig, ScoresSpec
from jdkd.systems import build as builder
from jdkd.systems.cross import CrossEncoderSystem
from jdkd.systems.dual import DualEncoderSystem


@pytest.fixture
def run(monkeypatch):
    trained = []
    encoder = types.SimpleNamespace(spec=None)
    monkeypatch.setattr(builder, 'load_encoder', lambda run, spec: encoder)
    monkeypatch.setattr(builder, 'start_digest', lambda encoder: 'start')
    monkeypatch.setattr(builder.lexical, 'load', lambda run, name, spec: f'bm25 {name}')
    monkeypatch.setattr(builder.imported, 'load', lambda run, name, spec: f'imported {name}')

    def fine_tune(run, name, encoder, digest, miner):
        trained.append((name, digest, miner))
        return encoder, f'trained {digest}'

    monkeypatch.setattr(builder.fine_tuning, 'train_from_labels', fine_tune)
    train = FineTuningConfig(steps=3, negatives_from='lexical')
    systems = {
        'lexical': BM25Spec(),
        'llm': ScoresSpec(),
        'dual': EncoderSpec(scale=2.0),
        'cross': EncoderSpec(kind='cross_encoder', train=train),
    }
    config = Config(systems=systems)
    return types.SimpleNamespace(config=config, trained=trained)


def test_each_kind_has_its_system(run):
    assert builder.build(run, 'lexical') == 'bm25 lexical'
    assert builder.build(run, 'llm') == 'imported llm'
    dual = builder.build(run, 'dual')
    assert isinstance(dual, DualEncoderSystem)
    assert (dual.name, dual.digest, dual.scale, run.trained) == ('dual', 'start', 2.0, [])


def test_an_encoder_is_trained_first_with_its_miner(run):
    cross = builder.build(run, 'cross')
    assert isinstance(cross, CrossEncoderSystem) and cross.digest == 'trained start'
    assert run.trained == [('cross', 'start', 'bm25 lexical')]


def test_unknown_names_are_errors(run):
    with pytest.raises(ValueError, match="'x' is no entry of config.systems; there are: .*lexical"):
        builder.build(run, 'x')
