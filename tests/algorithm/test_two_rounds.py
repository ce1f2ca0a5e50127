"""What one round hands to the next: parameters, scores, queries and the pool."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from jdkd.algorithm import (
    align,
    final,
    gen_dataset,
    iterate,
    scored_pool,
    student,
    teacher,
    topics,
)
from jdkd.algorithm.round_files import load_lists, round_path
from jdkd.algorithm.targets import EmbeddingTargets
from jdkd.lists import loader
from jdkd.lists.candidates import Lists
from jdkd.report import model_card, run_report
from jdkd.retrieval import measures
from jdkd.run import Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import metrics
from jdkd.systems.build import build
from jdkd.systems.dual import DualEncoderSystem
from tests.helpers import tiny

pytestmark = pytest.mark.slow

WRONG = np.array([True, False, True, False])  # Train queries that the student gets wrong.


@pytest.fixture(scope='module')
def two_rounds(tmp_path_factory):
    """A run of two rounds in which the student replaces `dense`, and each round's first state."""
    home = tmp_path_factory.mktemp('rounds')
    tiny.write(home)
    c = tiny.get_config(str(home))
    c.index.kind, c.rounds, c.replay, c.twin = 'exact', 2, 0.5, True
    c.fit_floor, c.topic_size, c.loss.pool, c.eval_every = 0.07, 2, 0.5, 2
    run = tiny.open_run(c, home / 'w')
    states, train_loop = [], student.train_loop
    stages, build_stage = {}, Run.stage
    on_eval, evaluate = [], student.evaluate
    there = []  # Students with embeddings, before each training and at the end.

    def embedded():
        names = {p.parent.name for p in run.workdir.glob('systems/*/embeddings-passages')}
        return {name for name in names if name.startswith(('student', 'twin'))}

    def spy(run, name, directory, trainer, start, *args, **kwargs):
        states.append(jax.device_get(start()))
        there.append(embedded())
        return train_loop(run, name, directory, trainer, start, *args, **kwargs)

    def spy_stage(run, path, inputs, build, **options):
        stages[path] = options.get('resumable', False)
        return build_stage(run, path, inputs, build, **options)

    def spy_evaluate(trainer, params, batch, query_ids):
        on_eval.append(batch['query_row'])
        return evaluate(trainer, params, batch, query_ids)

    fitted, floors = itertools.count(2), set()

    def fit_weights(scores, *, floor):
        floors.add(floor)
        return [next(fitted) for _ in scores]  # On random scores a fit would give 0.

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, 'fit_weights', fit_weights)
        patch.setattr(student, 'train_loop', spy)
        patch.setattr(align, 'train_loop', spy)
        patch.setattr(student, 'evaluate', spy_evaluate)
        patch.setattr(Run, 'stage', spy_stage)
        patch.setattr(iterate, 'worst_beaten', lambda *_: 'dense')
        patch.setattr(measures, 'wrong_queries', lambda *_: WRONG)
        patch.setattr(run_report, 'write', lambda *_, **rounds: rounds)
        patch.setattr(model_card, 'write', lambda *_: None)
        outcome = iterate.train(run)
        there.append(embedded())
        left = sorted(p.name for p in (run.workdir / 'systems/student_init').iterdir())
        rebuilt = []
        patch.setattr('jdkd.runtime.stages._build', lambda path, *_: rebuilt.append(path))
        again = iterate.train(run)
        assert not rebuilt and again == outcome
    assert floors == {0.07}
    model = student.load(run)
    first = model.after_round(0)
    pool = [first, build(run, 'tuned'), build(run, 'bm25')]
    return types.SimpleNamespace(
        run=run,
        states=states,
        stages=stages,
        on_eval=on_eval,
        rounds=outcome['rounds'],
        outcome=outcome,
        model=model,
        first=first,
        pool=pool,
        there=there,
        left=left,
    )


def test_long_stages_go_on_where_they_were_stopped(two_rounds):
    """All but those that put together in moments what other stages have computed."""
    short = {'dataset', 'teacher_eval', 'eval', 'twin_eval', 'topics', 'test', 'costs'}
    short.add('mean_cosine')
    for path, resumable in two_rounds.stages.items():
        assert resumable == (path.split('/')[-1] not in short), path
    assert {'train', 'scores', 'pool', 'ranking-test', 'align'} <= {
        path.split('/')[-1] for path in two_rounds.stages
    }


