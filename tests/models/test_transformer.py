import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jdkd.models import pretrained
from jdkd.models.families import FAMILIES, slot
from jdkd.models.transformer import (
    Dropout,
    Transformer,
    TransformerConfig,
    param_shapes,
)

TINY = TransformerConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=24,
    max_positions=20,
)


def random_params(config, seed=0, size=0.3):
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.normal(path.endswith('scale'), size, shape).astype(np.float32)
        for path, shape in param_shapes(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep='/')


def random_tokens(lengths, width, seed=0, vocab=50):
    tokens = np.random.default_rng(seed).integers(1, vocab, (len(lengths), width), np.int32)
    return np.where(np.arange(width) < np.array(lengths)[:, None], tokens, 0)


def apply(config, params, tokens, *args, **kwargs):
    call = functools.partial(Transformer(config).apply, **kwargs)
    return jax.jit(call)({'params': params}, tokens, *args)


def reference_states(config, params, tokens, types):
    """BERT for one row without padding, in float64 numpy, head by head."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, n):
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + config.layer_norm_eps) * n['scale'] + n['bias']

    def dense(x, d):
        return x @ d['kernel'] + d['bias']

    e = p['embeddings']
    x = e['word']['embedding'][tokens] + e['position']['embedding'][: len(tokens)]
    x = norm(x + e['token_type']['embedding'][types], e['norm'])
    size = config.hidden_size // config.num_heads
    for i in range(config.num_layers):
        layer = p[f'layer_{i}']
        query, key, value = (dense(x, layer['attention'][n]) for n in ('query', 'key', 'value'))
        heads = []
        for h in range(config.num_heads):
            s = slice(h * size, (h + 1) * size)
            weights = np.exp(query[:, s] @ key[:, s].T / math.sqrt(size))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, s])
        attended = dense(np.concatenate(heads, -1), layer['attention']['output'])
        x = norm(x + attended, layer['attention_norm'])
        up = dense(x, layer['ffn']['up'])
        gelu = up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2)))
        x = norm(x + dense(gelu, layer['ffn']['down']), layer['ffn_norm'])
    return x


def test_states_are_those_of_the_definition():
    params = random_params(TINY)
    tokens = random_tokens([9, 4, 1], 9)
    types = np.random.default_rng(1).integers(0, 2, tokens.shape)
    states = apply(TINY, params, tokens, types)
    for row, length in enumerate([9, 4, 1]):
        expected = reference_states(TINY, params, tokens[row, :length], types[row, :length])
        np.testing.assert_allclose(states[row, :length], expected, atol=1e-5)


def test_params_have_regular_paths():
    paths = set(param_shapes(TINY))
    for path in (
        'embeddings/word/embedding',
        'embeddings/norm/scale',
        'layer_0/attention/query/kernel',
        'layer_1/attention_norm/bias',
        'layer_1/ffn/down/kernel',
    ):
        assert path in paths
    assert len(paths) == 5 + 16 * TINY.num_layers


def test_token_types_default_to_zero():
    params, tokens = random_params(TINY), random_tokens([5], 6)
    zeros = apply(TINY, params, tokens, np.zeros_like(tokens))
    np.testing.assert_array_equal(apply(TINY, params, tokens), zeros)
    ones = apply(TINY, params, tokens, np.ones_like(tokens))
    assert np.abs(ones - zeros).max() > 0.1


def test_row_of_padding_is_finite_and_has_no_gradient():
    tokens = random_tokens([0, 5], 6)

    def loss(params):
        states = apply(TINY, params, tokens)
        return jnp.sum(jnp.where((tokens != 0)[..., None], states, 0.0)[0] ** 2), states

    (_, states), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(random_params(TINY))
    assert np.isfinite(states).all()
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad, 0.0)


def test_bfloat16_computes_near_float32_from_float32_params():
    config = dataclasses.replace(TINY, dtype='bfloat16')
    params, tokens = random_params(TINY), random_tokens([9, 4], 9)
    states = apply(config, params, tokens)
    assert states.dtype == jnp.bfloat16
    exact = np.asarray(apply(TINY, params, tokens))
    error = np.abs(np.asarray(states, np.float32) - exact)
    assert 0 < error.mean() < 0.03 * np.abs(exact).mean()
    init = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    assert {x.dtype for x in jax.tree.leaves(init)} == {jnp.dtype('float32')}


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    config = dataclasses.replace(TINY, dropout=0.5)
    params, tokens = random_params(TINY), random_tokens([6], 6)

    def train(config, seed):
        rngs = {'dropout': jax.random.key(seed)}
        return apply(config, params, tokens, dropout_rows=jnp.arange(len(tokens)), rngs=rngs)

    np.testing.assert_array_equal(apply(config, params, tokens), apply(TINY, params, tokens))
    np.testing.assert_array_equal(train(TINY, 0), apply(TINY, params, tokens))
    np.testing.assert_array_equal(train(config, 0), train(config, 0))
    assert np.abs(train(config, 0) - train(config, 1)).max() > 0.1


def test_dropout_keeps_its_share_and_the_mean():
    x, key = jnp.ones((40, 300)), jax.random.key(0)
    out = Dropout(0.3).apply({}, x, jnp.arange(20), rngs={'dropout': key})  # Two lines a row.
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
    assert np.mean(out == 0) == pytest.approx(0.3, abs=0.02)
    assert not np.array_equal(out[:2], out[2:4])
    some = Dropout(0.3).apply({}, x[4:6], jnp.array([2]), rngs={'dropout': key})
    np.testing.assert_array_equal(some, out[4:6])


def test_too_long_rows_are_an_error():
    with pytest.raises(ValueError, match='Rows of 21 tokens, but the model has 20 positions'):
        apply(TINY, random_params(TINY), random_tokens([3], 21))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_heads': 3}, 'num_heads=3 does not divide hidden_size=16'),
        ({'activation': 'swish'}, "activation='swish' is not supported; use one of gelu"),
        ({'dtype': 'float16'}, "dtype='float16' is not supported"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.fixture(scope='module')
def torch_bert(tmp_path_factory):
    """(torch module, directory it was saved to), with weights large enough to matter."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Else biases are 0 and norms 1: nothing to mix up.
            parameter += 0.1 * torch.randn(parameter.shape)
    directory = tmp_path_factory.mktemp('bert')
    model.save_pretrained(directory)
    return model, directory


