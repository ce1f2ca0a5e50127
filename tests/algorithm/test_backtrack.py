"""A round that harms, in whole runs: what the next one begins from, and a restart."""

import shutil

import jax
import numpy as np
import pytest

from jdkd.algorithm import align, iterate, student
from tests.helpers import tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose round 0 harms, and whose round 1 then hardly learns."""
    tiny.write(tmp_path)
    c = tiny.get_config(str(tmp_path))
    c.index.kind, c.rounds, c.twin = 'exact', 2, True
    c.optimizer.learning_rate, c.backtrack = 1e-2, 1e-9
    compare = iterate.compare

    def compare_badly(run, path, *args):
        found = compare(run, path, *args)
        if path.startswith('rounds/00'):
            found = {**found, 'student': {**found['student'], 'MRR@10': -1.0}}
        return found

    monkeypatch.setattr(iterate, 'compare', compare_badly)
    return tiny.open_run(c, tmp_path / 'w')


def params_of(run):
    """Parameters of student and twin, before and after each of the rounds."""
    M = student.load(run)
    systems = [align.load(M), M.after_round(0), M.after_round(1)]
    systems += [M.twin().after_round(0), M.twin().after_round(1)]
    return [jax.device_get(system.encoder.params) for system in systems]


def largest_difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))


def test_the_next_round_begins_from_the_best_student_at_a_lower_rate(run):
    report = iterate.train(run)
    assert [r['entered'] for r in report['rounds']] == 2 * ['student_aligned']
    assert [r['learning_rate'] for r in report['rounds']] == [1e-2, pytest.approx(1e-11)]
    start, *others = params_of(run)
    changes = [largest_difference(start, params) for params in others]
    assert changes[0] > 1e-2 < changes[2] and changes[1] < 1e-6 > changes[3]


def test_a_restart_trains_it_again_bit_for_bit(run):
    iterate.train(run)
    before = params_of(run)
    for stage in ('train', 'twin'):
        shutil.rmtree(run.workdir / 'rounds/01' / stage)
    iterate.train(run)
    jax.tree.map(np.testing.assert_array_equal, before, params_of(run))