def test_the_loss_on_d_eval_is_that_of_the_lists_in_their_order(two_rounds):
    # Twice a round, of the student and of its twin.
    expected = [load_lists(two_rounds.run, i, 'eval').query for i in (0, 0, 1, 1)] * 2
    np.testing.assert_array_equal(np.concatenate(two_rounds.on_eval), np.concatenate(expected))


def differs(a, b):
    return any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_round_1_starts_from_the_state_that_round_0_ended_in(two_rounds):
    aligned, start, state, *_ = two_rounds.states
    assert differs(aligned.params, start.params)  # Round 0 starts from the aligned student.
    last = jax.device_get(two_rounds.first.encoder.params)
    jax.tree.map(np.testing.assert_array_equal, state.params, last)
    assert differs(start.params, last)
    # So do its step and the optimizer's moments; the counts of selections begin anew.
    assert (start.step, state.step) == (0, 4)
    assert max(np.abs(x).max() for x in jax.tree.leaves(state.opt_state)) > 0
    assert not state.selected.any()


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_logits_of_assistants_are_their_scale_times_their_scores(two_rounds, split):
    run = two_rounds.run
    queries = run.train if split == 'train' else run.held_out
    names = [system.name for system in two_rounds.pool]
    records = gen_dataset.load_records(run, 1, split, names)
    lists = load_lists(run, 1, split)
    found = np.stack([records[i]['assistants'] for i in range(len(records))], axis=1)
    scales = two_rounds.rounds[1]['scales']
    # The student has replaced `dense`, with the scale of its config.
    assert scales.keys() == set(names) and scales[two_rounds.first.name] == 20.0
    for system, logits in zip(two_rounds.pool, found, strict=True):
        expected = scales[system.name] * system.list_scorer(queries)(lists)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        assert np.ptp(logits) > 0
    expected = sum(
        weight * build(run, name).list_scorer(queries)(lists)
        for name, weight in two_rounds.rounds[1]['teacher'].items()
    )
    found = np.stack([records[i]['teacher'] for i in range(len(records))])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_twin_learns_the_labels_of_the_same_lists_from_the_same_start(two_rounds):
    _, start, _, twin, later = two_rounds.states
    jax.tree.map(np.testing.assert_array_equal, twin.params, start.params)
    assert twin.step == 0 and later.step == 4 and differs(twin.params, later.params)
    assert {'student_aligned', 'twin', 'student'} <= set(two_rounds.outcome['test'])
    model, run = two_rounds.model.twin(), two_rounds.run
    targets = EmbeddingTargets(run, model.start, [])
    trainer = model.make_trainer()
    data = student._RoundData(model, trainer, 0, model.initial, (), targets)
    batches = data.batches('train', loader.BatchOrder(2, [0]), 6)
    batch, *others = (next(batches) for _ in range(6))
    rows = load_lists(run, 0, 'train').query
    rows = rows[run.train.is_labelled[rows]]
    order = loader.BatchOrder(2, [0], topics=topics.load(run, rows)).batches(len(rows))
    found = [b['query_row'].tolist() for b in (batch, *others)]
    assert found == [rows[order[k]].tolist() for k in range(6)]  # In batches by topic.
    # One of the four train queries has no label.
    assert run.train.is_labelled.sum() == 3 and run.train.is_labelled[batch['query_row']].all()
    found = trainer.loss(start.params, meshes.to_device(batch, meshes.batch_sharding(run.mesh)))
    assert [name for name in found if name.startswith('loss/')] == ['loss/contrastive']


