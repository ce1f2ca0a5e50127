"""Every family against transformers, live where PyTorch is installed, and as it was recorded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jdkd.configs import common
from jdkd.models import config_json, pretrained
from jdkd.models.config import Disentangled, Rotary
from jdkd.models.families import FAMILIES
from jdkd.models.transformer import Transformer, param_shapes
from jdkd.runtime import mesh
from tests.helpers import reference

VARIANTS = list(reference.VARIANTS)


@pytest.fixture(scope='module', params=VARIANTS)
def live(request, tmp_path_factory):
    """(a random classifier of transformers, the same read by jdkd)."""
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    model = reference.build(request.param)
    return model, reference.read_live(model, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope='module', params=VARIANTS)
def recorded(request, tmp_path_factory):
    """(a tiny classifier with two labels, what transformers computed with it)."""
    directory = tmp_path_factory.mktemp(request.param)
    expected = reference.recorded(request.param, directory)
    return pretrained.read_pretrained(directory), expected


@pytest.fixture
def checkpoint(tmp_path, request):
    """The directory of a recorded classifier."""
    reference.recorded(request.param, tmp_path)
    return tmp_path


def edit_json(file, changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def products(jaxpr):
    """All matrix products of a jaxpr."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            yield eqn
        for value in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(inner := getattr(value, 'jaxpr', value), 'eqns'):
                yield from products(inner)


def test_products_in_float32_are_not_rounded_on_accelerators(recorded):
    read, _ = recorded
    tokens, types = reference.rows((5, 3), pad_id=read.config.pad_id)
    traced = jax.make_jaxpr(lambda: reference.ours(read, tokens, types))()
    precisions = [e.params['precision'] for e in products(traced.jaxpr)]
    highest = jax.lax.Precision.HIGHEST
    assert len(precisions) > 10 and {*precisions} == {(highest, highest)}


def test_states_and_logits_are_those_of_transformers(live):
    model, read = live
    tokens, types = reference.rows((130, 60, 2, 17, 9), pad_id=read.config.pad_id)
    states, logits = reference.ours(read, tokens, types)
    expected = [x.detach().numpy() for x in reference.theirs(model, tokens, types)]
    mask = tokens != read.config.pad_id
    np.testing.assert_allclose(states[mask], expected[0][mask], atol=1e-5)
    np.testing.assert_allclose(logits, expected[1], atol=1e-5)
    assert np.std(expected[1]) > 0.001


@pytest.mark.slow
def test_gradients_are_those_of_transformers(live):
    model, read = live
    tokens, types = reference.rows((20, 7, 13, 2, 9, 9, 5, 16), pad_id=read.config.pad_id)
    target = np.random.default_rng(1).dirichlet(np.ones(4), 2).astype(np.float32)
    pairs = reference.gradients(model, read, tokens, types, target)
    assert max(np.abs(theirs).max() for _, theirs in pairs.values()) > 0.01
    for path, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=path)


