"""Cells and tables as they are shown."""

import html

from jdkd import report

SCRIPT = '</h1><script>alert(1)</script>'


def found(difference, p):
    return {'difference': difference, 'p': p, 'wins': 0, 'ties': 0, 'losses': 0}


def test_differences_say_how_sure_they_are():
    rows = {'bm25': {'MRR@10': found(0.0123, 0.0405), 'R@100': found(-0.2, 1e-9)}}
    assert report.differences(rows) == {
        'bm25': {'MRR@10': '+1.2 (p = 0.041)', 'R@100': '-20.0 (p < 0.001)'}
    }
    assert report.differences({'x': {'m': found(0.5, None)}})['x']['m'] == '+50.0 (p unknown)'


def test_columns_are_as_wide_as_their_cells():
    rows = {'a': {'m': '1.0', 'wide': '+1.2 (p = 0.041)'}, 'longer name': {'m': '10.0'}}
    assert report.table(rows, 'x').splitlines() == [
        'x                   m              wide',
        'a                 1.0  +1.2 (p = 0.041)',
        'longer name      10.0',
    ]


def test_the_student_stands_last_in_the_table_of_measures():
    test = {name: {'MRR@10': x} for name, x in (('student', 0.1), ('a', 0.6), ('b', 0.55))}
    lines = report.measures_table(test).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ['b', '55.0'],
        ['a', '60.0'],
        ['student', '10.0'],
    ]


def test_the_report_shows_markup_and_does_not_hold_it():
    measured = {'MRR@10': 0.5}
    page = report._page(
        {
            'collection': {'name': SCRIPT, 'passages': 3},
            'test': {SCRIPT: measured},
            'significance': {SCRIPT: {'MRR@10': {'difference': 0.1, 'p': 0.5}}},
            'rounds': [
                {
                    'student': measured,
                    'assistants': {SCRIPT: measured},
                    'selected': {SCRIPT: 1.0},
                    'replaced': SCRIPT,
                    'hard_queries': 1,
                    'score_histogram': {
                        'counts': {'positive': [1]},
                        'between': {'positive': 1},
                        'edges': [0, 1],
                    },
                }
            ],
            'warnings': [{'message': SCRIPT, 'round': 0}],
            'wall_seconds': {SCRIPT: 1.0},
        }
    )
    assert '<script' not in page and page.count(html.escape(SCRIPT)) >= 7
