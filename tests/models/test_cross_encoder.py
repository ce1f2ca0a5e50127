import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdkd.models import pretrained
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import Transformer, TransformerConfig
from jdkd.tokens.pairs import join_pairs

TINY = TransformerConfig(
    vocab_size=50,
    hidden_size=16,
    num_layers=1,
    num_heads=4,
    intermediate_size=24,
    max_positions=20,
)
CLS, SEP = 2, 3
QUERIES = np.array([[CLS, 10, SEP, 0], [CLS, 11, 12, SEP], [CLS, SEP, 0, 0], [0, 0, 0, 0]])
PASSAGES = np.array([[CLS, 20, SEP], [CLS, SEP, 0], [CLS, 21, SEP], [0, 0, 0]])


def init(model, seed=0):
    """Random params, larger than at the start of training, so that rows differ."""
    rng = np.random.default_rng(seed)
    tokens = np.ones((1, 4), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)['params']
    return jax.tree.map(lambda x: rng.normal(0.3, 0.3, x.shape).astype(np.float32), shapes)


def apply(model, params, *inputs):
    return jax.jit(model.apply)({'params': params}, *inputs)


def test_join_pairs_by_hand():
    tokens, types = join_pairs(QUERIES, PASSAGES, 0)
    np.testing.assert_array_equal(
        tokens,
        [
            [CLS, 10, SEP, 20, SEP, 0],
            [CLS, 11, 12, SEP, SEP, 0],
            [CLS, SEP, 21, SEP, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ],
    )
    np.testing.assert_array_equal(
        types,
        [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
    )


def test_join_pairs_with_two_separators_by_hand():
    tokens, types = join_pairs(QUERIES, PASSAGES, 0, separators=2)
    np.testing.assert_array_equal(
        tokens,
        [
            [CLS, 10, SEP, SEP, 20, SEP, 0],
            [CLS, 11, 12, SEP, SEP, SEP, 0],
            [CLS, SEP, SEP, 21, SEP, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
        ],
    )
    np.testing.assert_array_equal(types[0], [0, 0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize('family', FAMILIES)
def test_pairs_are_those_of_the_familys_tokenizer(family):
    """transformers' own tokenizer of each family, on a vocabulary of single letters."""
    transformers = pytest.importorskip('transformers')
    vocab = {word: i for i, word in enumerate(['<pad>', '<unk>', '<s>', '</s>', *'abcdefg'])}
    special = {'bos': '<s>', 'eos': '</s>', 'cls': '<s>', 'sep': '</s>', 'pad': '<pad>'}
    special = {f'{role}_token': token for role, token in special.items()}
    names = {'deberta-v2': 'DebertaV2', 'xlm-roberta': 'XLMRoberta', 'mpnet': 'MPNet'}
    names |= {'roberta': 'Roberta', 'modernbert': 'Bert', 'electra': 'Bert', 'distilbert': 'Bert'}
    kind = getattr(transformers, f'{names.get(family, "Bert")}Tokenizer')
    pieces = [(word, -1.0) for word in vocab]
    made = {
        'DebertaV2': {'vocab': pieces},
        'XLMRoberta': {'vocab': pieces},
        'Roberta': {'vocab': vocab, 'merges': []},
    }
    own = kind(**made.get(names.get(family), {'vocab': vocab}), unk_token='<unk>', **special)
    assert own.is_fast
    pair = own.backend_tokenizer.encode('abc', 'de')
    alone = [own.backend_tokenizer.encode(text).ids for text in ('abc', 'de')]
    rows = [np.array([ids + [own.pad_token_id] * 2]) for ids in alone]
    tokens, types = join_pairs(*rows, own.pad_token_id, FAMILIES[family].separators)
    length = len(pair.ids)
    assert length >= 5 + FAMILIES[family].separators - 2
    np.testing.assert_array_equal(tokens[0, :length], pair.ids)
    if FAMILIES[family].segments:
        np.testing.assert_array_equal(types[0, :length], pair.type_ids)


@pytest.mark.parametrize('dtype', [np.uint16, np.int32])
def test_join_pairs_keeps_the_ids_dtype_and_another_pad_id(dtype):
    queries = np.where(QUERIES == 0, 1, QUERIES).astype(dtype)
    passages = np.where(PASSAGES == 0, 1, PASSAGES).astype(dtype)
    tokens, types = join_pairs(queries, passages, 1)
    assert tokens.dtype == dtype and types.dtype == np.int32
    expected, expected_types = join_pairs(QUERIES, PASSAGES, 0)
    np.testing.assert_array_equal(tokens, np.where(expected == 0, 1, expected))
    np.testing.assert_array_equal(types, expected_types)


def test_join_pairs_agrees_with_a_loop():
    rng = np.random.default_rng(0)

    def rows(width):
        tokens = np.zeros((200, width), np.int32)
        for row in tokens:
            n = rng.integers(0, width - 1)
            row[: n + 2] = [CLS, *rng.integers(5, 50, n), SEP]
        return tokens

    queries, passages = rows(7), rows(11)
    tokens, types = join_pairs(queries, passages, 0)
    assert tokens.shape == types.shape == (200, 17)
    for query, passage, row, kind in zip(queries, passages, tokens, types, strict=True):
        query, passage = query[query != 0], passage[passage != 0][1:]
        np.testing.assert_array_equal(row[row != 0], [*query, *passage])
        np.testing.assert_array_equal(kind[: len(query)], 0)
        assert kind.sum() == len(passage)


def test_join_pairs_errors():
    with pytest.raises(ValueError, match='4 queries cannot be joined with 3 passages'):
        join_pairs(QUERIES, PASSAGES[:3], 0)


def test_a_padding_token_that_a_text_spells_out_is_text():
    queries = QUERIES.copy()
    queries[2] = [CLS, 0, SEP, 0]
    tokens, types = join_pairs(queries, PASSAGES, 0)
    np.testing.assert_array_equal(tokens[2, :3], [CLS, 0, SEP])
    np.testing.assert_array_equal(types[2, :4], [0, 0, 0, 1])


def test_cosine_head_by_hand():
    model = CrossEncoder(TINY, 'cosine')
    params = init(model)
    params |= {'scale': jnp.float32(5.0), 'bias': jnp.float32(-1.5)}
    tokens, types = join_pairs(QUERIES, PASSAGES, 0)
    states = np.asarray(apply(Transformer(TINY), params['transformer'], tokens))
    logits = apply(model, params, tokens, types)
    assert logits.shape == (4,) and logits.dtype == jnp.float32
    for row, (q, p) in enumerate([(3, 5), (4, 5), (2, 4)]):
        query, passage = states[row, :q].mean(0), states[row, q:p].mean(0)
        cosine = query @ passage / np.linalg.norm(query) / np.linalg.norm(passage)
        np.testing.assert_allclose(logits[row], 5.0 * cosine - 1.5, atol=1e-5)
    np.testing.assert_allclose(logits[3], -1.5, atol=1e-6)  # A row of padding has cosine 0.


def test_cosine_head_begins_at_20_and_takes_a_dual_encoders_params():
    tokens, types = join_pairs(QUERIES, PASSAGES, 0)
    fresh = jax.jit(CrossEncoder(TINY, 'cosine').init)(jax.random.key(0), tokens, types)['params']
    assert float(fresh['scale']) == 20.0 and float(fresh['bias']) == 0.0
    dual = jax.eval_shape(DualEncoder(TINY).init, jax.random.key(0), tokens)['params']
    assert jax.tree.structure(dual) == jax.tree.structure({'transformer': fresh['transformer']})


@pytest.mark.parametrize('head', ['cosine', 'linear'])
def test_padding_changes_nothing_and_gradients_are_finite(head):
    model = CrossEncoder(TINY, head)
    params = init(model)
    tokens, types = join_pairs(QUERIES, PASSAGES, 0)
    wide = [np.pad(x, ((0, 0), (0, 8))) for x in (tokens, types)]
    np.testing.assert_allclose(
        apply(model, params, *wide)[:3],
        apply(model, params, tokens, types)[:3],
        atol=1e-5,
    )
    grads = jax.jit(jax.grad(lambda p: jnp.sum(apply(model, p, tokens, types) ** 2)))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads['transformer']['layer_0']['ffn']))


def test_logits_are_float32_under_bfloat16():
    config = dataclasses.replace(TINY, dtype='bfloat16')
    tokens, types = join_pairs(QUERIES, PASSAGES, 0)
    for head in ('cosine', 'linear'):
        model = CrossEncoder(config, head)
        logits = apply(model, init(model), tokens, types)
        assert logits.dtype == jnp.float32
        # float32 in its digits, not only in its type.
        assert (logits[:3] != logits[:3].astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_unknown_head_is_an_error():
    with pytest.raises(ValueError, match="head='mlp' is not supported; use one of cosine, linear"):
        init(CrossEncoder(TINY, 'mlp'))
    with pytest.raises(ValueError, match="head='cosine' has one label, not 3; use head='linear'"):
        init(CrossEncoder(TINY, 'cosine', 3))


def test_several_labels_have_a_logit_each():
    tokens, types = join_pairs(QUERIES, PASSAGES, 0)
    model = CrossEncoder(TINY, 'linear', 3)
    params = init(model)
    logits = apply(model, params, tokens, types)
    assert logits.shape == (4, 3)
    classifier = jax.tree.map(lambda x: x[..., 1:2], params['classifier'])
    one = apply(CrossEncoder(TINY, 'linear'), params | {'classifier': classifier}, tokens, types)
    np.testing.assert_allclose(one, logits[:, 1], rtol=1e-5)


def test_linear_head_is_the_sequence_classifier_of_transformers(tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=20,
            initializer_range=0.2,
            num_labels=1,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path)
    read = pretrained.read_pretrained(tmp_path)
    tokens, types = join_pairs(QUERIES[:3], PASSAGES[:3], 0)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens),
            attention_mask=torch.tensor(tokens != 0),
            token_type_ids=torch.tensor(types),
        ).logits[:, 0]
    params = {'transformer': read.params, **read.head}
    logits = apply(CrossEncoder(read.config, 'linear'), params, tokens, types)
    assert np.std(expected.numpy()) > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-5)