def test_transformers_loads_what_is_exported(recorded, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    read, expected = recorded
    for kind, head, labels in (
        (transformers.AutoModel, None, ()),
        (transformers.AutoModelForSequenceClassification, read.head, ('no', 'yes')),
    ):
        reference.write(tmp_path, read.config, read.params, head, labels)
        model, found = kind.from_pretrained(
            tmp_path, output_loading_info=True, attn_implementation='eager'
        )
        assert not any(found.values()), found
        model.eval()
        if head:
            with torch.no_grad():
                logits = reference.theirs(model, expected['tokens'], expected['types'])[1]
            np.testing.assert_allclose(logits, expected['logits'], atol=1e-6)
            assert model.config.id2label == {0: 'no', 1: 'yes'}


@pytest.mark.parametrize('family', FAMILIES)
def test_missing_keys_mean_what_they_mean_in_transformers(family, tmp_path):
    transformers = pytest.importorskip('transformers')
    needed = {'relative_attention': True} if family == 'deberta-v2' else {}
    full = transformers.AutoConfig.for_model(family, **needed).to_dict()
    fields = FAMILIES[family].fields
    required = ('vocab_size', 'hidden_size', 'num_layers', 'num_heads', 'intermediate_size')
    needed |= {fields[name]: full[fields[name]] for name in required}
    found = pretrained._read_config({'model_type': family} | needed, tmp_path)
    assert found == pretrained._read_config(full, tmp_path)


def test_states_and_logits_are_those_recorded(recorded):
    read, expected = recorded
    tokens, types = expected['tokens'], expected['types']
    states, logits = reference.ours(read, tokens, types)
    mask = tokens != read.config.pad_id
    np.testing.assert_allclose(states[mask], expected['states'][mask], atol=1e-5)
    np.testing.assert_allclose(logits, expected['logits'], atol=1e-5)
    assert read.labels == ('0', '1')


def test_round_trip_is_exact(recorded, tmp_path):
    read, _ = recorded
    reference.write(tmp_path, read.config, read.params)
    again = pretrained.read_pretrained(tmp_path)
    assert again.config == dataclasses.replace(read.config, head_pooling=again.config.head_pooling)
    jax.tree.map(np.testing.assert_array_equal, again.params, read.params)
    assert again.head is None and again.labels == ()
    reference.write(tmp_path, read.config, read.params, read.head, ('no', 'yes'))
    again = pretrained.read_pretrained(tmp_path)
    assert again.config == read.config and again.labels == ('no', 'yes')
    jax.tree.map(np.testing.assert_array_equal, again.params, read.params)
    jax.tree.map(np.testing.assert_array_equal, again.head, read.head)


def test_bfloat16_computes_near_float32_from_float32_params(recorded):
    read, expected = recorded
    half = dataclasses.replace(read, config=dataclasses.replace(read.config, dtype='bfloat16'))
    tokens, types = expected['tokens'], expected['types']
    states, logits = reference.ours(half, tokens, types)
    assert states.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    mask = tokens != read.config.pad_id
    error = np.abs(np.asarray(states, np.float32) - expected['states'])[mask].mean()
    assert 0 < error < 0.03 * np.abs(expected['states'][mask]).mean()
    params = jax.eval_shape(Transformer(half.config).init, jax.random.key(0), tokens)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('checkpoint', ['bert', 'modernbert'], indirect=True)
def test_dropout_acts_in_training_only(checkpoint):
    read = pretrained.read_pretrained(checkpoint)
    tokens, _ = reference.rows((12, 7), pad_id=read.config.pad_id)
    model = Transformer(dataclasses.replace(read.config, dropout=0.5))

    @jax.jit
    def train(seed):
        rngs = {'dropout': jax.random.key(seed)}
        rows = np.arange(len(tokens))
        return model.apply({'params': read.params}, tokens, dropout_rows=rows, rngs=rngs)

    off = jax.jit(model.apply)({'params': read.params}, tokens)
    on = jax.jit(Transformer(read.config).apply)({'params': read.params}, tokens)
    np.testing.assert_array_equal(off, on)
    np.testing.assert_array_equal(train(0), train(0))
    assert np.abs(train(0) - train(1)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['deberta-v3', 'modernbert'])
def test_rematerialised_gradients_are_the_same(variant, tmp_path):
    expected = reference.recorded(variant, tmp_path)
    read = pretrained.read_pretrained(tmp_path)

    def gradient(remat):
        model = Transformer(dataclasses.replace(read.config, remat=remat, dropout=0.1))

        def loss(params):
            rngs = {'dropout': jax.random.key(0)}
            rows = np.arange(len(expected['tokens']))
            states = model.apply(
                {'params': params}, expected['tokens'], dropout_rows=rows, rngs=rngs
            )
            return jnp.sum(jnp.sin(states[:, 0]))

        return jax.jit(jax.grad(loss))(read.params)

    kept = gradient('none')
    for remat in ('dots', 'full'):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), kept, gradient(remat)
        )


def test_one_set_of_sharding_rules_fits_all(recorded):
    read, _ = recorded
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), read.params)
    rules = common.get_config().sharding
    mesh.check_rules({'transformer': shapes}, rules)
    split = mesh.shardings(mesh.make_mesh(model=2), {'transformer': shapes}, rules)
    for path, sharding in jax.tree_util.tree_leaves_with_path(split['transformer']['layer_1']):
        name = mesh.path_name(path)
        if name.endswith('kernel'):
            assert 'model' in sharding.spec, name


def test_layers_are_picked_in_every_family(recorded, tmp_path):
    read, _ = recorded
    reference.write(tmp_path, read.config, read.params)
    first = pretrained.read_pretrained(tmp_path, layers='first:1')
    assert first.config.num_layers == 1
    jax.tree.map(np.testing.assert_array_equal, first.params['layer_0'], read.params['layer_0'])
    if not read.config.norm_first:
        last = pretrained.read_pretrained(tmp_path, layers=(1,))
        jax.tree.map(np.testing.assert_array_equal, last.params['layer_0'], read.params['layer_1'])
    assert set(param_shapes(first.config)) == {
        mesh.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(first.params)
    }


