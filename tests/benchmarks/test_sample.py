"""Draws of judged queries: from files with and without a header row, in three columns or four."""

import pytest

from benchmarks.sample import sample

HEADER = 'query-id\tcorpus-id\tscore'
BEIR = ['q1\ta\t1', 'q1\tb\t2', 'q2\ta\t1']
TREC = ['q1 0 a 1', 'q1 0 b 2', 'q2 0 a 1']


@pytest.mark.parametrize('lines', [[HEADER, *BEIR], BEIR, TREC])
def test_a_draw_has_all_judgements_of_its_queries(lines):
    header, judgements = lines[:-3], lines[-3:]
    draws = {tuple(sample(lines, 1, seed)) for seed in range(9)}
    assert draws == {(*header, *judgements[:2]), (*header, judgements[2])}
    assert sample(lines, 2, 0) == lines
    with pytest.raises(ValueError, match='3 queries are asked for, but only 2 are judged'):
        sample(lines, 3, 0)
