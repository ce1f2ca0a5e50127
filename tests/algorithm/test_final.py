"""Which student a run ends with."""

import types

import pytest

from jdkd.algorithm import final


@pytest.mark.parametrize(
    ('keep', 'start', 'rounds', 'expected'),
    [
        ('best', 0.2, [0.3, 0.4], 1),
        ('best', 0.2, [0.4, 0.3], 0),
        ('best', 0.5, [0.4, 0.3], -1),
        ('best', 0.4, [0.4, 0.4], 1),  # Of equals, the latest.
        ('last', 0.5, [0.4, 0.3], 1),
    ],
)
def test_the_final_student_is_the_best_on_d_eval_or_the_last(keep, start, rounds, expected):
    config = types.SimpleNamespace(final=keep, compare='MRR@10')
    # Another measure decides nothing.
    measures = [{'MRR@10': value, 'R@100': 1 - value} for value in (start, *rounds)]
    assert final.last_round(config, measures[0], measures[1:]) == expected
