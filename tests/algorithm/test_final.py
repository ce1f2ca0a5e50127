"""Which student a run ends with."""

import types

import pytest

from jdkd.algorithm import final
from jdkd.config import Config


def measures(values):
    # Another measure decides nothing.
    return [{'MRR@10': value, 'R@100': 1 - value} for value in values]


@pytest.mark.parametrize(
    ('keep', 'values', 'expected'),
    [
        ('best', [0.2, 0.3, 0.4], 2),
        ('best', [0.2, 0.4, 0.3], 1),
        ('best', [0.5, 0.4, 0.3], 0),
        ('best', [0.4, 0.4, 0.4], 2),  # Of equals, the latest.
        ('last', [0.5, 0.4, 0.3], 2),
    ],
)
def test_the_final_student_is_the_best_on_d_eval_or_the_last(keep, values, expected):
    config = Config(final=keep)
    assert final.choose(config, measures(values)) == expected


@pytest.mark.parametrize(
    ('patience', 'values', 'over'),
    [
        (0, [0.5, 0.4, 0.3], False),
        (0, [0.5, 0.4, 0.3, 0.2], True),  # All rounds.
        (1, [0.5, 0.6], False),
        (1, [0.5, 0.4], True),  # The student before round 0 counts.
        (2, [0.5, 0.6, 0.4], False),
        (2, [0.6, 0.5, 0.4], True),
    ],
)
def test_rounds_end_when_some_brought_no_better_student(patience, values, over):
    run = types.SimpleNamespace(config=Config(patience=patience, final='last'), num_rounds=3)
    assert final.is_over(run, measures(values)) == over


def test_a_run_without_rounds_is_read_as_its_aligned_student(monkeypatch):
    student = types.SimpleNamespace(run=types.SimpleNamespace(config=Config(), num_rounds=0))
    monkeypatch.setattr(final.align, 'load', lambda own: ('aligned', own))
    assert final.load(student) == ('aligned', student)


@pytest.mark.parametrize(
    ('shared', 'message'),
    [(None, 'a space of its own'), ('b', "the space of 'b', .*give --index_of=b"), ('a', None)],
)
def test_queries_search_the_index_of_the_one_that_shares_their_space(monkeypatch, shared, message):
    shared = shared and types.SimpleNamespace(name=shared)
    targets = types.SimpleNamespace(shared=shared)
    monkeypatch.setattr(final, '_load_best', lambda student: 'best')
    monkeypatch.setattr(final.EmbeddingTargets, 'build', lambda *args: targets)
    monkeypatch.setattr(final, 'AsymmetricSystem', types.SimpleNamespace(of=lambda *args: args))
    config = types.SimpleNamespace(systems={'a': None, 'b': None})
    student = types.SimpleNamespace(run=types.SimpleNamespace(config=config), start='start')
    with pytest.raises(ValueError, match="--index_of='c' is no system of the run; it has a, b"):
        final.load(student, index_of='c')
    if message is None:
        assert final.load(student, index_of='a') == ('student_on_a', 'best', shared)
        return
    with pytest.raises(ValueError, match=message):
        final.load(student, index_of='a')
