"""The student's rounds: what each trains with and from, what decides it, and what it returns."""

import dataclasses
import types

import numpy as np
import pytest

from jdkd.algorithm import student
from jdkd.config import Config, LossConfig
from jdkd.lists.candidates import Lists
from jdkd.runtime import metrics
from tests.helpers import tables

STEPS = 5  # Of a round.


class Recorder(list):
    """Calls of a replaced function: their arguments, but for the first."""

    def __init__(self, result=None):
        self.result = result

    def __call__(self, first, *args, **kwargs):
        self.append((*args, kwargs) if kwargs else args)
        return self.result


@dataclasses.dataclass(frozen=True)
class State:
    """What a trainer makes and a checkpoint holds."""

    params: object
    selected: np.ndarray
    opt_state: str = 'moments'

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


@pytest.fixture
def run(tmp_path):
    config = Config(assistants=('a', 'b'), rounds=3, steps_per_round=STEPS, batch_size=4, seed=6)
    config = config.replace(optimizer=config.optimizer.replace(total_steps=40))
    return tables.make_run(tmp_path, config, 4, {'train': [0, 1], 'dev': [2, 3]})


@pytest.fixture
def calls(monkeypatch):
    """The steps of a round, replaced."""
    monkeypatch.setattr(student, 'start_digest', lambda encoder: f'digest of {encoder}')
    counts = np.array([6.0, 0.0, 2.0])
    calls = types.SimpleNamespace(
        loop=Recorder(State('trained', counts)),
        restored=Recorder('trained encoder'),
        checkpoint=Recorder(State('checkpoint', counts)),
        batches=[],
        eval=[],
    )

    def restore_state(directory, step, abstract):
        calls.checkpoint.append((directory, step, abstract))
        return calls.checkpoint.result

    class Data:
        def __init__(self, *fields):
            self.fields, self.pool = fields, fields[4]
            self.trainer, self.round_index, self.previous = fields[1:4]

        def batches(self, split, order, steps):
            calls.batches.append((self.fields, split, order, steps))
            return 'batches'

        def eval_loss(self, params):
            calls.eval.append(params)
            return {'loss': 0.5}

    monkeypatch.setattr(student, 'train_loop', calls.loop)
    monkeypatch.setattr(student, 'restore_encoder', calls.restored)
    monkeypatch.setattr(student.checkpoint, 'restore_state', restore_state)
    monkeypatch.setattr(student, '_RoundData', Data)
    return calls


TRAINER = types.SimpleNamespace(
    init=lambda params: State(f'first {params}', np.ones(3), 'no moments'),
    place='placed {}'.format,
    abstract='abstract',
)
PREVIOUS = types.SimpleNamespace(
    name='student_aligned', digest='before', encoder=types.SimpleNamespace(params='params')
)
TARGETS = types.SimpleNamespace(inputs={'a': 'd'})


def train(model, round_index, data='data', **changes):
    pool = [types.SimpleNamespace(name='a', scale=None), types.SimpleNamespace(name='b', scale=3.0)]
    arguments = {
        **{'data': {'digest': data}, 'previous': PREVIOUS, 'pool': pool},
        **{'scales': {'a': 2.0, 'b': 3.0}, 'targets': TARGETS},
    }
    return model.train_round(TRAINER, round_index, **arguments | changes)


def test_a_round_trains_its_steps_of_all(run, calls):
    model = student.Student(run, 'start')
    train(model, 0)
    calls.loop.clear(), calls.batches.clear(), calls.eval.clear()
    found = train(model, 1, previous=model.after_round(0))
    ((name, out, trainer, start, batches, options),) = calls.loop
    assert (name, trainer, batches) == ('student', TRAINER, 'batches')
    assert out.name.startswith('train')
    assert options.pop('desc') == 'round 1: train student'
    assert options.pop('eval_metrics')('other') == {'loss': 0.5} and calls.eval.pop() == 'other'
    assert options == {
        'steps': range(STEPS, 2 * STEPS),
        'planned_steps': 3 * STEPS,
        'total_steps': 40,
        'choices': ['a', 'b', 'a+b'],
        'eval_every': 0,
    }
    ((fields, split, order, steps),) = calls.batches
    assert [(s.name, scale) for s, scale in fields[4]] == [('a', 2.0), ('b', 3.0)]
    assert (fields[0], fields[2], fields[5]) == (model, 1, TARGETS)
    assert (split, steps, order.batch_size, list(order.seed)) == ('train', STEPS, 4, [6, 1])
    assert order.shuffle and order.epochs is None
    # It goes on from the round before, but for the counts of selections.
    state = start()
    assert calls.checkpoint == [(run.workdir / 'rounds/00/train/checkpoints', STEPS, 'abstract')]
    assert state.params == 'checkpoint' and not state.selected.any()
    assert calls.eval == ['trained']
    assert found == {
        'selected': {'a': 0.75, 'b': 0.0, 'a+b': 0.25},
        'eval_loss': {'loss': 0.5},
    }
    *_, line = metrics.read_series(run.workdir, 'student_eval')
    assert line == {'series': 'student_eval', 'step': 2 * STEPS, 'loss': 0.5}


