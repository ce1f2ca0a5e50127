"""Records on disk and batches from them: what goes in comes out, from any position."""

import sys

import jax
import numpy as np
import pytest

from jdkd.lists import dataset, loader
from jdkd.lists.packing import RowSpec
from jdkd.runtime import mesh as meshes
from jdkd.tokens.store import TokenStore

ONE = meshes.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp('records')
    rng = np.random.default_rng(0)
    splits = {}
    for split, size in (('train', 23), ('eval', 5)):
        splits[split] = {
            'query_row': np.arange(size, dtype=np.int32) % 7,
            'passages': rng.integers(0, 9, (size, 3)).astype(np.int32),
            'dark': rng.integers(1, 50, (size, 2, 6)).astype(np.int32),
            'teacher': rng.normal(size=(size, 5)).astype(np.float32),
            'false_negative': rng.random((size, 3)) < 0.5,
        }
    parts = {
        split: [
            {name: a[i : i + 10] for name, a in arrays.items()}
            for i in range(0, len(arrays['teacher']), 10)
        ]
        for split, arrays in splits.items()
    }
    dataset.write(directory, parts)
    return directory, splits


def lookup():
    rng = np.random.default_rng(1)
    return loader.DualEncoderTokens(
        queries=TokenStore.from_rows(rng.integers(4, 99, (7, 5)).astype(np.uint16), 0),
        passages=TokenStore.from_rows(rng.integers(4, 99, (9, 8)).astype(np.uint16), 0),
        length=6,
        sep_id=2,
    )


def rows(records, order):
    """What puts all batches of an order into rows of one length."""
    return loader.make_row_packer(lookup(), records, order, RowSpec(lengths=1), ONE, steps=30)


def test_records_come_back_as_they_were_written(written):
    directory, splits = written
    for split, arrays in splits.items():
        source = dataset.read(directory, split)
        assert len(source) == len(arrays['query_row'])
        for i in (0, 3, len(source) - 1):
            for name, array in arrays.items():
                np.testing.assert_array_equal(source[i][name], array[i])
                assert np.asarray(source[i][name]).dtype.kind == array.dtype.kind


def test_tensorflow_is_never_imported(written):
    assert 'tensorflow' not in sys.modules


def test_files_are_array_record(written):
    assert sorted(p.suffix or p.name for p in written[0].rglob('*-of-*'))
    assert all('array_record' in p.name for p in written[0].rglob('*-of-*'))


def test_batches_join_records_with_their_tokens(written):
    directory, splits = written
    order = loader.BatchOrder(4, [0], shuffle=False)
    to_rows = rows(splits['train'], order)
    tokens = to_rows.to_tokens
    batch = next(loader.batches(dataset.read(directory, 'train'), to_rows, order, ONE))
    train = splits['train']
    np.testing.assert_array_equal(batch['query_row'], train['query_row'][:4])
    np.testing.assert_array_equal(batch['query'], tokens.queries.rows(train['query_row'][:4]))
    (rows_of_batch,) = batch['tokens']
    assert (
        (batch['lengths'] == 6).all()
        and rows_of_batch.shape == (20, 8)
        and (rows_of_batch[:, 6:] == 0).all()
    )
    rows_of_batch = rows_of_batch[batch['slots'], :6]
    np.testing.assert_array_equal(rows_of_batch[:, 3:], train['dark'][:4])
    np.testing.assert_array_equal(
        rows_of_batch[:, :3], tokens.passages.rows(train['passages'][:4], 6, end=2)
    )
    np.testing.assert_array_equal(batch['teacher'], train['teacher'][:4])


def test_in_batch_scores_are_of_every_query_with_every_original(written):
    directory, splits = written
    queries, passages = np.eye(7, 4) + 1, np.arange(36.0).reshape(9, 4)
    order = loader.BatchOrder(4, [0], shuffle=False)
    train = splits['train']
    scorers = [lambda q, p: queries[q] @ passages[p].T, lambda q, p: np.add.outer(10.0 * q, p)]
    extra = loader.in_batch(train['passages'], scorers, [2.0, 1.0])
    lists = dataset.read(directory, 'train')
    batch = next(loader.batches(lists, rows(train, order), order, ONE, [extra]))
    assert batch['in_batch'].shape == (4, 2, 12) and batch['in_batch'].dtype == np.float32
    for i in range(4):
        for j in range(12):
            query, passage = train['query_row'][i], train['passages'][j // 3, j % 3]
            expected = [2 * queries[query] @ passages[passage], 10 * query + passage]
            np.testing.assert_allclose(batch['in_batch'][i, :, j], expected)


def test_a_restored_iterator_goes_on_where_it_was(written):
    order = loader.BatchOrder(4, [3])
    to_rows = rows(written[1]['train'], order)

    def fresh():
        return loader.batches(dataset.read(written[0], 'train'), to_rows, order, ONE)

    expected = fresh()
    seen = [next(expected)['query'] for _ in range(12)]  # more than two epochs
    first = fresh()
    for _ in range(7):
        next(first)
    second = fresh()
    second.set_state(first.get_state())
    for batch in seen[7:]:
        np.testing.assert_array_equal(next(second)['query'], batch)


def test_epochs_are_shuffled_anew_and_hold_every_record(written):
    order = loader.BatchOrder(23, [0])
    to_rows = rows(written[1]['train'], order)
    batches = loader.batches(dataset.read(written[0], 'train'), to_rows, order, ONE)
    a, b = next(batches)['teacher'][:, 0], next(batches)['teacher'][:, 0]
    assert (a != b).any()
    np.testing.assert_array_equal(np.sort(a), np.sort(b))


def test_less_than_a_batch_is_an_error(written):
    with pytest.raises(ValueError, match='5 candidate lists are less than one batch of 8'):
        rows(written[1]['eval'], loader.BatchOrder(8, [0]))
