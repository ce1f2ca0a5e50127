"""The mutation test's own parts: where a change goes, which tests it runs, and its score."""

from tests import mutants
from tests.helpers import mutation
from tests.helpers.mutation import Mutant

SOURCE = """import math


def area(
    r,
):
    x = 1
    return (
        math.pi
        * r**2
    )


def twice(x):
    x = 1
    return 2 * x
"""


def change(line, old='    x = 1', new='    x = 2'):
    return Mutant('jdkd/lists/a.py', line, (old,), (new,), 'NumberReplacer')


def test_a_change_goes_to_the_nearest_of_equal_lines():
    first, second = (change(line).apply(SOURCE).split('\n') for line in (6, 14))
    assert first[6] == '    x = 2' and first[14] == '    x = 1'
    assert second[6] == '    x = 1' and second[14] == '    x = 2'
    assert change(6, old='gone').apply(SOURCE) is None
    assert change(6).key == change(14, old='x = 1').key != change(6, new='x = 3').key


def test_lines_of_a_statement_are_all_of_it_or_its_head():
    lines = [list(mutation.statement_lines(SOURCE, line)) for line in (5, 7, 10, 14)]
    assert lines == [[4, 5, 6], [7], [8, 9, 10, 11], [14]]


def test_tests_of_a_line_run_cheapest_file_first():
    def ran(seconds, *lines):
        return {'seconds': seconds, 'lines': {'jdkd/lists/a.py': lines}}

    recorded = {
        'slow.py::a': ran(9.0, 7),
        'fast.py::b': ran(0.2, 7),
        'fast.py::c': ran(0.1, 7, 8),
        'fast.py::d': ran(0.1, 15),
        'other.py::e': {'seconds': 0.1, 'lines': {}},
    }
    assert list(mutants.covering(change(7), SOURCE, recorded)) == [
        *('fast.py::c', 'fast.py::b', 'slow.py::a')
    ]
    # What runs on import alone is up to every test that uses the module.
    assert set(mutants.covering(change(1), SOURCE, recorded)) == set(recorded) - {'other.py::e'}


def test_fast_tests_are_those_of_files_that_import_the_module():
    found = mutants.importing('jdkd/algorithm/mining.py', '>>> 1')
    assert {f'tests/algorithm/test_{n}.py' for n in ('coverage', 'gen_dataset')} < set(found)
    assert found[-1] == 'jdkd/algorithm/mining.py'
    found = mutants.importing('jdkd/distillation/losses.py', '')
    assert found[0] == 'tests/distillation/test_losses.py'
    assert 'tests/distillation/test_optimizer.py' not in found


def test_the_score_leaves_out_equivalent_changes():
    outcomes = ['killed', 'killed', 'timeout', 'survived', 'not covered', 'equivalent']
    rows = mutants.table({change(i): outcome for i, outcome in enumerate(outcomes)}).splitlines()
    assert rows[-1].split() == ['all', '6', '2', '1', '1', '1', '1', '60.0%']
    assert rows[3].split()[0] == 'lists' and rows[3].split()[1:] == rows[-1].split()[1:]
