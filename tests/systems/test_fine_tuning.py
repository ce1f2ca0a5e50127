"""Fine-tuning from labels: its lists, what it trains with, and what is loaded again."""

import dataclasses
import types

import numpy as np
import pytest

from jdkd.config import BM25Spec, Config, EncoderSpec, FineTuningConfig
from jdkd.lists import dataset
from jdkd.systems import fine_tuning
from tests.helpers import tables

PASSAGES = 9
TRAIN = FineTuningConfig(
    steps=6, batch_size=2, hard_negatives=2, depth=4, scale=7.0, total_steps=50, negatives_from='m'
)
SPEC = EncoderSpec(train=TRAIN, passage_length=11)


@pytest.fixture
def run(tmp_path):
    systems = {'tuned': SPEC, 'plain': EncoderSpec(), 'bm25': BM25Spec()}
    config = Config(systems=systems, depth=8, seed=3)
    return tables.make_run(tmp_path, config, PASSAGES, {'train': [1, 4], 'dev': [0]})


@pytest.fixture
def miner(run):
    """Finds passages 0, 1, 2, ... for the first query, and 8, 7, 6, ... for the second."""
    return tables.make_system(run, 'm', [-np.arange(PASSAGES), np.arange(PASSAGES)])


@pytest.fixture
def trained(run, miner, monkeypatch):
    """`train_from_labels` with all but its lists replaced; what the steps were called with."""
    calls = types.SimpleNamespace(batches=[], loops=[], stop=False)
    trainer = types.SimpleNamespace(rows='rows', init=lambda params: f'state of {params}')

    def make_trainer(objective, *, mesh, model, params):
        assert (objective.optimizer, objective.scale) == (TRAIN, 7.0)
        assert (model, params) == ('model', 'params')
        return trainer

    def make_batches(*args, **kwargs):
        calls.batches.append((args, {k: v for k, v in kwargs.items()}))
        return 'batches'

    def train_loop(run, name, out, trainer, start, batches, **kwargs):
        calls.loops.append((name, (out / 'part').exists(), start(), batches, kwargs))
        (out / 'part').touch()
        if calls.stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, 'make_trainer', make_trainer)
    monkeypatch.setattr(fine_tuning, 'make_batches', make_batches)
    monkeypatch.setattr(fine_tuning, 'train_loop', train_loop)
    monkeypatch.setattr(fine_tuning, 'restore_encoder', lambda *args: args[1:])
    encoder = types.SimpleNamespace(spec=SPEC, model='model', params='params')
    calls.encoder = encoder

    def again(digest='start', **changes):
        changed = dataclasses.replace(run, config=run.config.replace(**changes))
        return fine_tuning.train_from_labels(changed, 'tuned', encoder, digest, miner)

    calls.again = again
    return calls


def test_lists_hold_a_positive_and_the_miners_best_others(run, trained):
    trained.again()
    with np.load(run.workdir / 'systems/tuned/dataset' / fine_tuning._LISTS) as f:
        source = dataset.Arrays(dict(f))
    # Four lists a labelled query, where steps would take more.
    records = [source[i] for i in range(len(source))]
    assert sorted(int(r['query_row']) for r in records) == [0] * 4 + [1] * 4
    for record in records:
        query, (positive, *negatives) = record['query_row'], record['passages'].tolist()
        # Of the best four, one is the positive itself in the first query's ranking.
        assert positive == [1, 4][query] and len(negatives) == len(set(negatives)) == 2
        assert set(negatives) <= [{0, 2, 3, 4}, {8, 7, 6, 5}][query]
        assert not record['false_negative'].any() and record['relevant'].tolist() == [positive]
        assert record['group'].tolist() == record['passages'].tolist()


def test_it_trains_the_steps_of_its_entry_on_them(run, trained):
    (encoder, path, step), digest = trained.again()
    assert (encoder, path, step) == (trained.encoder, run.workdir / 'systems/tuned/train', 6)
    (((_, own, queries, source, lists, order, rows), options),) = trained.batches
    assert (own, queries, rows, len(source)) == (trained.encoder, run.train, 'rows', 8)
    assert options == {'length': 11, 'steps': 6}
    assert (order.batch_size, list(order.seed), order.shuffle) == (2, [3], True)
    ((name, _, state, batches, options),) = trained.loops
    assert (name, state, batches) == ('tuned', 'state of params', 'batches')
    assert options.pop('desc') == 'train tuned from labels'
    assert options == {'steps': range(6), 'planned_steps': 6, 'total_steps': 50}
    # Once; from another start it would be another one.
    assert trained.again()[1] == digest and len(trained.loops) == 1
    with pytest.raises(ValueError, match=r'\(start differ\)'):
        trained.again('other')
    with pytest.raises(ValueError, match=r'\(length differ\)'):
        trained.again(train_passage_length=9)


def test_passages_are_cut_as_in_all_training(trained):
    trained.again(train_passage_length=9)
    ((_, options),) = trained.batches
    assert options['length'] == 9


def test_training_goes_on_after_an_interrupt(trained):
    trained.stop = True
    with pytest.raises(KeyboardInterrupt):
        trained.again()
    trained.stop = False
    trained.again()
    assert [resumed for _, resumed, *_ in trained.loops] == [False, True]


def test_a_trained_system_is_loaded_from_its_stage(run, trained, monkeypatch):
    monkeypatch.setattr(fine_tuning, 'load_encoder', lambda run, spec: spec)
    with pytest.raises(FileNotFoundError, match="has no trained 'tuned'; name it in teacher.memb"):
        fine_tuning.load_trained(run, 'tuned')
    trained.again()
    assert fine_tuning.load_trained(run, 'tuned') == (
        SPEC,
        run.workdir / 'systems/tuned/train',
        6,
    )
    assert fine_tuning.load_trained(run, 'plain') == EncoderSpec()
    with pytest.raises(ValueError, match="'bm25' is of kind bm25 and has no weights to export"):
        fine_tuning.load_trained(run, 'bm25')
    with pytest.raises(ValueError, match="'x' is no entry of config.systems"):
        fine_tuning.load_trained(run, 'x')
