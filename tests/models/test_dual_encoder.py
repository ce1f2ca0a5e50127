import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.models import pretrained, weights
from jdkd.models.dual_encoder import DualEncoder, Projection, mean_pool, safe_normalize
from jdkd.models.transformer import Transformer, TransformerConfig
from jdkd.tokens import tokenizer_files

TINY = TransformerConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=1,
    num_heads=4,
    intermediate_size=24,
    max_positions=20,
)
TOKENS = np.array([[2, 7, 8, 3, 0, 0], [2, 9, 3, 0, 0, 0], [0] * 6], np.int32)


def init(model, seed=0):
    """Random params, larger than at the start of training, so that rows differ."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)['params']
    return jax.tree.map(lambda x: rng.normal(0.3, 0.3, x.shape).astype(np.float32), shapes)


def apply(model, params, tokens):
    return jax.jit(model.apply)({'params': params}, tokens)


def test_mean_pool_by_hand():
    states = jnp.array([[[1.0, 2.0], [3.0, 6.0], [jnp.nan, jnp.inf]], [[9.0, 9.0]] * 3])
    where = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(mean_pool(states, where), [[2.0, 4.0], [0.0, 0.0]])


def test_mean_pool_sums_in_float32():
    # 257 in bfloat16 is 256: a bfloat16 sum of ones would stop there.
    states = jnp.ones((1, 1000, 1), jnp.bfloat16)
    pooled = mean_pool(states, jnp.ones((1, 1000), bool))
    assert pooled.dtype == jnp.float32
    np.testing.assert_array_equal(pooled, [[1.0]])


def test_safe_normalize_by_hand():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(safe_normalize(x), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_safe_normalize_hides_no_nan():
    assert np.isnan(safe_normalize(jnp.array([[1.0, jnp.nan]]))).all()


def test_safe_normalize_has_a_finite_gradient_at_zero():
    grad = jax.grad(lambda x: jnp.sum(safe_normalize(x) * jnp.array([1.0, 2.0])))
    np.testing.assert_array_equal(grad(jnp.zeros(2)), [0.0, 0.0])
    # (I - u u^T) w / |x|, at x = (3, 4).
    np.testing.assert_allclose(
        grad(jnp.array([3.0, 4.0])), [(1 - 0.6 * 2.2) / 5, (2 - 0.8 * 2.2) / 5], atol=1e-6
    )


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'max'])
def test_embeddings_pool_the_states(pooling):
    model = DualEncoder(TINY, pooling=pooling, normalize=False)
    params = init(model)
    states = np.asarray(apply(Transformer(TINY), params['transformer'], TOKENS))
    if pooling == 'cls':
        expected = [states[0, 0], states[1, 0], np.zeros(16)]
    elif pooling == 'max':
        expected = [states[0, :4].max(0), states[1, :3].max(0), np.zeros(16)]
    else:
        expected = [states[0, :4].mean(0), states[1, :3].mean(0), np.zeros(16)]
    embeddings = apply(model, params, TOKENS)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    unit = apply(DualEncoder(TINY, pooling=pooling), params, TOKENS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(
        unit[:2], embeddings[:2] / np.linalg.norm(embeddings[:2], axis=1)[:, None], atol=1e-6
    )


@pytest.mark.parametrize('bias', [True, False])
def test_a_projection_comes_before_normalisation(bias):
    model = DualEncoder(TINY, projection=Projection(5, bias, 'tanh'))
    params = init(model)
    assert ('bias' in params['projection']) == bias
    pooled = np.asarray(apply(DualEncoder(TINY, normalize=False), params, TOKENS))
    dense = pooled @ params['projection']['kernel'] + params['projection'].get('bias', 0.0)
    expected = np.tanh(dense[:2])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    embeddings = apply(model, params, TOKENS)
    assert embeddings.shape == (3, 5) and embeddings.dtype == jnp.float32
    np.testing.assert_allclose(embeddings[:2], expected, atol=1e-5)
    np.testing.assert_array_equal(embeddings[2], 0.0)  # Nothing has no embedding, bias or not.


def test_unknown_activation_of_a_projection_is_an_error():
    with pytest.raises(ValueError, match="activation='mish' of a projection is not supported; use"):
        Projection(5, activation='mish')


@pytest.mark.parametrize('pooling', ['mean', 'max'])
def test_padding_changes_nothing(pooling):
    model = DualEncoder(TINY, pooling)
    params = init(model)
    wide = np.pad(TOKENS, ((0, 0), (0, 9)))
    np.testing.assert_allclose(apply(model, params, wide), apply(model, params, TOKENS), atol=1e-6)


@pytest.mark.parametrize(
    ('pooling', 'dtype'), [('mean', 'float32'), ('cls', 'bfloat16'), ('max', 'float32')]
)
def test_rows_of_padding_have_no_gradient(pooling, dtype):
    model = DualEncoder(dataclasses.replace(TINY, dtype=dtype), pooling=pooling)
    params = init(model)

    @jax.jit
    @jax.grad
    def gradient(params, tokens, weights):
        embeddings = model.apply({'params': params}, tokens)
        assert embeddings.dtype == jnp.float32
        return jnp.sum(weights[:, None] * embeddings @ jnp.arange(16.0))

    for grad in jax.tree.leaves(gradient(params, np.zeros_like(TOKENS), jnp.ones(3))):
        np.testing.assert_array_equal(grad, 0.0)
    # And in a batch such a row adds nothing.
    with_it = gradient(params, TOKENS, jnp.ones(3))
    without = gradient(params, TOKENS, jnp.array([1.0, 1.0, 0.0]))
    jax.tree.map(np.testing.assert_array_equal, with_it, without)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(with_it))


def test_unknown_pooling_is_an_error():
    with pytest.raises(ValueError, match="pooling='last' is not supported; use one of mean, cls"):
        DualEncoder(TINY, pooling='last').init(jax.random.key(0), TOKENS)


def test_network_minilm_embeds_as_in_sentence_transformers():
    sentence_transformers = pytest.importorskip('sentence_transformers')
    try:
        directory = weights.find_weights('sentence-transformers/all-MiniLM-L6-v2')
    except FileNotFoundError as error:
        pytest.skip(str(error))
    read = pretrained.read_pretrained(directory)
    assert (read.pooling, read.normalize, read.max_length) == ('mean', True, 256)
    texts = ['hello', 'What is [PAD] for in a tokenizer?', 'a long passage ' * 150]
    tokenizer = tokenizer_files.load(read.tokenizer_dir).fast
    tokenizer.enable_truncation(read.max_length)
    tokenizer.enable_padding(pad_id=read.config.pad_id)
    tokens = np.array([e.ids for e in tokenizer.encode_batch(texts)], np.int32)
    assert tokens.shape == (3, 256)
    model = DualEncoder(read.config, read.pooling, read.normalize)
    embeddings = jax.jit(model.apply)({'params': {'transformer': read.params}}, tokens)
    theirs = sentence_transformers.SentenceTransformer(str(directory), device='cpu')
    np.testing.assert_allclose(embeddings, theirs.encode(texts), atol=1e-5)
