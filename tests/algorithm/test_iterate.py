"""Algorithm 1: what each round is handed, which assistant goes, and what is measured and shown."""

import types

import numpy as np
import pytest

from jdkd.algorithm import iterate, outcome
from jdkd.config import BM25Spec, Config, EncoderSpec, TeacherConfig
from jdkd.run import STUDENT, TWIN

SYSTEMS = {
    'bm25': BM25Spec(),
    'llm': EncoderSpec(),
    'a': EncoderSpec(),
    'b': EncoderSpec(),
    'miner': EncoderSpec(),
    'unused': EncoderSpec(),
}
# MRR@10 on D_eval after each of three rounds, and of whoever is in the pool.
EVAL = {'student_00': 0.5, 'student_01': 0.2, 'student_02': 0.9, 'a': 0.4, 'b': 0.6}
EVAL |= {f'{TWIN}_00': 0.3, f'{TWIN}_01': 0.4, f'{TWIN}_02': 0.35, 'student_aligned': 0.15}
RATE = Config().optimizer.learning_rate
HARD = np.array([True, False, False, True])


def named(name, **fields):
    return types.SimpleNamespace(name=name, **fields)


def names(systems):
    return [s.name for s in systems]


class Calls(list):
    """What the steps of Algorithm 1 were called with, in order: (step, arguments)."""

    def of(self, step):
        return [arguments for name, arguments in self if name == step]


class FakeStudent:
    """After round i it is called student_0i."""

    start = 'encoder'

    def __init__(self, calls, run, name='student'):
        self.calls, self.run, self.name = calls, run, name

    def make_trainer(self):
        at = '' if self.learning_rate == RATE else f' at {self.learning_rate}'
        return f"{self.name}'s trainer{at}"

    @property
    def learning_rate(self):
        return self.run.config.optimizer.learning_rate

    def slower(self, factor):
        config = self.run.config
        optimizer = config.optimizer.replace(learning_rate=factor * self.learning_rate)
        run = types.SimpleNamespace(
            **{**vars(self.run), 'config': config.replace(optimizer=optimizer)}
        )
        return FakeStudent(self.calls, run, self.name)

    def twin(self):
        return FakeStudent(self.calls, self.run, TWIN)

    @property
    def initial(self):
        return named(f'{self.name}_init', encoder=(self.name, -1))

    def after_round(self, i):
        return named(f'{self.name}_{i:02d}', encoder=(self.name, i))

    def train_round(self, trainer, i, data, previous, pool, scales, targets):
        own = trainer, i, data, previous.name, names(pool), scales, targets.shared.name
        self.calls.append((f'train {self.name}', own))
        return {'eval_loss': i}


@pytest.fixture
def calls(monkeypatch):
    """The calls of a run of three rounds."""
    return run_rounds(monkeypatch)


def run_rounds(monkeypatch, **changes):
    """The calls of a run whose every step is replaced, and its outcome."""
    calls = Calls()

    def replace(name, step, result, module=iterate):
        def replaced(*args, **kwargs):
            own = types.SimpleNamespace(args=args[1:], **kwargs)  # Without the run.
            calls.append((step, own))
            return result(own)

        monkeypatch.setattr(module, name, replaced)

    def scores(own):
        i = own.args[0]
        return {'scales': {'a': 10.0 + i}, 'teacher': {'llm': 2.0 + i}}, f'data {i}'

    def compared(own):
        _, current, pool, references = own.args
        found = {s.name: {'MRR@10': EVAL.get(s.name, 0.1)} for s in (current, *pool, *references)}
        return {
            'student': found[current.name],
            'assistants': {s.name: found[s.name] for s in pool},
            'references': {s.name: found[s.name] for s in references},
        }

    def comparison(i, *_, first_stage, start, outside, backtrack):
        assert (first_stage, start, outside) == ('bm25', 'student_aligned', {'a', 'b'})
        assert backtrack == changes.get('backtrack', 0.0)
        return [f'comparison {i}']

    monkeypatch.setattr(iterate.diagnostics, 'comparison_warnings', comparison)
    for what in ('score_warnings', 'teacher_warnings'):
        said = f'{what[:-9]} {{}}'.format
        monkeypatch.setattr(iterate.diagnostics, what, lambda x, *_, said=said, **__: [said(x)])
    monkeypatch.setattr(iterate.diagnostics, 'log', lambda warnings: warnings)
    monkeypatch.setattr(iterate.student, 'load', lambda run: FakeStudent(calls, run))
    monkeypatch.setattr(iterate, 'as_dual', lambda system: system)
    monkeypatch.setattr(
        iterate, 'EmbeddingTargets', lambda run, encoder, systems: named('of', shared=systems[0])
    )
    monkeypatch.setattr(iterate.pseudo_labels, 'label', lambda run: run)
    replace('check', 'check', lambda own: ['coverage'], iterate.coverage)
    replace('build', 'build', lambda own: named(*own.args))
    replace('align', 'align', lambda own: named('student_aligned', encoder='aligned'))
    replace('generate', 'generate', scores, iterate.gen_dataset)
    replace('measure_teacher', 'measure teacher', lambda own: {'teacher': {'MRR@10': 0.7}})
    replace('compare', 'compare', compared)
    replace('find', 'find hard', lambda own: HARD, iterate.hard_queries)
    replace('discard_superseded', 'discard', lambda own: None)
    replace('final_test', 'test', lambda own: {'test': {}, 'significance': {}}, outcome)
    replace('measure', 'costs', lambda own: {'machine': 'here'}, outcome.costs)
    replace('write', 'report', vars, outcome.run_report)
    replace('write', 'card', lambda own: None, outcome.model_card)
    crossed = types.SimpleNamespace(of=lambda name, queries, passages: named(name, of=queries.name))
    monkeypatch.setattr(iterate, 'AsymmetricSystem', crossed)
    config = Config(
        systems=SYSTEMS,
        first_stage='bm25',
        assistants=('a', 'b'),
        teacher=TeacherConfig(members=('llm',), weights=(3.0,)),
        replay=0.0,
        seed=5,
        **{'rounds': 3, 'twin': True, **changes},
    )
    config = config.replace(
        candidates=config.candidates.replace(retrievers=('miner',)),
        align=config.align.replace(to=('b',), epochs=1.0),
    )
    queries = types.SimpleNamespace(split='dev')
    run = types.SimpleNamespace(
        config=config,
        train=range(4),
        held_out=queries,
        eval_has_labels=True,
        num_rounds=config.rounds,
    )
    calls.outcome = iterate.train(run)
    return calls