def test_the_first_round_starts_from_the_student_that_enters_it(run, calls):
    train(student.Student(run, 'start'), 0)
    state = calls.loop[0][3]()
    assert state.params == 'first params' and not calls.checkpoint


def test_a_round_may_begin_from_an_earlier_student(run, calls):
    """It keeps the state of the optimizer, which is an input of its stage."""
    model = student.Student(run, 'start')
    train(model, 0)
    train(model, 1)
    state = calls.loop[1][3]()
    assert (state.params, state.opt_state) == ('placed params', 'moments')
    assert not state.selected.any()
    manifests = [run.require_manifest(f'rounds/0{i}/train') for i in range(2)]
    assert manifests[1]['inputs']['optimizer_state'] == manifests[0]['digest']
    slower = model.slower(0.25).slower(0.5)
    assert slower.learning_rate == model.learning_rate / 8 and slower.name == model.name


def test_what_decides_a_round_decides_its_stage(run, calls):
    model = student.Student(run, 'start')
    train(model, 0), train(model, 0)
    assert len(calls.loop) == 1
    other = types.SimpleNamespace(name='o', digest='other', encoder=PREVIOUS.encoder)
    # Targets count where embeddings are learnt.
    targets = types.SimpleNamespace(inputs={'b': 'd'})
    train(model, 0, targets=targets)
    for differs, changes in (
        ('dataset', {'data': {'digest': 'x'}}),
        ('previous', {'previous': other}),
    ):
        with pytest.raises(ValueError, match=rf'\({differs} differ\)'):
            train(model, 0, **changes)
    config = run.config.replace(loss=run.config.loss.replace(embedding=1.0))
    aligned = student.Student(dataclasses.replace(run, config=config), 'start')
    train(aligned, 1)
    with pytest.raises(ValueError, match=r'\(targets differ\)'):
        train(aligned, 1, targets=targets)
    pool = [types.SimpleNamespace(name=name, scale=None) for name in 'ba']
    with pytest.raises(ValueError, match=r'\(assistants differ\)'):
        train(aligned, 1, pool=pool)
    for changed in (
        config.replace(seed=7),
        config.replace(batch_size=8),
        config.replace(rounds=4),
        config.replace(rows=config.rows.replace(chunks=2)),
        config.replace(selection=config.selection.replace(per='query')),
    ):
        with pytest.raises(ValueError, match='differ'):
            train(student.Student(dataclasses.replace(run, config=changed), 'start'), 1)


def test_a_round_goes_on_after_an_interrupt(run, calls, monkeypatch):
    found = []

    def stop(run, name, out, *args, **kwargs):
        found.append((out / 'part').exists())
        (out / 'part').touch()
        if len(found) == 1:
            raise KeyboardInterrupt
        return calls.loop.result

    monkeypatch.setattr(student, 'train_loop', stop)
    with pytest.raises(KeyboardInterrupt):
        train(student.Student(run, 'start'), 0)
    train(student.Student(run, 'start'), 0)
    assert found == [False, True]


def test_the_student_of_a_round_has_the_parameters_of_its_last_step(run, calls):
    model = student.Student(run, 'start')
    with pytest.raises(FileNotFoundError, match='has no finished rounds/01/train; run jdkd train'):
        model.after_round(1)
    train(model, 0), train(model, 1)
    found = model.after_round(1)
    assert (found.name, found.encoder, found.scale) == (
        *('student_01', 'trained encoder'),
        run.config.student.scale,
    )
    assert calls.restored == [('start', run.workdir / 'rounds/01/train', 2 * STEPS)]
    begun = model.initial
    assert (begun.name, begun.digest, begun.encoder) == ('student_init', 'digest of start', 'start')
    assert found.digest != begun.digest


def test_the_twin_has_the_contrastive_term_alone_and_stages_of_its_own(run, calls):
    config = run.config.replace(loss=run.config.loss.replace(contrastive=0.5, in_batch=1.0))
    run = dataclasses.replace(run, config=config)
    twin = student.Student(run, 'start').twin()
    assert twin.run.config.loss == LossConfig(contrastive=0.5, teacher=0.0, assistant=0.0, dark=0.0)
    assert twin.labelled_only and twin.start == 'start'
    found = train(twin, 0, pool=())
    assert found['selected'] == {} and calls.loop[0][0] == 'twin'
    assert twin.after_round(0).name == 'twin_00'
    assert (run.workdir / 'rounds/00/twin').exists() and not (
        run.workdir / 'rounds/00/train'
    ).exists()


