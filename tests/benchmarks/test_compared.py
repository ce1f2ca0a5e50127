"""Checkpoints compared query by query: the sums by hand, and a checkpoint measured by a command."""

import math

import ml_collections
import numpy as np
import pytest

from benchmarks import compared
from jdkd.configs import mta4dpr
from jdkd.models.dual_encoder import DualEncoder
from tests.helpers import toy


def queries(*values):
    return {f'q{i}': {'MRR@10': value} for i, value in enumerate(values)}


def test_values_are_averaged_over_seeds_and_then_paired():
    measured = {
        'full': {'0': queries(1.0, 0.5, 0.0), '1': queries(1.0, 0.5, 1.0)},
        'less': {'0': queries(0.5, 0.0, 0.0), '1': queries(0.5, 0.0, 0.5)},
        'once': {'1': queries(1.0, 0.5, 0.5)},
    }
    found = compared.summary(measured, 'full')
    assert found['full']['mean']['MRR@10'] == pytest.approx(2 / 3)
    assert found['full']['spread']['MRR@10'] == pytest.approx(2**0.5 / 6)  # Of 1/2 and 5/6.
    less = found['less']['less_full']['MRR@10']
    # Means over seeds: 1, 0.5, 0.5 and 0.5, 0, 0.25.
    assert less['difference'] == pytest.approx(-1.25 / 3)
    assert (less['wins'], less['losses']) == (0, 3)
    # Against the seed that it has alone.
    assert found['once']['seeds'] == ['1'] and found['once']['spread']['MRR@10'] is None
    assert found['once']['less_full']['MRR@10']['difference'] == pytest.approx(-0.5 / 3)
    by_seed = found['less']['by_seed']['MRR@10']
    assert by_seed == {'0': pytest.approx(-1 / 3), '1': pytest.approx(-0.5)}
    assert list(found['once']['by_seed']['MRR@10']) == ['1']
    assert 'less_full' not in found['full']


def test_queries_of_one_title_are_taken_together():
    measured = {
        'full': {'0': queries(1.0, 0.5, 0.0, 1.0)},
        'less': {'0': queries(0.5, 0.5, 0.0, 0.5)},
    }
    titles = {'q0': 'a', 'q1': 'a', 'q2': 'a', 'q3': 'b'}
    less = compared.summary(measured, 'full', titles)['less']['less_full']['MRR@10']
    assert less['difference'] == pytest.approx(-0.25)
    # Residuals -0.25, 0.25, 0.25 and -0.25 make 0.25 and -0.25 of the two titles, so that t is 2
    # with one degree of freedom, for which the distribution is Cauchy's.
    assert less['p'] == pytest.approx(1 - 2 / math.pi * math.atan(2))


def test_each_measure_is_over_the_queries_that_have_it():
    # The second query has answers, but no judgement, and so no title.
    full = {'a': {'AnswerR@20': 1.0}, 'b': {'AnswerR@20': 0.0, 'MRR@10': 0.5}}
    less = {'a': {'AnswerR@20': 0.0}, 'b': {'AnswerR@20': 0.0, 'MRR@10': 0.25}}
    found = compared.summary({'full': {'0': full}, 'less': {'0': less}}, 'full', {'b': 'title'})
    assert found['full']['mean'] == {'AnswerR@20': 0.5, 'MRR@10': 0.5}
    assert found['less']['less_full']['AnswerR@20']['difference'] == -0.5
    assert found['less']['less_full']['MRR@10']['difference'] == -0.25


@pytest.mark.slow
@pytest.mark.e2e
def test_a_checkpoint_is_measured_once(tmp_path, monkeypatch):
    home = toy.write_collection(tmp_path / 'toy')
    toy.write_model(tmp_path / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    config = mta4dpr.get_config('tiny')
    config.measures = ('MRR@10', 'R@5')
    config.depth = 10
    config = ml_collections.FrozenConfigDict(config)
    test = compared.Test(f'beir:{home}', 'test', tmp_path / 'tested')
    found = test.measure('seed_0/a', tmp_path / 'model', config)
    assert list(found) == [f'test{i}' for i in range(4)]
    assert 0 < np.mean([values['R@5'] for values in found.values()]) < 1
    assert len(test.collection().passages) == 30

    def run(*args, **kwargs):
        raise AssertionError('it was measured already')

    monkeypatch.setattr(compared.subprocess, 'run', run)
    assert test.measure('seed_0/a', tmp_path / 'model', config) == found
    (tmp_path / 'model/README.md').write_text('Another one.')
    with pytest.raises(AssertionError):
        test.measure('seed_0/a', tmp_path / 'model', config)