def test_systems_are_built_in_the_order_of_the_config_if_they_have_a_role(calls):
    assert [own.args for own in calls.of('build')] == [
        *(('bm25',), ('llm',), ('a',), ('b',), ('miner',))
    ]


def test_each_round_has_its_miners_pool_student_and_queries(calls):
    rounds = calls.of('generate')
    assert [own.args for own in rounds] == [(0,), (1,), (2,)]
    for own in rounds:
        assert names(own.teacher.members) == ['llm']
        assert names(own.miners) == ['bm25', 'miner'] and own.encoder == 'encoder'
    # Those of the config until round 0 has fitted its own.
    assert [own.teacher.weights['llm'] for own in rounds] == [3.0, 2.0, 2.0]
    # The student beats `a` in round 0; in round 2 it beats itself of round 0.
    assert [names(own.pool) for own in rounds] == [['a', 'b'], *[['student_00', 'b']] * 2]
    assert [own.student.name for own in rounds] == ['student_aligned', 'student_00', 'student_01']
    assert [own.active.tolist() for own in rounds] == [[0, 1, 2, 3], [0, 3], [0, 3]]


def test_each_round_trains_what_the_round_before_has_left(calls):
    before = 'student_aligned', 'student_00', 'student_01'
    pools = ['a', 'b'], ['student_00', 'b'], ['student_00', 'b']
    assert calls.of('train student') == [
        ("student's trainer", i, f'data {i}', before[i], pools[i], {'a': 10.0 + i}, 'b')
        for i in range(3)
    ]
    # The twin sees the same data, and no assistant.
    before = 'student_aligned', f'{TWIN}_00', f'{TWIN}_01'
    assert calls.of(f'train {TWIN}') == [
        (f"{TWIN}'s trainer", i, f'data {i}', before[i], [], {}, 'b') for i in range(3)
    ]


def test_the_student_is_compared_with_the_pool_that_taught_it(calls):
    *rounds, twin_0, twin_1, twin_2 = calls.of('compare')
    for i, own in enumerate(rounds):
        path, current, pool, references = own.args
        assert (path, current.name) == (f'rounds/{i:02d}/eval', f'student_{i:02d}')
        assert names(pool) == (['student_00', 'b'] if i else ['a', 'b'])
        assert names(references) == ['bm25', 'student_init', 'student_aligned']
    assert [r['replaced'] for r in calls.outcome['rounds']] == ['a', None, 'student_00']
    for i, own in enumerate((twin_0, twin_1, twin_2)):
        path, current, *others = own.args
        assert (path, current.name) == (f'rounds/{i:02d}/twin_eval', f'{TWIN}_{i:02d}')
        assert others == [(), ()]


def test_nothing_is_said_of_labels_where_d_eval_has_some(monkeypatch, caplog):
    caplog.set_level('INFO')
    run_rounds(monkeypatch)
    assert 'has a label' not in caplog.text


def test_rounds_without_a_better_student_end_the_run(monkeypatch):
    calls = run_rounds(monkeypatch, patience=1)
    assert [own.args for own in calls.of('generate')] == [(0,), (1,)]
    assert len(calls.of('find hard')) == 1 and len(calls.of(f'train {TWIN}')) == 2
    (own,) = calls.of('test')
    assert own.args[2][STUDENT].name == calls.outcome['final'] == 'student_00'
    assert [r['hard_queries'] for r in calls.outcome['rounds']] == [2, None]


