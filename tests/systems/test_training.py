"""Batches of lists as encoders read them, and parameters that a checkpoint restores."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from jdkd.config import Config, EncoderSpec
from jdkd.lists import dataset, loader
from jdkd.lists.packing import RowSpec
from jdkd.runtime import mesh as meshes
from jdkd.systems import training
from jdkd.tokens.store import TokenStore
from tests.helpers import tables

SEP = 3
# Two queries, and passages whose tokens are 10, 11, ... up to their number.
QUERIES = np.array([[2, 5, SEP, 0], [2, 6, 7, SEP]], np.int32)
PASSAGES = np.array([[2, *range(10, 10 + i), SEP, *[0] * (5 - i)] for i in range(6)], np.int32)
LISTS = {
    'query_row': np.array([0, 1, 1, 0], np.int32),
    'passages': np.array([[5, 0], [1, 4], [3, 2], [2, 5]], np.int32),
    'dark': np.array([[[2, 20, SEP, 0]]] * 4, np.int32),
}


@pytest.fixture
def run(tmp_path):
    run = tables.make_run(tmp_path, Config(), 6, {'train': [0, 0], 'dev': [0]})
    return dataclasses.replace(run, mesh=meshes.make_mesh(devices=jax.devices()[:1]))


def make_encoder(kind='dual_encoder', **fields):
    return types.SimpleNamespace(
        query_tokens=lambda run, queries: TokenStore.from_rows(QUERIES, 0),
        passage_tokens=lambda run: TokenStore.from_rows(PASSAGES, 0),
        spec=EncoderSpec(kind=kind),
        separators=1,
        passage_end=SEP,
        **fields,
    )


def first_batch(run, encoder, **options):
    """The first two lists, in order."""
    batches = training.make_batches(
        run,
        encoder,
        run.train,
        dataset.Arrays(LISTS),
        LISTS,
        loader.BatchOrder(2, [0], shuffle=False),
        RowSpec(),
        length=4,
        steps=2,
        **options,
    )
    return next(batches)


def texts(batch, name='tokens'):
    """The real tokens of each candidate."""
    rows = np.concatenate([np.pad(t, [(0, 0), (0, 16 - t.shape[1])]) for t in batch[name]])
    found = [[rows[slot] for slot in slots] for slots in batch['slots']]
    return [
        [row[:n].tolist() for row, n in zip(own, lengths, strict=True)]
        for own, lengths in zip(found, batch['lengths'], strict=True)
    ]


def test_a_dual_encoder_reads_passages_cut_and_dark_examples(run):
    batch = first_batch(run, make_encoder())
    dark = [2, 20, SEP]
    assert texts(batch) == [
        [[2, 10, 11, SEP], [2, SEP], dark],
        [[2, 10, SEP], [2, 10, 11, SEP], dark],
    ]
    assert [row[row != 0].tolist() for row in batch['query']] == [[2, 5, SEP], [2, 6, 7, SEP]]
    assert not {'in_batch', 'query_target', 'pool_teacher'} & batch.keys()


def test_without_their_term_dark_examples_are_not_read(run):
    config = run.config.replace(loss=run.config.loss.replace(dark=0.0))
    batch = first_batch(dataclasses.replace(run, config=config), make_encoder())
    assert batch['lengths'].shape == (2, 2)


def test_a_cross_encoder_reads_pairs_in_full(run):
    lists = {name: values for name, values in LISTS.items() if name != 'dark'}
    batches = training.make_batches(
        run,
        make_encoder('cross_encoder'),
        run.train,
        dataset.Arrays(lists),
        lists,
        loader.BatchOrder(2, [0], shuffle=False),
        RowSpec(),
        length=4,
        steps=2,
    )
    batch = next(batches)
    assert texts(batch)[0] == [[2, 5, SEP, 10, 11, 12, 13, 14, SEP], [2, 5, SEP, SEP]]
    assert texts(batch, 'token_types')[0] == [[0] * 3 + [1] * 6, [0, 0, 0, 1]]


def test_pool_targets_and_scored_passages_are_looked_up(run):
    def scorer(unit):
        return types.SimpleNamespace(
            batch_scorer=lambda queries: lambda rows, columns: unit * rows[:, None] + columns
        )

    def embed(rows):
        return np.stack([rows, -rows], axis=-1).astype(np.float32)

    scored = np.array([[4, -1], [2, 3]], np.int32), np.array([[0.5, 0], [1.5, 2.5]], np.float32)
    batch = first_batch(
        run,
        make_encoder(),
        pool=[(scorer(100), 2.0), (scorer(1000), 3.0)],
        targets=(embed, embed),
        scored=(*scored, embed),
    )
    columns = np.array([5, 0, 1, 4])
    np.testing.assert_array_equal(
        batch['in_batch'],
        [[2 * columns, 3 * columns], [2 * (100 + columns), 3 * (1000 + columns)]],
    )
    np.testing.assert_array_equal(batch['query_target'], [[0, 0], [1, -1]])
    np.testing.assert_array_equal(batch['passage_target'][..., 0], [[5, 0], [1, 4]])
    np.testing.assert_array_equal(batch['pool_teacher'], scored[1])
    np.testing.assert_array_equal(batch['pool_there'], [[True, False], [True, True]])


def test_an_encoder_is_restored_with_the_shapes_it_has(run, tmp_path, monkeypatch):
    params = {'transformer': {'kernel': np.ones((2, 3), np.float32)}}

    @dataclasses.dataclass
    class Encoder:
        params: dict
        name: str = 'a'

    def restore_state(directory, step, abstract):
        assert (directory, step) == (tmp_path / 'stage/checkpoints', 7)
        leaf = abstract['params']['transformer']['kernel']
        assert (leaf.shape, leaf.dtype, leaf.sharding.mesh) == ((2, 3), np.float32, run.mesh)
        restored = jax.tree.map(lambda x: jax.device_put(2 * x, leaf.sharding), params)
        return {'params': restored}

    monkeypatch.setattr(training.checkpoint, 'restore_state', restore_state)
    sharding = (('.*', ()),)
    run = dataclasses.replace(run, config=run.config.replace(sharding=sharding))
    found = training.restore_encoder(run, Encoder(params), tmp_path / 'stage', 7)
    assert found.name == 'a'
    np.testing.assert_array_equal(found.params['transformer']['kernel'], np.full((2, 3), 2))