def test_a_picked_layer_keeps_its_window(tmp_path):
    torch = pytest.importorskip('torch')
    model = reference.build('modernbert-mean', num_hidden_layers=4)
    model.save_pretrained(tmp_path / 'all')
    picked = pretrained.read_pretrained(tmp_path / 'all', layers=(0, 2, 3))
    assert picked.config.local_layers == (2,)  # It was layer 3 of 4; 1 and 3 are local.
    (tmp_path / 'picked').mkdir()
    reference.write(tmp_path / 'picked', picked.config, picked.params)
    assert pretrained.read_pretrained(tmp_path / 'picked').config.local_layers == (2,)
    theirs = type(model.base_model).from_pretrained(
        tmp_path / 'picked', attn_implementation='eager'
    )
    tokens, _ = reference.rows((40, 33))
    states = jax.jit(Transformer(picked.config).apply)({'params': picked.params}, tokens)
    mask = tokens != 0
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens).long(), torch.tensor(mask).long())[0]
    np.testing.assert_allclose(states[mask], expected.numpy()[mask], atol=1e-5)


@pytest.mark.parametrize('checkpoint', ['modernbert'], indirect=True)
@pytest.mark.parametrize('layers', [(1,), (0, 0), (1, 0), (0, 1, 0)])
def test_a_layer_without_a_norm_can_only_be_the_first(checkpoint, layers):
    with pytest.raises(ValueError, match='without a norm before its attention; begin with layer 0'):
        pretrained.read_pretrained(checkpoint, layers=layers)


def test_params_that_families_share_are_at_the_same_paths(recorded):
    paths = set(param_shapes(recorded[0].config))
    for module in ('query', 'key', 'value', 'output'):
        assert f'layer_1/attention/{module}/kernel' in paths
    for path in ('embeddings/word/embedding', 'embeddings/norm/scale', 'layer_1/ffn_norm/scale'):
        assert path in paths
    for module in ('up', 'down'):
        assert f'layer_0/ffn/{module}/kernel' in paths


@pytest.mark.parametrize('checkpoint', ['bert', 'mpnet', 'deberta-v3'], indirect=True)
def test_rows_as_long_as_the_positions(checkpoint):
    read = pretrained.read_pretrained(checkpoint)
    config = read.config
    longest = np.full((1, config.max_positions), 5)
    offset = config.position_offset
    assert config.max_positions == 44 - offset and offset == (2 if config.pad_id == 1 else 0)
    states = jax.jit(Transformer(config).apply)({'params': read.params}, longest)
    assert np.isfinite(states).all()
    with pytest.raises(ValueError, match=f'but the model has {config.max_positions} positions'):
        Transformer(config).apply({'params': read.params}, np.full((1, 45), 5))


@pytest.mark.parametrize(
    ('checkpoint', 'changes', 'message'),
    [
        ('deberta-v3', {'conv_kernel_size': 3}, 'has conv_kernel_size=3; only 0 is supported'),
        ('deberta-v3', {'pos_att_type': 'p2p'}, r"pos_att_type=\('p2p',\); only c2p and"),
        ('deberta-v3', {'relative_attention': False}, 'relative_attention=False; only true'),
        ('deberta-v3', {'pooler_hidden_size': 8}, 'pooler_hidden_size=8; only hidden_size is'),
        ('modernbert', {'attention_bias': True}, 'has attention_bias=True; only False is'),
        (
            'modernbert',
            {'layer_types': ['chunked'] * 2},
            'only full_attention and sliding_attention',
        ),
        ('modernbert', {'layer_types': ['full_attention']}, 'layer_types has 1 layers, but num_hi'),
        (
            'modernbert',
            {'rope_parameters': {'rope_theta': 5}},
            "rope_parameters={'rope_theta': 5};",
        ),
        ('modernbert', {'rope_scaling': {'factor': 2}}, 'only the default rope_type is supported'),
        ('modernbert', {'classifier_pooling': 'max'}, "head_pooling='max' is not supported"),
        ('mpnet', {'relative_attention_num_buckets': 16}, '_num_buckets=16; only 32 is supported'),
        ('mpnet', {'pad_token_id': 0}, 'has pad_token_id=0; only 1 is supported'),
        ('electra', {'hidden_act': 'mish'}, "activation='mish' is not supported; use one of gelu"),
        ('electra', {'embedding_size': 8}, r'shape \(12,\), but .* imply \(8,\)'),
        ('distilbert', {'dim': ...}, "has no 'dim'"),
        ('roberta', {'model_type': 'bart'}, "type 'bart'; supported are: bert, distilbert, rob"),
    ],
    indirect=['checkpoint'],
)
def test_what_does_not_fit_is_named(checkpoint, changes, message):
    edit_json(checkpoint / 'config.json', changes)
    with pytest.raises(ValueError, match=message):
        pretrained.read_pretrained(checkpoint)


