"""A student whose passage tower stays as it is, so that an index of it stays valid."""

import jax
import numpy as np
import pytest

from jdkd.algorithm import final, iterate, student
from tests.helpers import tiny


def make_run(home, **fields):
    c = tiny.get_config(str(home))
    c.index.kind, c.rounds, c.final = 'exact', 1, 'last'
    c.systems.tuned.train.steps = 1
    c.systems.tuned.train.warmup_steps = 0
    c.student.update(freeze='passage', **fields)
    return tiny.open_run(c, home / 'w')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('freeze')
    tiny.write(home)
    return home


@pytest.mark.slow
def test_only_the_query_tower_is_trained_and_the_index_stays(home):
    run = make_run(home, query_weights=f'{home}/model')
    report = iterate.train(run)
    model = student.load(run)
    start, trained = model.start.params, final.load(model).encoder.params
    jax.tree.map(np.testing.assert_array_equal, trained['passage'], start['passage'])
    moved = jax.tree.map(lambda a, b: np.any(a != b), trained['query'], start['query'])
    assert all(jax.tree.leaves(moved['transformer']['layer_0']['attention']['query']))
    # Passages were embedded once, by the start.
    kept = {p.parent.name for p in run.workdir.glob('systems/student*/embeddings-passages')}
    assert kept == {'student_init'}
    assert report['costs']['systems']['student']['bytes_per_passage'] > 0