@pytest.mark.parametrize('best', ['student_aligned', 'student_00', 'student_01'])
def test_commands_read_the_student_that_is_best_on_d_eval(two_rounds, monkeypatch, best):
    run = two_rounds.run
    assert final.load(two_rounds.model).name == two_rounds.outcome['final']
    found = [run.read_manifest(round_path(i, 'eval'))['result'] for i in range(2)]
    measured = {'student_aligned': found[0]['references']['student_aligned']}
    measured |= {f'student_{i:02d}': found[i]['student'] for i in range(2)}
    for name, values in measured.items():
        values[run.config.compare] = float(name == best)
    manifests = {round_path(i, 'eval'): {'result': found[i]} for i in range(2)}
    read = Run.read_manifest
    monkeypatch.setattr(Run, 'read_manifest', lambda *a: manifests.get(a[1]) or read(*a))
    system = final.load(two_rounds.model)
    assert system.name == best
    by_name = {s.name: s for s in (two_rounds.first, align.load(two_rounds.model))}
    if best in by_name:
        assert system.digest == by_name[best].digest
        assert not differs(system.encoder.params, by_name[best].encoder.params)


def test_round_1_has_the_wrong_queries_and_a_share_of_the_solved(two_rounds):
    def queries(round_index):
        lists = load_lists(two_rounds.run, round_index, 'train')
        return set(lists.query.tolist())

    assert queries(0) == {0, 1, 2, 3}
    replayed = queries(1) - {0, 2}
    assert {0, 2} <= queries(1) and len(replayed) == 1 and replayed < {1, 3}
    assert [r['hard_queries'] for r in two_rounds.rounds] == [2, None]


def test_students_that_nothing_reads_are_discarded(two_rounds):
    best, there = two_rounds.outcome['final'], two_rounds.there
    aligning, first, second, twin, _, end = there
    assert not aligning and first == {'student_aligned'}
    # Round 1 trains from student_00, which is in the pool too; the best so far may be another.
    assert {'student_00'} <= second <= {'student_00', 'student_aligned'}
    assert twin == {best} and {best} <= end and len(end) <= 2
    assert all(name.startswith('twin') for name in end - {best})
    # The start is shown in the final test, for which its ranking is enough.
    deleted = ['embeddings-dev', 'embeddings-passages', 'embeddings-test']
    kept = ['ranking-dev', 'ranking-test']
    assert two_rounds.left == sorted([*(f'{name}.deleted.json' for name in deleted), *kept])


def test_other_measures_need_no_embeddings_of_earlier_students(two_rounds, monkeypatch):
    def passages(system):
        raise AssertionError(f'{system.name} embeds passages')

    monkeypatch.setattr(DualEncoderSystem, 'passages', property(passages))
    config = two_rounds.run.config.replace(measures=('MRR@5',))
    run = dataclasses.replace(two_rounds.run, config=config)
    first = student.load(run).after_round(0)
    found = iterate.compare(run, 'rounds/00/again', first, (), ())
    assert 'MRR@5' in found['student'] and 'MRR@10' not in found['student']
    assert found['mean_cosine'] == two_rounds.rounds[0]['mean_cosine']


def test_train_queries_are_not_ranked_after_the_last_round(two_rounds):
    workdir = two_rounds.run.workdir
    assert not list(workdir.glob('systems/student_01/ranking-train*'))


def test_the_scored_pool_of_a_batch_has_the_teachers_logits_and_stored_embeddings(two_rounds):
    run, model = two_rounds.run, two_rounds.model
    targets = EmbeddingTargets(run, model.start, [build(run, 'dense')])
    data = student._RoundData(model, model.make_trainer(), 1, two_rounds.first, (), targets)
    batch = next(data.batches('train', loader.BatchOrder(2, [0]), 1))
    own, ranked = scored_pool.load(run, 1, 'train')
    group, weights = run.collection.group, two_rounds.rounds[1]['teacher']
    for i, query in enumerate(batch['query_row']):
        there = batch['pool_there'][i]
        logits, embeddings = batch['pool_teacher'][i][there], batch['pool_embedding'][i][there]
        positive = run.train.best[query][0] if len(run.train.best[query]) else None
        expected = own[query][own[query] >= 0]
        passages = scored_pool.positive_and_top(run, 1, 'train')[0][query][there]
        if positive is not None:
            assert passages[0] == positive
        assert set(group[passages[1:]]) == set(group[expected]) - {group[passages[0]]}
        assert (np.diff(logits[1:]) <= 0).all()  # The best ones first.
        np.testing.assert_array_equal(embeddings, two_rounds.first.passages[passages])
        lists = Lists.from_originals(np.array([query], np.int32), passages[None].astype(np.int32))
        scores = sum(w * build(run, m).list_scorer(run.train)(lists) for m, w in weights.items())
        np.testing.assert_allclose(logits, scores[0], rtol=1e-5)
    assert 'loss/pool' in two_rounds.rounds[0]['eval_loss']


