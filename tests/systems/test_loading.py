"""Config entries of encoders to modules and parameters."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from jdkd.config import EncoderSpec, schema
from jdkd.configs import common
from jdkd.models import export, pretrained
from jdkd.models.config import TransformerConfig
from jdkd.models.cross_encoder import head_shapes
from jdkd.models.transformer import param_shapes
from jdkd.systems import loading
from jdkd.systems.loading import read_model

TINY = TransformerConfig(
    vocab_size=20,
    hidden_size=8,
    num_layers=3,
    num_heads=2,
    intermediate_size=12,
    max_positions=160,
)
ROBERTA = {'family': 'roberta', 'pad_id': 1, 'position_offset': 2, 'type_vocab_size': 1}


def checkpoint(directory, labels, **changes):
    """The directory of a random classifier."""
    config = TransformerConfig(**vars(TINY) | changes)
    rng = np.random.default_rng(0)

    def random(shapes):
        flat = {path: rng.normal(size=shape) for path, shape in shapes.items()}
        return traverse_util.unflatten_dict(flat, sep='/')

    params, head = random(param_shapes(config)), random(head_shapes(config, len(labels)))
    content = export._encoder_config(config, labels)
    (directory / 'config.json').write_text(json.dumps(content))
    tensors = export._to_tensors(config, params, head)
    safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
    return directory


def read(directory, **changes):
    c = common.encoder(str(directory), kind='cross_encoder', **changes)
    return read_model(schema.read(EncoderSpec, c.copy_and_resolve_references()), 0)


def test_several_labels_need_a_choice(tmp_path):
    checkpoint(tmp_path, ('contradiction', 'entailment', 'neutral'))
    message = (
        r'has 3 labels \(contradiction, entailment, neutral\); set label to the number, from 0'
    )
    for label in (None, 3, -1):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, label=label)
    model, params, source = read(tmp_path, label=1)
    assert model.num_labels == 1
    kernel = source.head['classifier']['kernel']
    assert kernel.shape == (8, 3)
    np.testing.assert_array_equal(params['classifier']['kernel'], kernel[:, 1:2])
    tokens = np.array([[2, 7, 3, 8, 3]])
    logits = jax.jit(model.apply)({'params': params}, tokens, np.zeros_like(tokens))
    assert logits.shape == (1,)


def test_one_label_needs_none(tmp_path):
    checkpoint(tmp_path, ('relevant',))
    model, params, source = read(tmp_path)
    assert model.head == 'linear'
    jax.tree.map(
        np.testing.assert_array_equal, params, {'transformer': source.params, **source.head}
    )
    with pytest.raises(ValueError, match='label=0 chooses an output .* leave it out'):
        read(tmp_path, head='cosine', label=0)


def test_a_pair_with_two_separators_is_one_longer(tmp_path):
    checkpoint(tmp_path, ('relevant',), **ROBERTA)
    assert pretrained.read_pretrained(tmp_path).config.max_positions == 160
    model, _, _ = read(tmp_path, query_length=32, passage_length=128)
    assert model.transformer.family == 'roberta'
    with pytest.raises(ValueError, match='has 160 positions, but .* need 161'):
        read(tmp_path, query_length=32, passage_length=129)


def test_layers_and_remat_come_from_the_entry(tmp_path):
    checkpoint(tmp_path, ('relevant',))
    model, params, _ = read(tmp_path, layers=('even:2',), remat='full')
    assert model.transformer.num_layers == 2 and model.transformer.remat == 'full'
    assert 'layer_1' in params['transformer'] and 'layer_2' not in params['transformer']
    with pytest.raises(ValueError, match="remat='all' is not supported; use one of none, dots"):
        read(tmp_path, remat='all')


SPECS = {
    'dual': EncoderSpec(weights='m'),
    'set': EncoderSpec(weights='m', normalize=True, passage_prefix=''),
    'cross': EncoderSpec(weights='m', kind='cross_encoder'),
}


def source(**fields):
    """What the entry leaves to a checkpoint."""
    lengths = dict.fromkeys(('max_length', 'query_length', 'passage_length'), 24)
    absent = dict.fromkeys(('projection', 'head', 'projection_params', 'license'))
    texts = dict.fromkeys(('query_prompt', 'passage_prompt'), '')
    plain = {
        **{'config': TINY, 'tokenizer_dir': pathlib.Path('t'), 'source': 'nowhere', 'params': {}},
        **{'pooling': 'mean', 'normalize': True, 'similarity': 'cosine', 'classifies': False},
        'labels': (),
    }
    return pretrained.Pretrained(**plain | lengths | absent | texts | fields)


@pytest.mark.parametrize('name', SPECS)
@pytest.mark.parametrize('similarity', [None, 'cosine', 'dot', 'euclidean', 'manhattan'])
def test_embeddings_that_are_compared_by_distance_need_a_choice(name, similarity):
    checkpoint = source(similarity=similarity)
    if name == 'dual' and similarity in ('euclidean', 'manhattan'):
        with pytest.raises(ValueError, match=f'compares embeddings by {similarity} distance'):
            loading.check_similarity(SPECS[name], checkpoint)
    else:
        loading.check_similarity(SPECS[name], checkpoint)


@pytest.mark.parametrize('name', SPECS)
def test_what_a_checkpoint_leaves_open_is_told_unless_the_entry_says_it(name, monkeypatch):
    said = []
    monkeypatch.setattr(loading.logging, 'warning', lambda text, *args: said.append(text))
    loading.resolve(SPECS[name], source())
    assert not said
    loading.resolve(SPECS[name], source(similarity=None))
    loading.resolve(SPECS[name], source(passage_prompt_name='passage', passage_prompt='p: '))
    expected = [
        'names no similarity_fn_name: it is used with the cosine',
        "begin with its prompt 'passage', ",
    ]
    assert len(said) == (2 if name == 'dual' else 0)
    assert all(part in text for part, text in zip(expected, said, strict=False))


def test_a_sketch_needs_no_tensors(tmp_path):
    checkpoint(tmp_path, ('relevant',))
    (tmp_path / 'model.safetensors').unlink()
    spec = EncoderSpec(weights=str(tmp_path), kind='cross_encoder')
    model, params = loading.sketch_model(spec)
    assert model.head == 'linear' and params['classifier']['kernel'].shape == (8, 1)
    with pytest.raises(FileNotFoundError):
        read(tmp_path)


def test_a_linear_head_that_nothing_trains_is_an_error(tmp_path):
    checkpoint(tmp_path, ())
    with pytest.raises(ValueError, match='no classifier, so its linear head would score at random'):
        read(tmp_path, head='linear')
    c = common.encoder(str(tmp_path), kind='cross_encoder', head='linear')
    c.train.steps = 1
    spec = schema.read(EncoderSpec, c.copy_and_resolve_references())
    model, params, _ = read_model(spec, 0)
    assert model.head == 'linear' and params['classifier']['kernel'].shape == (8, 1)


def test_the_recipes_models_are_sketched_without_a_network(monkeypatch):
    def offline(name, revision, *, tensors):
        assert not tensors  # Gigabytes, for shapes.
        raise FileNotFoundError(f'{name} cannot be fetched')

    monkeypatch.setattr(loading.weights, 'find_weights', offline)
    spec = EncoderSpec(weights='sentence-transformers/multi-qa-mpnet-base-dot-v1', pooling='cls')
    model, params = loading.sketch_model(spec)
    assert (model.transformer.family, model.transformer.hidden_size) == ('mpnet', 768)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == 108_895_872
    with pytest.raises(FileNotFoundError, match='someone/else cannot be fetched'):
        loading.sketch_model(EncoderSpec(weights='someone/else'))


def test_dropout_is_that_of_the_entry(tmp_path):
    checkpoint(tmp_path, ('relevant',))
    assert read(tmp_path, dropout=0.3)[0].transformer.dropout == 0.3


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({'query_weights': 'a'}, ('a', 'c0ffee')),
        ({'query_weights': 'b'}, ('b', None)),
        ({'query_weights': 'a', 'query_revision': 'f00d'}, ('a', 'f00d')),
    ],
)
def test_a_query_tower_of_one_name_has_the_revision_too(fields, expected):
    spec = EncoderSpec(weights='a', revision='c0ffee', **fields)
    assert loading.query_checkpoint(spec) == expected