def test_the_loss_on_d_eval_is_a_mean_over_whole_batches(run, monkeypatch):
    asked = []

    def batches(self, split, order, steps):
        asked.append(
            (split, order.batch_size, list(order.seed), order.shuffle, order.epochs, steps)
        )
        return range(steps)

    monkeypatch.setattr(student._RoundData, 'batches', batches)
    lists = Lists.from_originals(np.zeros(9, int), np.zeros((9, 1), int))
    monkeypatch.setattr(student, 'load_originals', lambda run, i, split: lists)
    monkeypatch.setattr(
        student,
        'evaluate',
        lambda trainer, params, batch, ids: {
            **{'loss': batch, 'loss/teacher': 2 * batch, 'list_accuracy': 1, 'grad_norm': 9},
        },
    )
    model = student.Student(run, 'start')
    data = student._RoundData(model, TRAINER, 0, PREVIOUS, (), TARGETS)
    assert data.eval_loss('params') == {'loss': 0.5, 'loss/teacher': 1.0, 'list_accuracy': 1.0}
    assert asked == [('eval', 4, [6], False, 1, 2)]
    twin = student._RoundData(model.twin(), TRAINER, 0, PREVIOUS, (), TARGETS)
    assert twin.eval_loss('params') == data.eval_loss('params')
    qrels = {split: {} for split in run.collection.qrels}
    run = dataclasses.replace(run, collection=dataclasses.replace(run.collection, qrels=qrels))
    model = student.Student(run, 'start')
    twin = student._RoundData(model.twin(), TRAINER, 0, PREVIOUS, (), TARGETS)
    assert twin.eval_loss('params') == {}  # Nothing to learn from labels.


@pytest.mark.parametrize('labelled_only', [False, True])
def test_batches_are_of_the_lists_of_the_round(run, monkeypatch, labelled_only):
    """The second train query has no label."""
    qrels = {'train': {'train0': {'p0': 1}}}
    run = dataclasses.replace(run, collection=dataclasses.replace(run.collection, qrels=qrels))
    run = dataclasses.replace(run, config=run.config.replace(train_passage_length=9))
    lists = types.SimpleNamespace(query=np.array([1, 0, 0]), passages=np.array([[3], [0], [2]]))
    dark, made = np.arange(3)[:, None], []

    def make_batches(*args, **kwargs):
        made.append((args, kwargs))

    def load_records(run, i, split, assistants):
        assert (i, assistants) == (1, ['one'])
        return ['a', 'b', 'c']

    monkeypatch.setattr(student, 'load_originals', lambda run, i, split: lists)
    monkeypatch.setattr(student, 'load_dark_tokens', lambda run, i, split: dark)
    monkeypatch.setattr(student.gen_dataset, 'load_records', load_records)
    monkeypatch.setattr(student.topics, 'load', lambda run, rows: 10 + rows)
    monkeypatch.setattr(student, 'make_batches', make_batches)
    order, pool = student.loader.BatchOrder(2, [0]), [(types.SimpleNamespace(name='one'), 2.0)]
    targets = types.SimpleNamespace(of=lambda queries, length: (queries.split, length))

    def batches(**config):
        changed = dataclasses.replace(run, config=run.config.replace(**config))
        model = student.Student(changed, 'start', labelled_only=labelled_only)
        trainer = types.SimpleNamespace(rows='rows')
        data = student._RoundData(model, trainer, 1, PREVIOUS, pool, targets)
        data.batches('train', order, 7)
        return made.pop()

    (_, encoder, queries, source, records, ordered, rows), options = batches()
    assert (encoder, queries.split, rows, ordered) == ('start', 'train', 'rows', order)
    assert options.pop('length') == 9
    assert options == {'steps': 7, 'pool': (), 'targets': None, 'scored': None}
    kept = [1, 2] if labelled_only else [0, 1, 2]
    assert [source[i] for i in range(len(source))] == ['abc'[i] for i in kept]
    assert records['passages'].ravel().tolist() == [[3, 0, 2][i] for i in kept]
    assert records['dark'].ravel().tolist() == kept
    loss = run.config.loss.replace(in_batch=1.0, embedding=1.0)
    args, options = batches(loss=loss, topic_size=2)
    assert (options['pool'], options['targets']) == (pool, ('train', 9))
    assert args[5].topics.tolist() == [[11, 10, 10][i] for i in kept]
    if labelled_only:  # Few lists are repeated: a batch at least.
        order = dataclasses.replace(order, batch_size=3)
        source = batches()[0][3]
        assert [source[i] for i in range(len(source))] == ['b', 'c', 'b']
