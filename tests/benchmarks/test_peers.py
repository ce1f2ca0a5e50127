"""The peers' training is the run's: its batches, and its optimizer."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdkd import config as configs
from jdkd.config import OptimizerConfig
from jdkd.configs import mta4dpr
from jdkd.distillation import step
from jdkd.run import Queries
from jdkd.runtime import stages

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytest.importorskip('sentence_transformers')
from benchmarks import peers  # noqa: E402 (needs both)


@pytest.mark.parametrize('factor', [1.0, 2.0])
def test_the_optimizer_is_ours(factor):
    config = OptimizerConfig(
        learning_rate=0.1,
        warmup_steps=1,
        total_steps=6,
        cycle_steps=4,
        weight_decay=0.5,
        clip_norm=1.0,
        accumulate=1,
    )
    rng = np.random.default_rng(0)
    start = {'matrix': rng.normal(size=(2, 3)), 'vector': rng.normal(size=3)}
    grads = [{k: rng.normal(size=v.shape) for k, v in start.items()} for _ in range(6)]

    ours = dataclasses.replace(config, learning_rate=factor * config.learning_rate)
    tx = step.optimizer(ours)
    params = {k: jnp.asarray(v, jnp.float32) for k, v in start.items()}
    state = tx.init(params)
    model = torch.nn.ParameterDict(
        {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for k, v in start.items()}
    )
    adam, schedule = peers.optimizer(model, config, factor)
    for grad in grads:
        updates, state = tx.update({k: jnp.asarray(v) for k, v in grad.items()}, state, params)
        params = optax.apply_updates(params, updates)
        for name, parameter in model.items():
            parameter.grad = torch.tensor(grad[name], dtype=torch.float32)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        adam.step()
        schedule.step()
    for name, parameter in model.items():
        np.testing.assert_allclose(parameter.detach().numpy(), params[name], atol=1e-5)
        assert np.abs(params[name] - start[name]).max() > 0.1


def test_batches_are_the_lists_and_logits_of_every_round(tmp_path, monkeypatch):
    logits = []
    monkeypatch.setattr(peers, 'load_logits', lambda _, i, split: {'teacher': logits[i]})
    config = types.SimpleNamespace(rounds=2, batch_size=2, steps_per_round=3, seed=0)
    for i in range(2):
        (tmp_path / f'rounds/{i:02d}/candidates').mkdir(parents=True)
        lists = np.arange(6) + 6 * i
        passages = lists[:, None] * 10 + np.arange(2)
        np.savez(tmp_path / f'rounds/{i:02d}/candidates/train.npz', query=lists, passages=passages)
        dark = np.full((6, 1), -1)
        logits.append(np.hstack([passages / 2, dark]))
    found = list(peers.batches(types.SimpleNamespace(config=config, workdir=tmp_path)))
    assert [len(queries) for queries, _, _ in found] == [2] * 6
    order = np.concatenate([queries for queries, _, _ in found])
    assert sorted(order[:6]) == list(range(6)) and sorted(order[6:]) == list(range(6, 12))
    assert list(order[:6]) != list(range(6))
    for queries, passages, teacher in found:
        assert (passages // 10 == queries[:, None]).all() and (teacher == passages / 2).all()


def test_a_peer_is_a_loss_and_a_factor_of_the_learning_rate():
    assert peers.parse('kl') == ('kl', 1.0)
    assert peers.parse('margin_mse@0.5') == ('margin_mse', 0.5)
    for wrong in ('kl2', '@2'):
        with pytest.raises(ValueError, match='there is no peer'):
            peers.parse(wrong)
    for wrong in ('kl@', 'kl@-1', 'kl@inf', 'kl@nan', 'kl@twice'):
        with pytest.raises(ValueError, match='factor of the learning rate'):
            peers.parse(wrong)


def test_peers_train_without_dropout_as_the_run_did():
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = transformers.BertModel(config)
    tokens = torch.arange(1, 9)[None]

    def states():
        return model(input_ids=tokens).last_hidden_state

    model.train()
    assert not torch.equal(states(), states())  # As checkpoints come.
    peers.train_mode(model)
    assert model.training and torch.equal(states(), states())


@pytest.mark.parametrize(
    'overrides, positives, told',
    [
        ({'optimizer.accumulate': 2}, [1], 'accumulates gradients'),
        ({'student.dropout': 0.1}, [1], 'trains with dropout'),
        ({'collection.options.max_passages': 5}, [1], 'has collection.options'),
        ({}, [0], 'queries without a label'),
        ({'topic_size': 120}, [1], 'batches of one topic'),
        ({'student.passage_format': 'colon'}, [1], 'joins titles and texts otherwise'),
        ({'seed': 1}, [1], 'give another --workdir'),
    ],
)
def test_runs_that_peers_cannot_be_like_are_refused(tmp_path, overrides, positives, told):
    config = mta4dpr.get_config()
    queries = Queries('train', ['q'], ['text'], [np.arange(1)], [np.arange(1)])
    run = types.SimpleNamespace(config=config, asked=config, train=queries, workdir=tmp_path)
    entered = ['student_aligned', 'student_00']
    stages.write_json(tmp_path / 'report.json', {'rounds': [{'entered': e} for e in entered]})
    stages.write_json(tmp_path / 'run.json', {'config_sha256': configs.digest(config)})
    assert peers.refusal(run, tmp_path) is None
    with config.ignore_type():
        config.update_from_flattened_dict(overrides)
    run.train = dataclasses.replace(queries, positives=[np.arange(n) for n in positives])
    assert told in peers.refusal(run, tmp_path)


@pytest.mark.parametrize('entered', [['student_aligned'], 2 * ['student_aligned']])
def test_runs_that_took_rounds_back_or_ended_early_have_no_peers(tmp_path, entered):
    queries = Queries('train', ['q'], ['text'], [np.arange(1)], [np.arange(1)])
    run = types.SimpleNamespace(config=mta4dpr.get_config(), train=queries, workdir=tmp_path)
    stages.write_json(tmp_path / 'report.json', {'rounds': [{'entered': e} for e in entered]})
    assert 'set backtrack=0 and patience=0' in peers.refusal(run, tmp_path)