def test_tensors_that_are_not_known_are_named(recorded, tmp_path):
    read, _ = recorded
    reference.write(tmp_path, read.config, read.params)
    file = tmp_path / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(tensors | {'adapter.up': np.ones(3, np.float32)}, file)
    family = FAMILIES[read.config.family]
    with pytest.raises(ValueError, match=f'1 tensors that {family.architecture} .*: adapter.up;'):
        pretrained.read_pretrained(tmp_path)
    last = sorted(name for name in tensors if 'layer' in name)[-1]
    del tensors[last]
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match=f'has no tensor {last!r}'):
        pretrained.read_pretrained(tmp_path)


@pytest.mark.parametrize('checkpoint', ['modernbert'], indirect=True)
def test_modernbert_configs_of_transformers_4(checkpoint):
    new = pretrained.read_pretrained(checkpoint).config
    assert new.relative == Rotary(160_000.0, 10_000.0) and new.local_layers == (1,)
    old = {'rope_parameters': ..., 'layer_types': ..., 'global_attn_every_n_layers': 1}
    old |= {'global_rope_theta': 5000.0, 'local_rope_theta': 700.0}
    edit_json(checkpoint / 'config.json', old)
    found = pretrained.read_pretrained(checkpoint).config
    assert found.relative == Rotary(5000.0, 700.0) and found.local_layers == ()


@pytest.mark.parametrize(
    ('local', 'every'), [((), 1), ((1, 3), 2), ((1, 2), 3), ((1, 2, 3), 4), ((0, 1), 0)]
)
@pytest.mark.parametrize('checkpoint', ['modernbert'], indirect=True)
def test_modernbert_configs_for_transformers_4(checkpoint, local, every):
    config = pretrained.read_pretrained(checkpoint).config
    config = dataclasses.replace(config, num_layers=4, local_layers=local)
    content = config_json.write_modernbert(config)
    assert content['global_attn_every_n_layers'] == every
    if every:
        old = {k: v for k, v in content.items() if k not in ('layer_types', 'rope_parameters')}
        read = config_json.read_modernbert({**old, 'num_hidden_layers': 4})
        assert read == {'relative': config.relative, 'local_layers': local, 'window': config.window}


@pytest.mark.parametrize('checkpoint', ['deberta-v3'], indirect=True)
def test_deberta_configs_as_the_hub_has_them(checkpoint):
    told = {'pos_att_type': 'p2c|c2p', 'max_relative_positions': -1, 'embedding_size': ...}
    edit_json(checkpoint / 'config.json', told)
    found = pretrained.read_pretrained(checkpoint).config.relative
    assert found == Disentangled(16, 44, ('c2p', 'p2c'), share_key=True, norm=True)


@pytest.mark.parametrize('variant', ['roberta', 'mpnet'])
def test_padding_tokens_in_a_text_take_no_position(variant, tmp_path):
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    model = reference.build(variant)
    read = reference.read_live(model, tmp_path)
    tokens = np.array([[5, 1, 1, 6, 7], [5, 6, 1, 7, 8]], np.int32)
    with torch.no_grad():
        given = torch.tensor(tokens).long()
        expected = model.base_model(given, attention_mask=torch.ones_like(given))[0].numpy()
    apply = jax.jit(Transformer(read.config).apply)
    states = apply({'params': read.params}, tokens)
    np.testing.assert_allclose(states, expected, atol=1e-5)
    segments = np.repeat(np.array([[1, 2]], np.int32), 5, axis=1)
    states = apply({'params': read.params}, tokens.reshape(1, -1), segments=segments)
    np.testing.assert_allclose(states[0], expected.reshape(10, -1), atol=1e-5)


@pytest.mark.parametrize('checkpoint', ['bert', 'deberta-v3', 'modernbert'], indirect=True)
def test_only_learned_positions_end_before_max_seq_length(checkpoint):
    module = {'type': 'sentence_transformers.models.Transformer', 'path': ''}
    (checkpoint / 'modules.json').write_text(json.dumps([module]))
    (checkpoint / 'sentence_bert_config.json').write_text('{"max_seq_length": 99}')
    read = pretrained.read_pretrained(checkpoint)
    longest = 44 if read.config.position_embeddings else 99
    assert (read.max_length, read.config.max_positions) == (longest, longest)
    tokens = np.full((1, longest), 5)
    assert np.isfinite(
        jax.jit(Transformer(read.config).apply)({'params': read.params}, tokens)
    ).all()
