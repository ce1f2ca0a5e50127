"""Figures behind the warnings of a run, and when they are given."""

import numpy as np
import pytest
import scipy.special

from jdkd import diagnostics
from jdkd.report import run_report


def test_flat_scores():
    # Of the two lists of several scores one is constant. Beside the smallest and the largest
    # score there are 1, 1 and 0.5.
    values, starts = np.array([1, 1, 1, 0.5, 0]), np.array([0, 2, 4, 5])
    assert diagnostics.constant_share(values, starts) == 0.5
    assert diagnostics.saturated_share(values) == pytest.approx(2 / 3)
    assert diagnostics.constant_share(np.ones(3), np.arange(4)) == 0
    assert diagnostics.saturated_share(np.ones(9)) == 0


def flatness(scores):
    starts = np.arange(0, scores.size + 1, scores.shape[1])
    return {
        'constant_share': diagnostics.constant_share(scores.ravel(), starts),
        'saturated_share': diagnostics.saturated_share(scores.ravel()),
    }


def test_a_sigmoid_is_noticed_and_its_logits_are_not():
    logits = np.random.default_rng(0).normal(size=(500, 8)) * 8
    assert not diagnostics.flatness_warnings('ranker', flatness(logits))
    (found,) = diagnostics.flatness_warnings('ranker', flatness(scipy.special.expit(logits)), 1)
    assert (found['what'], found['round'], found['system']) == ('saturated', 1, 'ranker')
    assert f'{found["figure"]:.1%} of the scores lie within a thousandth' in found['message']
    constant = np.repeat(logits[:, :1], 8, axis=1)
    (found,) = diagnostics.flatness_warnings('ranker', flatness(constant))
    assert found['what'] == 'constant' and found['figure'] == 1.0


def test_near_one_hot_lists_depend_on_the_temperature():
    logits = np.array([[9.0, 0, 0], [3.0, 0, 0], [0, 5.2, 0], [0, 0, 0]])
    assert diagnostics.one_hot_share(logits, 1.0) == 0.25  # 0.9997, 0.909, 0.989, 1 / 3
    assert diagnostics.one_hot_share(logits, 0.5) == 0.75
    assert diagnostics.one_hot_share(logits, 4.0) == 0
    shares = {'originals': 0.75, 'all': 0.25}
    scores = {'flatness': {}, 'scales': {'a': 0.5}, 'teacher': {'b': 1.0, 'c': 0.0}}
    (found,) = diagnostics.score_warnings(0, scores | {'one_hot': shares}, has_labels=True)
    assert (found['what'], found['figure']) == ('one_hot', 0.75)
    assert 'in 75.0% of the lists, and in 25.0% with their dark examples' in found['message']
    few = scores | {'one_hot': {'originals': 0.5, 'all': 0.5}}
    assert not diagnostics.score_warnings(0, few, has_labels=True)


def test_zero_weights_are_warned_of():
    scores = {'flatness': {}, 'one_hot': {'originals': 0.0, 'all': 0.0}}
    scores |= {'scales': {'a': 0.0, 'b': 2.0}, 'teacher': {'c': 0.0}}
    found = diagnostics.score_warnings(0, scores, has_labels=True)
    assert [(c['what'], c['system']) for c in found] == [
        ('weightless', 'a'),
        ('weightless', 'teacher'),
    ]
    assert 'set systems.a.scale' in found[0]['message']
    assert all('positives from their hard negatives' in w['message'] for w in found)
    found = diagnostics.score_warnings(0, scores, has_labels=False)
    assert all('its scores there are all equal' in w['message'] for w in found[:1])
    assert not diagnostics.score_warnings(1, scores, has_labels=True)  # Told once.


def test_the_mean_cosine_is_that_of_all_pairs():
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) + 0.5
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(20, dtype=bool)]
    assert diagnostics.mean_cosine(3 * vectors) == pytest.approx(cosines.mean(), abs=1e-6)
    assert diagnostics.mean_cosine(vectors[:1]) == 0
    assert diagnostics.mean_cosine(np.ones((5, 3), np.float32)) == pytest.approx(1)


def compared(student, assistants, cosine=0.3):
    return {
        'student': {'MRR@10': student},
        'assistants': {name: {'MRR@10': x} for name, x in assistants.items()},
        'references': {'bm25': {'MRR@10': 0.4}, 'student_init': {'MRR@10': 0.3}},
        'mean_cosine': cosine,
    }


@pytest.mark.parametrize(
    ('found', 'expected'),
    [
        (compared(0.35, {'a': 0.5, 'b': 0.4}), []),
        (compared(0.35, {'a': 0.39, 'b': 0.5, 'c': 0.1}), [('weak_assistant', 'a', 0.39),
                                                          ('weak_assistant', 'c', 0.1)]),
        (compared(0.35, {'member': 0.2, 'student_00': 0.2}), []),
        (compared(0.29, {}), [('worse_student', 'student', 0.29)]),
        (compared(0.35, {}, cosine=0.995), [('collapsed', 'student', 0.995)]),
    ],
)  # fmt: skip
def test_warnings_of_compare(found, expected):
    warnings = diagnostics.comparison_warnings(
        1,
        'MRR@10',
        found,
        first_stage='bm25',
        start='student_init',
        outside={'a', 'b', 'c'},
        backtrack=0.0,
    )
    assert [(c['what'], c['system'], c['figure']) for c in warnings] == expected
    assert all(f'{c["figure"]:.4f}' in c['message'] and c['round'] == 1 for c in warnings)


def test_a_teacher_must_be_as_good_as_its_assistants():
    values = {'teacher': 0.5, 'a': 0.4, 'b': 0.6, 'c': 0.5}
    measured = {name: {'MRR@10': value} for name, value in values.items()}
    (found,) = diagnostics.teacher_warnings('MRR@10', measured, 'bm25')
    assert (found['what'], found['system'], found['round']) == ('weak_teacher', 'b', None)
    assert 'the teacher (MRR@10 0.5000 on D_eval, re-ranking bm25)' in found['message']
    assert 'assistant b (0.6000, re-ranking the same passages)' in found['message']


def test_the_page_lists_them_escaped():
    warnings = diagnostics.flatness_warnings('<i>', {'constant_share': 0.5}, 0)
    assert run_report._warnings(warnings)[1].startswith(
        '<ul><li>round 0: &lt;i&gt;: 50.0% of the lists have equal scores'
    )
    assert not run_report._warnings([])
