"""Columns, the id index, text groups and fingerprints of passages in memory."""

import numpy as np
import pyarrow as pa
import pytest

from jdkd.corpus import passages as passages_lib
from jdkd.corpus.passages import SCHEMA, Column, Fingerprint, Passages

IDS = ['a', 'b', 'c', 'd']
TITLES = ['Moon', '', 'Sun', 'moon']
TEXTS = ['is  round', 'Moon is round', 'is hot', 'IS\nROUND ']


def make(**changes) -> Passages:
    return Passages.from_columns(**({'ids': IDS, 'titles': TITLES, 'texts': TEXTS} | changes))


def test_a_column_is_a_sequence_over_its_chunks(monkeypatch):
    monkeypatch.setattr(passages_lib, '_ITERATION_CHUNK', 3)
    column = Column(pa.chunked_array([['x', 'y'], [], ['z', '', 'w']], pa.large_string()))
    assert list(column) == ['x', 'y', 'z', '', 'w'] and len(column) == 5
    assert column[1:4] == ['y', 'z', ''] and column[-1] == 'w' and column[np.int32(2)] == 'z'
    assert column.take(np.array([4, 0, 0])) == ['w', 'x', 'x']


def test_passages_are_title_and_text():
    passages = make(titles=['Moon', '', 'Sun', ''], texts=['is round', 'x', '', ' y '])
    assert list(passages) == ['Moon is round', 'x', 'Sun', 'y']
    assert passages[1:] == list(passages)[1:] and passages[-1] == 'y' and len(passages) == 4


def test_many_rows_are_taken_chunk_by_chunk():
    texts = [f't{i}\0' if i % 3 else '' for i in range(300)]
    column = Column(pa.chunked_array([texts[:7], [], texts[7:150], texts[150:]], pa.large_string()))
    rows = np.random.default_rng(0).integers(0, 300, 500)
    for some in (rows, rows[:99], rows[:100].astype(np.int32), rows[:0]):
        assert column.take(some) == [texts[row] for row in some]
        for wrong in (-1, 300):
            with pytest.raises(IndexError, match='rows must lie between 0 and 299'):
                column.take(np.append(some, wrong))


def test_columns_must_have_one_length():
    with pytest.raises(ValueError):
        make(titles=TITLES[:3])


def test_ids_are_found_and_unknown_ones_are_not():
    index = make().id_index
    np.testing.assert_array_equal(index.find(['c', 'e', 'a', '\ud800', 'a']), [2, -1, 0, -1, 0])
    assert index.find([]).shape == (0,) and index.find(['d']).dtype == np.int32
    assert index['b'] == 1 and 'e' not in index and dict(index) == {'a': 0, 'b': 1, 'c': 2, 'd': 3}
    with pytest.raises(KeyError, match='e'):
        index['e']


def test_ids_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        passages_lib, 'id_hashes', lambda ids: np.array([len(i) for i in ids], 'u8')
    )
    index = make(ids=['aa', 'b', 'cc', 'dd']).id_index
    np.testing.assert_array_equal(
        index.find(['dd', 'aa', 'zz', 'b', 'ccc', '']), [3, 0, -1, 1, -1, -1]
    )


def test_hashes_are_the_same_on_every_machine():
    assert passages_lib.id_hashes(['a', '']).tolist() == [
        int.from_bytes(bytes.fromhex(digest), 'little')
        for digest in ('40f89e395b66422f', 'e4a6a0577479b2b4')
    ]


def test_groups_are_texts_equal_but_for_case_and_whitespace():
    # 'b' has no title but reads like 'a'; 'd' differs from it in case and whitespace only.
    np.testing.assert_array_equal(make().group, [0, 0, 2, 0])
    assert make().group.dtype == np.int32
    # Digests that agree in one half alone are different texts.
    digests = [b'x' * 16, b'x' * 8 + b'y' * 8, b'y' * 16, b'x' * 16]
    group = passages_lib.equal_text_groups(b''.join(digests))
    np.testing.assert_array_equal(group, [0, 1, 2, 0])


def test_a_fingerprint_depends_on_columns_and_not_on_batches():
    table = pa.table([IDS, TITLES, TEXTS], schema=SCHEMA)
    whole, parts = Fingerprint(), Fingerprint()
    whole.update(table)
    for start, stop in ((0, 1), (1, 1), (1, 4)):
        parts.update(table.slice(start, stop - start))
    assert parts.hexdigest() == whole.hexdigest() == make().fingerprint
    others = [
        make(ids=['a', 'b', 'c', 'e']),
        make(texts=['is  roundM', 'oon is round', *TEXTS[2:]]),  # Another border of texts.
        make(titles=TEXTS, texts=TITLES),
    ]
    assert len({whole.hexdigest(), *(p.fingerprint for p in others)}) == 4
