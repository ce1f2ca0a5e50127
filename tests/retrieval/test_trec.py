"""Runs and scores made elsewhere: every format, every complaint, and what the arrays say."""

import gzip
import json

import numpy as np
import pytest

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.corpus.sources import base
from jdkd.retrieval import trec

IDS = ['p0', 'p1', 'p2', 'p3']
COLLECTION = Collection(
    'c',
    Passages.from_columns(IDS, [''] * 4, ['x'] * 4),
    {'train': {'a': 'x', 'b': 'y'}, 'test': {'7': 'z'}},
    {},
)
FORMATS = {
    'trec': 'b Q0 p3 1 2.5 x\na Q0 p2 1 3e0 x\nb\tQ0\tp1 2 -1 x\n',
    'jsonl': ''.join(
        json.dumps({'query_id': q, 'passage_id': p, 'score': s}) + '\n'
        for q, p, s in [('b', 'p3', 2.5), ('a', 'p2', 3), ('b', 'p1', -1.0)]
    ),
    'lists': json.dumps({'query_id': 'b', 'passage_ids': ['p3', 'p1'], 'scores': [2.5, -1]})
    + '\n\n'
    + json.dumps({'query_id': 'a', 'passage_ids': ['p2'], 'scores': [3]}),
}


def read(tmp_path, text, fault=base.raise_error):
    (tmp_path / 'run').write_text(text)
    return trec.read(tmp_path / 'run', COLLECTION, fault)


def as_dict(scores):
    found = {q: zip(*scores.of(q), strict=True) for q in scores.queries}
    return {q: {IDS[row]: float(value) for row, value in pairs} for q, pairs in found.items()}


@pytest.mark.parametrize('text', FORMATS.values(), ids=FORMATS)
def test_formats(tmp_path, text):
    scores = read(tmp_path, text)
    assert as_dict(scores) == {'a': {'p2': 3.0}, 'b': {'p1': -1.0, 'p3': 2.5}}
    assert scores.rows.dtype == np.int32 and scores.values.dtype == np.float64
    (tmp_path / 'run.gz').write_bytes(gzip.compress(text.encode()))
    assert as_dict(trec.read(tmp_path / 'run.gz', COLLECTION)) == as_dict(scores)


def test_ranks_of_msmarco(tmp_path):
    assert as_dict(read(tmp_path, '7\tp0\t1\n7\tp3\t2\n')) == {'7': {'p0': -1, 'p3': -2}}


def test_top_1000_of_msmarco_keeps_the_order_of_the_file(tmp_path):
    text = '7\tp3\twhat is z\tsome text\na\tp1\tx\tt\n7\tp0\twhat is z\tother text\n'
    scores = as_dict(read(tmp_path, text))
    assert scores['7']['p3'] > scores['7']['p0'] and set(scores) == {'a', '7'}


def test_integer_ids_in_json(tmp_path):
    text = '{"query_id": 7, "passage_id": "p1", "score": 1}\n'
    assert as_dict(read(tmp_path, text)) == {'7': {'p1': 1}}


GOOD = 'a Q0 p0 1 2.0 x\n'


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('a Q0 p1 1', 'run:2: not a run line; it must read'),
        ('a Q0 p1 1 high x', "run:2: not a run line; .*'high'"),
        ('a Q0 p1 1 nan x', 'run:2: the score is nan; give a finite number'),
        ('a Q0 p1 1 -1e39 x', r'run:2: the score is -1e\+39; give a finite number of float32'),
        ('a Q0 p1 1 -inf x', 'run:2: the score is -inf'),
        ('a Q0 p9 1 1.0 x', "run:2: passage 'p9' is not in collection 'c'"),
        ('z Q0 p1 1 1.0 x', "run:2: query 'z' is not in collection 'c'"),
        ('a Q0 p0 1 9.0 x', "run:2: passage 'p0' has two scores for query 'a'; keep one"),
    ],
)
def test_names_file_and_line_or_leaves_the_line_out(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, f'{GOOD}{line}\n')
    skipped = {}
    scores = read(tmp_path, f'{GOOD}{line}\n', base.count_errors(skipped))
    assert as_dict(scores) == {'a': {'p0': 2.0}}
    assert [entry['count'] for entry in skipped.values()] == [1]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"query_id": "a", "passage_id": "p1"}', "run:1: not an object with query_id.*'score'"),
        ('{"query_id": "a", "passage_id": "p1", "score": "1"}', "score '1' is no number"),
        (
            '{"query_id": "a", "passage_ids": ["p1"], "scores": [1, 2]}',
            '1 passage_ids and 2 scores',
        ),
        (
            '{"query_id": null, "passage_id": "p1", "score": 1}',
            'must be a string or integer, found None',
        ),
        ('{"query_id": "a", ', 'run:1: not an object'),
        ('{"query_id": "a", "passage_ids": "p1", "scores": [1, 2]}', "passage_ids is 'p1' .* no l"),
        ('{"query_id": "a", "passage_ids": {"p1": 2}, "scores": [1]}', 'and scores .1., no lists'),
        ('{"query_id": "a", "passage_ids": ["p1"], "scores": null}', 'scores None, no lists'),
        ('[{"query_id": "a", "passage_id": "p1", "score": 1}]', 'a JSON object, found list; write'),
        (
            '[\n{"query_id": "a", "passage_id": "p1", "score": 1}\n]',
            'not JSON .* one object a line',
        ),
        ('a Q0 p0 1 2.5 x\ra Q0 p1 2 1.5 x\r', 'run: carriage returns alone end its lines; save'),
        ('a b', 'run:1: not a line of scores; write'),
        ('', 'holds no scores'),
    ],
)
def test_bad_json_and_unknown_formats(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, line)


def test_a_pair_that_is_there_twice_with_one_score_counts_once(tmp_path):
    assert as_dict(read(tmp_path, 2 * GOOD)) == {'a': {'p0': 2.0}}


def test_gzip_data_that_is_cut_short_is_never_skipped(tmp_path):
    (tmp_path / 'run.gz').write_bytes(gzip.compress(1000 * GOOD.encode())[:-12])
    with pytest.raises(ValueError, match='run.gz:.* cut short or damaged'):
        trec.read(tmp_path / 'run.gz', COLLECTION, base.count_errors({}))


def test_looking_up_and_keeping(tmp_path):
    scores = read(tmp_path, FORMATS['trec'])
    scores.save(tmp_path)
    for found in (scores, trec.load(tmp_path)):
        rows = np.array([3, 0, 1, 3], np.int32)
        np.testing.assert_array_equal(found.look_up('b', rows), [2.5, np.nan, -1, 2.5])
        assert np.isnan(found.look_up('7', rows)).all()


def test_chunks_do_not_matter(tmp_path, monkeypatch):
    text = ''.join(f'{q} Q0 p{p} 1 {p - i} x\n' for i, q in enumerate('ba7') for p in (2, 0, 3))
    whole = as_dict(read(tmp_path, text))
    assert whole['7'] == {'p0': -2, 'p2': 0, 'p3': 1}
    monkeypatch.setattr(trec, '_CHUNK', 2)
    assert as_dict(read(tmp_path, text)) == whole