def test_the_loss_on_d_eval_is_there_every_two_steps(two_rounds):
    lines = metrics.read_series(two_rounds.run.workdir, 'student_eval')
    assert [line['step'] for line in lines] == [2, 4, 6, 8]
    for line, found in zip(lines[1::2], two_rounds.rounds, strict=True):
        assert {k: line[k] for k in found['eval_loss']} == found['eval_loss']
    assert lines[0]['loss'] != lines[1]['loss']


def test_in_batch_logits_of_a_lists_own_columns_are_its_stored_ones(two_rounds):
    model, run = two_rounds.model, two_rounds.run
    scales = two_rounds.rounds[1]['scales']
    pool = [(s, scales.get(s.name, s.scale)) for s in two_rounds.pool]
    order = loader.BatchOrder(run.config.batch_size, [run.config.seed, 1])
    start = model.start
    targets = EmbeddingTargets(run, start, [build(run, 'dense')])
    data = student._RoundData(model, model.make_trainer(), 1, two_rounds.first, pool, targets)
    batches = data.batches('train', order, 4)
    for batch in (next(batches) for _ in range(4)):
        num_originals = batch['group'].shape[1]
        for i, (wide, own) in enumerate(zip(batch['in_batch'], batch['assistants'], strict=True)):
            columns = slice(i * num_originals, (i + 1) * num_originals)
            np.testing.assert_allclose(
                wide[:, columns], own[:, :num_originals], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_hard_negatives_are_what_the_teacher_ranks_highest_below_the_positive(two_rounds, split):
    run, config = two_rounds.run, two_rounds.run.config.candidates
    queries = run.train if split == 'train' else run.held_out
    pool, ranked = scored_pool.load(run, 1, split)
    weights = two_rounds.rounds[1]['teacher']

    def logits(rows, passages):
        lists = Lists.from_originals(np.asarray(rows, np.int32), np.asarray(passages, np.int32))
        return sum(w * build(run, m).list_scorer(queries)(lists) for m, w in weights.items())

    there = pool >= 0
    rows = np.arange(len(queries))
    expected = logits(rows, np.maximum(pool, 0))
    np.testing.assert_allclose(ranked.logits[there], expected[there], rtol=1e-5)
    # What round 1 mined anew stands beside what round 0 did; no text is scored twice.
    first, later = (np.load(run.workdir / round_path(i, 'pool') / f'{split}.npy') for i in range(2))
    np.testing.assert_array_equal(np.concatenate([first, later], axis=1), pool)
    for row, where in zip(run.collection.group[pool], there, strict=True):
        assert len(set(row[where])) == where.sum()
    drawn = load_lists(run, 1, split)
    for query, passages in zip(drawn.query, drawn.passages, strict=True):
        positive = logits([query], passages[None, :1])[0, 0]
        safe = there[query] & (expected[query] <= positive - config.margin)
        hardest = pool[query][safe][np.argsort(-expected[query][safe])][: config.hardest]
        if len(hardest) >= config.hard_negatives:
            assert set(passages[1:]) <= set(hardest)
        else:
            assert set(hardest) <= set(passages[1:])


@pytest.mark.parametrize('keep', [False, True])
def test_discarded_students_that_are_shown_are_tested_before(keep):
    calls = []

    def student_of(name):
        call = lambda verb: lambda *_: calls.append((verb, name))  # noqa: E731
        return types.SimpleNamespace(name=name, rank=call('rank'), discard=call('discard'))

    start, begun, old, new = map(student_of, ('start', 'begun', 'old', 'new'))
    run = types.SimpleNamespace(config=types.SimpleNamespace(keep_students=keep), test=[1])
    needed = [new, begun]  # A name in the pool is needed, whichever object has it.
    iterate.discard_superseded(run, [start, student_of('begun'), old, new], needed, [start, begun])
    discarded = [('rank', 'start'), ('discard', 'start'), ('discard', 'old')]
    assert calls == ([] if keep else discarded)
