"""Numbers that are not finite stop a training with their step, term and queries."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.distillation import batch_scores, nonfinite
from jdkd.distillation.train_loop import evaluate, train_loop
from jdkd.distillation.trainer import make_trainer as make
from jdkd.lists import loader
from jdkd.runtime import mesh as meshes
from jdkd.runtime.checkpoint import Checkpoints, restore_state
from tests.helpers.lists import (
    SCALE,
    fresh_params,
    in_rows,
    make_batch,
    make_lists,
    make_objective,
    model,
    settings,
)
from tests.helpers.train_steps import B, K

pytestmark = pytest.mark.slow

STEPS = 4
IDS = [f'q{i}' for i in range(STEPS * B)]
DUAL = batch_scores.dual_encoder_scores(model(), SCALE)


def make_trainer(config, num_devices=1):
    return make(
        make_objective(config, num_assistants=K),
        mesh=meshes.make_mesh(devices=jax.devices()[:num_devices]),
        model=model(),
        params=fresh_params(),
    )


def records(**spoilt):
    """Batches one after another, list by list; `spoilt` are values of {feature: {list: value}}."""
    batches = [make_lists(i) for i in range(STEPS)]
    arrays = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    for name, values in spoilt.items():
        for row, value in values.items():
            arrays[name][row] = value
    arrays['query_row'] = np.arange(len(IDS), dtype=np.int32)
    return [{name: array[i] for name, array in arrays.items()} for i in range(len(IDS))]


def fit(tmp_path, trainer, source, steps=STEPS, every=2):
    """Trains with a checkpoint every so many steps."""
    batches = loader.batches(
        source, in_rows, loader.BatchOrder(B, [0], shuffle=False), trainer.mesh
    )
    run = types.SimpleNamespace(
        workdir=tmp_path,
        config=types.SimpleNamespace(log_every=1, checkpoint_every=every),
        train=types.SimpleNamespace(ids=IDS),
    )
    return train_loop(
        run,
        'student',
        tmp_path,
        trainer,
        lambda: trainer.init(fresh_params()),
        batches,
        steps=range(steps),
        planned_steps=STEPS,
        total_steps=STEPS,
        choices=range(7),
        desc='round 0',
    )


def kept(tmp_path, trainer):
    """The checkpoints, by step."""
    directory = tmp_path / 'checkpoints'
    with Checkpoints(directory) as saved:
        steps_kept = saved._manager.all_steps()
    return {s: jax.device_get(restore_state(directory, s, trainer.abstract)) for s in steps_kept}


def test_a_score_stops_the_step_and_names_the_lists(tmp_path):
    trainer = make_trainer(settings(), num_devices=4)
    first = 2 * B  # Of the third step.
    spoilt = {first + 1: np.nan, first + 6: np.inf}
    with pytest.raises(FloatingPointError) as caught:
        fit(tmp_path / 'bad', trainer, records(teacher=spoilt))
    said = str(caught.value)
    assert said.startswith('step 3 (round 0): ') and 'loss/teacher' in said
    assert "not finite: the lists of queries 'q17', 'q22' alone give the same" in said
    assert said.endswith('The checkpoint of step 2 is kept.')
    # The last good checkpoint is that of a training which nothing happened to.
    fit(tmp_path / 'good', trainer, records(), steps=2, every=1)  # Keeps the last one alone.
    bad, good = kept(tmp_path / 'bad', trainer), kept(tmp_path / 'good', trainer)
    assert set(bad) == {2} and set(good) == {2}
    jax.tree.map(np.testing.assert_array_equal, bad[2], good[2])


def test_a_gradient_alone_is_blamed_on_its_list(tmp_path, monkeypatch):
    def scores(params, batch, key):
        found = DUAL(params, batch, key)
        size = jnp.sum(jnp.square(params['transformer']['embeddings']['word']['embedding']))
        # Nothing, whose derivative is 0 / 0 in the list of the sixth query.
        other = jnp.sqrt(jnp.where(batch['query_row'] == 5, 0.0, 1.0) * size)
        return found._replace(lists=found.lists + (other - jax.lax.stop_gradient(other))[:, None])

    monkeypatch.setattr(batch_scores, 'make_score_fn', lambda *_: scores)
    with pytest.raises(FloatingPointError) as caught:
        fit(tmp_path, make_trainer(settings()), records())
    said = str(caught.value)
    assert said.startswith('step 1 (round 0): grad_norm, param_norm are not finite')
    assert "the list of query 'q5' alone gives the same" in said
    assert said.endswith('No checkpoint was made yet.')


def test_an_update_beyond_float32_is_not_taken(tmp_path):
    config = settings()
    config.optimizer.learning_rate = 1e37
    trainer = make_trainer(config)
    with pytest.raises(FloatingPointError, match='the update is too large .* learning rate'):
        fit(tmp_path, trainer, records())
    assert not kept(tmp_path, trainer)
    # The state stays as it was, and does so for good.
    state, states = trainer.init(fresh_params()), []
    for seed in range(4):
        batch = meshes.to_device(make_batch(seed), meshes.batch_sharding(trainer.mesh))
        state, _ = trainer.step(state, batch)
        states.append(jax.device_get(state))
    assert [s.step for s in states] == [1, -1, -1, -1]  # The first has a rate of 0.
    for after in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, after.replace(step=states[0].step), states[0])


def test_a_list_alone_keeps_its_rows_of_all_tiles():
    tokens = np.arange(1, 7).reshape(3, 2), np.arange(7, 11).reshape(2, 2)
    batch = {'tokens': tokens, 'segments': tuple(map(np.ones_like, tokens)), 'group': np.ones(2)}
    found = nonfinite._keep_rows(batch, np.array([0, 4]))
    assert [tile.tolist() for tile in found.pop('tokens')] == [
        [[1, 2], [0, 0], [0, 0]],
        [[0, 0], [9, 10]],
    ]
    assert [tile[:, 0].tolist() for tile in found.pop('segments')] == [[1, 0, 0], [0, 1]]
    assert not found


def test_no_list_alone_may_be_to_blame_and_many_are_not_all_named():
    said = nonfinite.message('step 9', ['loss'], [], [f'q{i}' for i in range(40)], 'Kept.')
    assert "queries 'q0', 'q1'" in said and "'q7' and 32 more, none alone gives the same" in said


def test_one_metric_is_and_several_are_not_finite():
    said = [nonfinite.message('step 9', names, None, ['q'], '') for names in (['a'], ['a', 'b'])]
    assert said[0].startswith('step 9: a is not finite with the lists')
    assert said[1].startswith('step 9: a, b are not finite with the lists')


def test_the_loss_on_d_eval_is_checked_too():
    trainer = make_trainer(settings())
    batch = make_batch()
    batch['query_row'] = np.arange(B, dtype=np.int32)
    batch['assistants'][3, 1, 0] = np.nan
    with pytest.raises(FloatingPointError, match="on D_eval: .*the list of query 'q3' alone gives"):
        evaluate(trainer, fresh_params(), batch, IDS)
