"""The scored pool: which passages each round adds to it, and what they are padded with."""

import dataclasses

import numpy as np
import pytest

from jdkd.algorithm import round_files, scored_pool
from jdkd.algorithm.round_files import round_path
from jdkd.algorithm.teacher import Teacher
from jdkd.config import CandidatesConfig, Config
from jdkd.corpus.passages import Passages
from jdkd.lists.candidates import Ranked
from tests.helpers import tables

PASSAGES = 8
# Mined passages of three queries in two rounds; passage 7 has the text of passage 0.
MINED = [
    [[0, 3, 5, 1], [2, -1, -1, -1], [-1, -1, -1, -1]],
    [[7, 3, 4, 2], [0, 2, 5, 6], [-1, -1, -1, -1]],
]


@pytest.fixture
def run(tmp_path):
    candidates = CandidatesConfig(hardest=2, scored=3, margin=0.5)
    positives = {'train': [6, 1, 4], 'dev': [6, 1, 4], 'test': [0]}
    config = Config(candidates=candidates)
    run = tables.make_run(tmp_path, config, PASSAGES, positives)
    texts = [*run.passages.texts][:7] + [run.passages.texts[0]]
    passages = Passages.from_columns(run.collection.passage_ids, [''] * PASSAGES, texts)
    run = dataclasses.replace(
        run, collection=dataclasses.replace(run.collection, passages=passages)
    )
    for i, mined in enumerate(MINED):
        path = tmp_path / round_path(i, 'runs')
        path.mkdir(parents=True)
        for split in ('train', 'eval'):
            np.save(path / f'{split}.npy', np.array(mined, np.int32))
    run.stage(round_files.FITTED, {}, lambda out: {'teacher': {'t': 2.0}, 'scales': {}})
    return run


@pytest.fixture
def pools(run):
    """The pools of both rounds, by a teacher whose score of a pair is ten queries and a passage."""
    scores = 10.0 * np.arange(3)[:, None] + np.arange(PASSAGES)
    teacher = Teacher([tables.make_system(run, 't', scores)], {'t': 2.0})
    return [scored_pool.keep(run, i, {'digest': f'mined {i}'}, teacher) for i in range(2)]


def test_a_round_adds_the_first_mined_passages_of_a_new_text(run, pools):
    """The first three count; a text of an earlier round is not scored again."""
    assert scored_pool._load_passages(run, 0, 'train').tolist() == [
        [0, 3, 5],
        [2, -1, -1],
        [-1, -1, -1],
    ]
    assert scored_pool._load_passages(run, 1, 'train').tolist() == [[4, -1], [0, 5], [-1, -1]]


def test_passages_stand_beside_their_logits_and_those_of_the_positives(run, pools):
    for split in ('train', 'eval'):
        passages, ranked = scored_pool.load(run, 1, split)
        np.testing.assert_array_equal(passages, [[0, 3, 5, 4, -1], [2, -1, -1, 0, 5], [-1] * 5])
        there = passages >= 0
        expected = 2 * (10.0 * np.arange(3)[:, None] + passages)
        np.testing.assert_array_equal(ranked.logits[there], expected[there])
        assert [rows.tolist() for rows in ranked.best] == [[12.0], [22.0], [48.0]]
        assert (ranked.margin, ranked.hardest) == (0.5, 2)
    first, _ = scored_pool.load(run, 0, 'train')
    np.testing.assert_array_equal(first, [[0, 3, 5], [2, -1, -1], [-1] * 3])


def test_the_best_of_a_pool_follow_the_positive_whose_text_comes_once(run, pools):
    qrels = {'train': {f'train{i}': {f'p{p}': 1} for i, p in enumerate((5, 1, 4))}}
    collection = dataclasses.replace(run.collection, qrels=run.collection.qrels | qrels)
    passages, logits = scored_pool.positive_and_top(
        dataclasses.replace(run, collection=collection), 1, 'train'
    )
    np.testing.assert_array_equal(passages, [[5, 4, 3, 0], [1, 5, 2, 0], [4, -1, -1, -1]])
    # The positives' are those that were scored.
    np.testing.assert_array_equal(logits, [[12, 8, 6, 0], [22, 30, 24, 20], [48, 0, 0, 0]])
    assert (passages.dtype, logits.dtype) == (np.int32, np.float32)


def test_a_query_whose_positives_have_no_imported_score_has_none(run, monkeypatch):
    ranked = Ranked(np.array([[5.0, 3.0], [4.0, 2.0]]), [np.array([9.0]), np.array([])], 0.5, 2)
    pool = np.array([[3, 1], [6, 0]]), ranked
    monkeypatch.setattr(scored_pool, 'load', lambda run, i, split: pool)
    monkeypatch.setattr(
        scored_pool, 'best_positives', lambda run, split: [np.array([5]), np.array([], int)]
    )
    # Passage 7, which -1 would be, has the text of passage 6.
    texts = [*run.passages.texts][:7] + [run.passages.texts[6]]
    passages = Passages.from_columns(run.collection.passage_ids, [''] * PASSAGES, texts)
    run = dataclasses.replace(
        run, collection=dataclasses.replace(run.collection, passages=passages)
    )
    passages, logits = scored_pool.positive_and_top(run, 1, 'train')
    np.testing.assert_array_equal(passages, [[5, 3, 1], [-1, 6, 0]])
    np.testing.assert_array_equal(logits, [[9, 5, 3], [0, 4, 2]])


def test_only_passages_are_scored():
    passages = np.array([[3, -1], [-1, -1], [2, 5]], np.int32)
    lists, rows = scored_pool._to_score(passages)
    np.testing.assert_array_equal(rows, [0, 2])
    np.testing.assert_array_equal(lists.passages, [[3, 3], [2, 5]])


def test_queries_without_anything_mined_have_one_empty_place(run):
    for split in ('train', 'eval'):
        file = run.workdir / round_path(0, 'runs') / f'{split}.npy'
        np.save(file, np.full((3, 4), -1, np.int32))
    assert scored_pool._new_passages(run, 0, 'train').tolist() == [[-1]] * 3


def test_a_pool_is_decided_by_its_pairs_the_teacher_and_the_choice(run, pools):
    for pool in pools:
        decided = dict(pool)
        assert decided.pop('teacher') == {'t': ['t', 2.0]} and len(decided.pop('pairs')) == 64
        assert decided == {'hardest': 2, 'margin': 0.5}
    first, second = (run.read_manifest(round_path(i, 'pool')) for i in range(2))
    assert first['inputs']['before'] is None and second['inputs']['before'] == first['digest']
    assert first['inputs']['runs'] == 'mined 0' and first['inputs']['scored'] == 3


def test_scoring_goes_on_after_an_interrupt(run, monkeypatch):
    scores, asked = np.zeros((3, PASSAGES)), []
    system = tables.make_system(run, 't', scores)

    class Stopping(tables.Table):
        def list_scorer(self, queries):
            def score(lists):
                asked.append(queries.split)
                if len(asked) == 3:
                    raise KeyboardInterrupt
                return system.list_scorer(queries)(lists)

            return score

    stopping = Stopping(**{f.name: getattr(system, f.name) for f in dataclasses.fields(system)})
    with pytest.raises(KeyboardInterrupt):
        scored_pool.keep(run, 0, {'digest': 'x'}, Teacher.alone(stopping))
    scored_pool.keep(run, 0, {'digest': 'x'}, Teacher.alone(stopping))
    # Mined passages and positives of both splits; what was scored before the interrupt stays.
    assert asked == ['train', 'train', 'dev', 'dev', 'dev']