@pytest.mark.parametrize('lengths', [(40, 17, 1), (7, 7), (1, 2, 3, 12)])
def test_states_are_those_of_transformers(torch_bert, lengths):
    import torch

    model, directory = torch_bert
    read = pretrained.read_pretrained(directory)
    tokens = random_tokens(lengths, max(lengths))
    types = np.random.default_rng(2).integers(0, 2, tokens.shape)
    with torch.no_grad():
        expected = model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(tokens != 0),
            token_type_ids=torch.tensor(types),
        ).last_hidden_state.numpy()
    states = jax.jit(Transformer(read.config).apply)({'params': read.params}, tokens, types)
    np.testing.assert_allclose(states[tokens != 0], expected[tokens != 0], atol=1e-5)


def test_gradients_are_those_of_transformers(torch_bert):
    import torch

    model, directory = torch_bert
    read = pretrained.read_pretrained(directory)
    tokens = random_tokens((12, 5, 1), 12)
    mask = tokens != 0
    weights = np.random.default_rng(3).normal(size=(*tokens.shape, 32)).astype(np.float32)

    model.zero_grad()
    states = model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).last_hidden_state
    torch.tanh(states * torch.tensor(weights))[torch.tensor(mask)].sum().backward()

    def loss(params):
        states = apply(read.config, params, tokens)
        return jnp.sum(jnp.where(mask[..., None], jnp.tanh(states * weights), 0.0))

    grads = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(read.params), sep='/')
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    assert len(grads) == len(theirs)
    for path, grad in grads.items():
        expected = theirs[slot(path, FAMILIES['bert'].modules).name]
        expected = expected.T if path.endswith('/kernel') else expected
        np.testing.assert_allclose(grad, expected, atol=1e-4, err_msg=path)