def test_a_round_that_harms_is_taken_back_and_the_next_learns_more_slowly(monkeypatch):
    calls = run_rounds(monkeypatch, backtrack=0.5)
    # The student is worse after round 1; its twin not before the last.
    before = ['student_aligned', 'student_00', 'student_00']
    assert [own.student.name for own in calls.of('generate')] == before
    slower = f"student's trainer at {RATE / 2}"
    trained = calls.of('train student')
    assert [own[0] for own in trained] == ["student's trainer", "student's trainer", slower]
    assert [own[3] for own in trained] == before
    assert [own.args[1].name for own in calls.of('find hard')] == ['student_00', 'student_00']
    assert {own[0] for own in calls.of(f'train {TWIN}')} == {f"{TWIN}'s trainer"}
    rounds = calls.outcome['rounds']
    assert [r['entered'] for r in rounds] == before
    assert [r['learning_rate'] for r in rounds] == [RATE, RATE, RATE / 2]
    # The student is worse once more after round 3, and so is its twin after round 2.
    calls = run_rounds(monkeypatch, backtrack=0.5, rounds=5)
    rounds = calls.outcome['rounds']
    assert [r['entered'] for r in rounds] == [*before, 'student_02', 'student_02']
    assert [r['learning_rate'] for r in rounds[2:]] == [RATE / 2, RATE / 2, RATE / 4]
    trained = calls.of(f'train {TWIN}')
    assert [own[3] for own in trained][3] == f'{TWIN}_01'
    assert trained[3][0] == f"{TWIN}'s trainer at {RATE / 2}"


def test_hard_queries_are_found_before_each_round_but_the_first(calls):
    found = [own.args for own in calls.of('find hard')]
    assert [(i, student.name, teacher.weights) for i, student, teacher in found] == [
        (0, 'student_00', {'llm': 2.0}),
        (1, 'student_01', {'llm': 2.0}),
    ]
    assert [r['hard_queries'] for r in calls.outcome['rounds']] == [2, 2, None]


def test_the_teacher_is_measured_once_beside_the_first_pool(calls):
    (own,) = calls.of('measure teacher')
    teacher, first, pool = own.args
    assert names(teacher.members) == ['llm'] and teacher.weights == {'llm': 2.0}
    assert first.name == 'bm25' and names(pool) == ['a', 'b']


def test_all_is_tested_and_reported(calls):
    (own,) = calls.of('test')
    teacher, systems, shown = own.args
    assert names(teacher.members) == ['llm'] and teacher.weights == {'llm': 2.0}
    assert list(systems) == ['bm25', 'llm', 'a', 'b', 'miner']
    assert {name: system.name for name, system in shown.items()} == {
        'student_init': 'student_init',
        'student_aligned': 'student_aligned',
        TWIN: f'{TWIN}_01',  # The best on D_eval.
        'student_on_b': 'student_on_b',
        STUDENT: 'student_02',
    }
    assert shown['student_on_b'].of == 'student_02'
    (own,) = calls.of('costs')
    assert own.args[0].name == 'student_02' and own.args[2] is teacher
    assert {name: system.name for name, system in own.args[1].items()} == {
        name: name for name in ('bm25', 'a', 'b')
    }
    outcome = calls.outcome
    assert outcome['reranking'] == {'teacher': {'MRR@10': 0.7}}
    assert outcome['costs'] == {'machine': 'here'}
    assert [r['eval_loss'] for r in outcome['rounds']] == [0, 1, 2]
    assert outcome['warnings'] == [
        *('coverage', 'score 0', 'teacher MRR@10', 'comparison 0'),
        *('score 1', 'comparison 1', 'score 2', 'comparison 2'),
    ]
    (own,) = calls.of('card')
    assert own.args == (STUDENT, ('student', 2), outcome) and outcome['final'] == 'student_02'


def test_without_a_round_the_run_ends_with_the_aligned_student(monkeypatch):
    calls = run_rounds(monkeypatch, rounds=0, twin=False)
    assert not {'generate', 'train student', 'compare', 'measure teacher'} & {s for s, _ in calls}
    (own,) = calls.of('test')
    assert own.args[0] is None and own.args[2][STUDENT].name == 'student_aligned'
    found = calls.outcome
    assert (found['final'], found['rounds'], found['reranking']) == ('student_aligned', [], {})
    assert found['warnings'] == ['coverage']


def test_the_worst_beaten_assistant_is_replaced_and_ties_keep_it():
    pool = {'a': {'MRR@10': 0.5}, 'b': {'MRR@10': 0.3}, 'c': {'MRR@10': 0.4}}
    assert iterate.worst_beaten({'MRR@10': 0.45}, pool, 'MRR@10') == 'b'
    assert iterate.worst_beaten({'MRR@10': 0.3}, pool, 'MRR@10') is None
    assert iterate.worst_beaten({'MRR@10': 0.9}, {}, 'MRR@10') is None
