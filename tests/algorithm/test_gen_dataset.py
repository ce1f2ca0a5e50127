"""Hard negatives from runs, and which queries have lists."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest
import scipy.special

from jdkd.algorithm import gen_dataset, mining, round_files
from jdkd.algorithm.teacher import Teacher
from jdkd.config import CandidatesConfig, Config, DarkConfig, EncoderSpec, ScoresSpec
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.run import Run
from jdkd.systems import imported
from jdkd.tokens.layouts import Layout
from tests.helpers import tables


def test_a_run_that_is_no_assistant_mines_negatives(tmp_path):
    passages = Passages.from_columns(
        [f'p{i}' for i in range(6)], [''] * 6, [f'text {i}' for i in range(6)]
    )
    queries = {'train': {'a': 'x'}, 'dev': {'b': 'y'}}
    qrels = {'train': {'a': {'p0': 1}}, 'dev': {'b': {'p0': 1}}}
    collection = Collection('c', passages, queries, qrels)
    (tmp_path / 'run.trec').write_text('a Q0 p3 1 9 x\na Q0 p0 2 8 x\na Q0 p5 3 7 x\n')
    config = Config(depth=3, candidates=CandidatesConfig(depth=2))
    run = Run(config, tmp_path / 'run', None, collection)
    miner = imported.load(run, 'other', ScoresSpec(path=str(tmp_path / 'run.trec')))
    mining.mine(run, 0, [miner], [])
    # The two best but for the positive; of the other query the run says nothing.
    np.testing.assert_array_equal(np.load(tmp_path / 'run/rounds/00/runs/train.npy'), [[3, -1]])
    np.testing.assert_array_equal(np.load(tmp_path / 'run/rounds/00/runs/eval.npy'), [[-1, -1]])


@pytest.mark.parametrize('eval_queries, lists', [(50, 16), (20, 16), (6, 8)])
def test_the_lists_of_d_eval_are_whole_batches_on_any_number_of_devices(eval_queries, lists):
    config = Config(batch_size=8, steps_per_round=3, candidates=CandidatesConfig(eval_lists=16))
    for devices in (1, 3):
        mesh = types.SimpleNamespace(shape={'data': devices})
        run = types.SimpleNamespace(config=config, eval_rows=np.arange(eval_queries), mesh=mesh)
        assert round_files.num_lists(run) == {'train': 24, 'eval': lists}


def test_d_eval_counts_all_judged_queries_and_has_lists_of_the_labelled(tmp_path):
    passages = Passages.from_columns(
        [f'p{i}' for i in range(6)], [''] * 6, [f'text {i}' for i in range(6)]
    )
    queries = {'dev': {'a': 'x', 'zero': 'y', 'gone': 'z', 'unjudged': 'u', 'b': 'v'}}
    grades = {'a': {'p2': 1}, 'zero': {'p0': 0}, 'gone': {'p9': 1}, 'b': {'p3': 2, 'p9': 3}}
    collection = Collection('c', passages, queries, {'dev': grades}, missing=frozenset({'p9'}))
    candidates = CandidatesConfig(hard_negatives=2, eval_lists=4)
    run = Run(Config(batch_size=4, candidates=candidates), tmp_path, None, collection)
    assert run.held_out.ids == ['a', 'zero', 'gone', 'b']
    labelled = np.flatnonzero(run.held_out.is_labelled)
    assert labelled.tolist() == [0, 3]
    pool = np.array([[0, 1, 4]] * 4, np.int32)
    run.stage('rounds/00/runs', {}, lambda out: np.save(out / 'eval.npy', pool))
    rows, _, drawn = mining.draw(run, 'eval', 0, labelled)
    assert sorted(rows) == [0, 0, 3, 3]
    assert {(int(q), int(p)) for q, p in zip(rows, drawn[:, 0], strict=True)} == {(0, 2), (3, 3)}


def test_lists_are_made_for_the_highest_grade():
    passages = Passages.from_columns(
        [f'p{i}' for i in range(4)], [''] * 4, [f'text {i}' for i in range(4)]
    )
    queries = {'train': {'a': 'x', 'b': 'y', 'c': 'z'}}
    grades = {'a': {'p2': 1, 'p0': 2, 'p3': 0, 'p1': 2}, 'b': {'p3': 1}, 'c': {'p0': -1}}
    collection = Collection('c', passages, queries, {'train': grades})
    found = Run(Config(), pathlib.Path(), None, collection).train
    assert [rows.tolist() for rows in found.positives] == [[2, 0, 1], [3], []]
    assert [rows.tolist() for rows in found.best] == [[0, 1], [3], []]


def make_tables(tmp_path, **candidates):
    """A run over nine passages, and the systems of its rounds, whose scores are tables."""
    config = Config(
        batch_size=2, steps_per_round=3, depth=9, seed=5, dark=DarkConfig(reinforced=0, noisy=0)
    )
    own = CandidatesConfig(hard_negatives=2, depth=6, eval_lists=2, **candidates)
    config = config.replace(candidates=own)
    run = tables.make_run(tmp_path, config, 9, {'train': [0, 1, 2], 'dev': [3, 4]})
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=(3, 9)).round(2) for name in ('first', 't', 'a', 'm')}
    return run, {name: tables.make_system(run, name, own) for name, own in scores.items()}


ENCODER = types.SimpleNamespace(
    spec=EncoderSpec(),
    layout=Layout('joined', ''),
    tokenizer=types.SimpleNamespace(fingerprint='t'),
)


@pytest.mark.parametrize('hardest', [0, 3])
def test_a_round_has_lists_with_the_logits_of_teacher_and_assistants(tmp_path, hardest):
    run, systems = make_tables(tmp_path, hardest=hardest, margin=0.2)
    pool = [systems['a'], dataclasses.replace(systems['m'], name='b', scale=None)]
    teacher = Teacher([systems['t']], {'t': 2.0})
    found, written = gen_dataset.generate(
        run,
        0,
        teacher=teacher,
        miners=[systems['first']],
        pool=pool,
        student=systems['m'],
        encoder=ENCODER,
        active=np.array([0, 2]),
    )
    assert found['teacher'] == {'t': 2.0} and found['scales'].keys() == {'a', 'b'}
    assert set(found['flatness']) == {'t', 'a', 'b'}
    assert written == run.read_manifest('rounds/00/dataset')
    assert (tmp_path / 'rounds/00/pool').exists() == bool(hardest)
    for split, queries in (('train', [0, 2]), ('eval', [0, 1])):
        source = gen_dataset.load_records(run, 0, split, ['a', 'b'])
        records = [source[i] for i in range(len(source))]
        assert len(records) == {'train': 6, 'eval': 2}[split]
        assert {int(r['query_row']) for r in records} == set(queries)
        for record in records:
            query, passages = int(record['query_row']), record['passages']
            assert passages[0] == query + (3 if split == 'eval' else 0)
            logits = 2 * systems['t'].scores[query, passages]
            np.testing.assert_allclose(record['teacher'], logits, rtol=1e-6)
            np.testing.assert_allclose(
                record['assistants'],
                [s.scores[query, passages] * found['scales'][s.name] for s in pool],
                rtol=1e-6,
            )
            marks = [False, *(logits[1:] > logits[0] - 0.2)]
            np.testing.assert_array_equal(record['false_negative'], marks)
            assert record['relevant'].tolist() == [passages[0]] and 'labelled' not in record
    assert found['scales']['a'] == 1.0 != found['scales']['b']  # As given, and fitted.
    swapped = gen_dataset.load_records(run, 0, split, ['b', 'a'])
    np.testing.assert_array_equal(swapped[0]['assistants'], source[0]['assistants'][::-1])
    train = gen_dataset.load_records(run, 0, 'train', ())
    assert 'assistants' not in train[0]
    logits = np.stack([train[i]['teacher'] for i in range(len(train))])
    share = (scipy.special.softmax(logits, axis=1).max(axis=1) > 0.99).mean()
    assert found['one_hot'] == {'originals': share, 'all': share}
    # Another margin would mark others.
    own = run.config.candidates.replace(margin=0.3)
    changed = dataclasses.replace(run, config=run.config.replace(candidates=own))
    with pytest.raises(ValueError, match='differ'):
        gen_dataset.generate(
            changed,
            0,
            teacher=teacher,
            miners=[systems['first']],
            pool=pool,
            student=systems['m'],
            encoder=ENCODER,
            active=np.array([0, 2]),
        )


def test_one_hot_lists_are_counted_at_the_temperature_of_the_round(tmp_path, monkeypatch):
    logits = np.array([[9.0, 0.0, 0.0, 9.0], [9.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    monkeypatch.setattr(gen_dataset, 'load_logits', lambda *args: {'teacher': logits})
    run, _ = make_tables(tmp_path)
    loss = run.config.loss.replace(temperature=((0.0, 1.0), (1.0, 9.0)))
    run = dataclasses.replace(run, config=run.config.replace(loss=loss, rounds=2))
    found = gen_dataset._one_hot_shares(run, 0)
    assert found == {'originals': pytest.approx(2 / 3), 'all': pytest.approx(1 / 3)}
    assert gen_dataset._one_hot_shares(run, 1) == {'originals': 0.0, 'all': 0.0}
