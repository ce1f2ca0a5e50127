import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from flax import traverse_util

from jdkd.models import export, pretrained
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.transformer import TransformerConfig, param_shapes
from jdkd.tokens import tokenizer_files
from jdkd.tokens.tokenizer import load_tokenizer

MINILM = 'sentence-transformers/all-MiniLM-L6-v2'
TINY = TransformerConfig(
    vocab_size=12,
    hidden_size=8,
    num_layers=4,
    num_heads=2,
    intermediate_size=10,
    max_positions=20,
)


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.normal(0, 1, shape).astype(np.float32)
        for path, shape in param_shapes(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep='/')


PARAMS = random_params(TINY)


@pytest.fixture
def checkpoint(tmp_path):
    """A directory as sentence-transformers has them."""
    tokenizer_dir = tmp_path / 'tokenizer'
    tokenizer_dir.mkdir()
    words = ['<pad>', '<unk>', '<s>', '</s>', '<mask>', 'cat']
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='<unk>'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9, pad_token='<pad>')
    tokenizer.save(str(tokenizer_dir / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast'}
    (tokenizer_dir / 'tokenizer_config.json').write_text(json.dumps(config))
    export.export_sentence_transformer(
        tmp_path / 'model',
        model=DualEncoder(TINY),
        params={'transformer': PARAMS},
        tokenizer_dir=tokenizer_dir,
        max_length=16,
        model_card='no front matter',
    )
    return tmp_path / 'model'


def edit_json(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def edit_tensors(directory, edit):
    file = directory / 'model.safetensors'
    tensors = edit(safetensors.numpy.load_file(file))
    safetensors.numpy.save_file(tensors, file)


def assert_params(read, expected=PARAMS):
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)


def test_reads_each_attribute(checkpoint):
    read = pretrained.read_pretrained(str(checkpoint))
    assert read.config == TINY
    assert read.tokenizer_dir == checkpoint and read.source == str(checkpoint)
    assert (read.pooling, read.normalize, read.max_length) == ('mean', True, 16)
    assert read.license is None and read.head is None
    assert_params(read)


def test_a_kernel_is_their_weight_transposed(checkpoint):
    tensors = safetensors.numpy.load_file(checkpoint / 'model.safetensors')
    np.testing.assert_array_equal(
        tensors['encoder.layer.3.intermediate.dense.weight'],
        PARAMS['layer_3']['ffn']['up']['kernel'].T,
    )
    np.testing.assert_array_equal(
        tensors['encoder.layer.0.attention.output.LayerNorm.weight'],
        PARAMS['layer_0']['attention_norm']['scale'],
    )


def test_layers_are_picked_and_renumbered(checkpoint):
    read = pretrained.read_pretrained(checkpoint, layers=(0, 3))
    assert read.config.num_layers == 2
    expected = {
        'embeddings': PARAMS['embeddings'],
        'layer_0': PARAMS['layer_0'],
        'layer_1': PARAMS['layer_3'],
    }
    assert_params(read, expected)


@pytest.mark.parametrize(
    ('layers', 'picks'),
    [
        ('first:2', (0, 1)),
        (('first:4',), (0, 1, 2, 3)),  # As the command line has it.
        ('even:1', (0,)),
        ('even:2', (0, 3)),
        (('even:3',), (0, 2, 3)),
        ([3, 0], (3, 0)),
    ],
)
def test_layers_by_rule(checkpoint, layers, picks):
    read = pretrained.read_pretrained(checkpoint, layers=layers)
    assert read.config.num_layers == len(picks)
    for new, old in enumerate(picks):
        expected = PARAMS[f'layer_{old}']
        jax.tree.map(np.testing.assert_array_equal, read.params[f'layer_{new}'], expected)


@pytest.mark.parametrize(
    ('layers', 'message'),
    [
        ('last:2', "layers=.'last:2',. is not supported; use indices, first:N or even:N"),
        (('first:2', 3), 'use indices, first:N or even:N'),
        ('even:0', 'use indices, first:N or even:N'),
        ('first:5', "layers=.'first:5',. cannot be kept: the checkpoint has 4"),
    ],
)
def test_layer_rules_that_cannot_be(checkpoint, layers, message):
    with pytest.raises(ValueError, match=message):
        pretrained.read_pretrained(checkpoint, layers=layers)


@pytest.mark.parametrize('layers', [(0, 4), (-1,), ()])
def test_layers_that_are_not_there(checkpoint, layers):
    with pytest.raises(ValueError, match='cannot be kept: the checkpoint has layers 0 to 3'):
        pretrained.read_pretrained(checkpoint, layers=layers)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_upcast(checkpoint, dtype):
    edit_tensors(checkpoint, lambda t: {k: v.astype(dtype) for k, v in t.items()})
    expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), PARAMS)
    read = pretrained.read_pretrained(checkpoint)
    assert {x.dtype for x in jax.tree.leaves(read.params)} == {np.dtype(np.float32)}
    assert_params(read, expected)


def test_other_names_of_the_same_tensors(checkpoint):
    def rename(name):
        name = name.replace('LayerNorm.weight', 'LayerNorm.gamma')
        return 'bert.' + name.replace('LayerNorm.bias', 'LayerNorm.beta')

    extra = {'cls.predictions.bias': np.zeros(3, np.float32)}
    edit_tensors(checkpoint, lambda t: {rename(k): v for k, v in t.items()} | extra)
    assert_params(pretrained.read_pretrained(checkpoint))


def test_shards(checkpoint):
    tensors = safetensors.numpy.load_file(checkpoint / 'model.safetensors')
    (checkpoint / 'model.safetensors').unlink()
    files = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(tensors)}
    for file in set(files.values()):
        part = {name: value for name, value in tensors.items() if files[name] == file}
        safetensors.numpy.save_file(part, checkpoint / file)
    index = checkpoint / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': files}))
    assert_params(pretrained.read_pretrained(checkpoint))
    (checkpoint / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='has no model-00002-of-00002.safetensors'):
        pretrained.read_pretrained(checkpoint)


def test_a_sequence_classifier_has_a_head(checkpoint):
    weight = np.arange(8, dtype=np.float32)[None]
    head = {'classifier.weight': weight, 'classifier.bias': np.ones(1, np.float32)}
    edit_tensors(checkpoint, lambda t: t | head)
    edit_json(checkpoint / 'config.json', architectures=['BertForSequenceClassification'])
    read = pretrained.read_pretrained(checkpoint)
    assert_params(read)
    assert read.labels == ('0',)
    np.testing.assert_array_equal(read.head['classifier']['kernel'], weight.T)
    assert jax.tree.map(np.shape, read.head) == {
        'pooler': {'kernel': (8, 8), 'bias': (8,)},
        'classifier': {'kernel': (8, 1), 'bias': (1,)},
    }
    edit_tensors(checkpoint, lambda t: t | {'classifier.weight': np.ones((2, 8), np.float32)})
    with pytest.raises(ValueError, match=r"'classifier.weight' .* \(2, 8\).* imply \(1, 8\)"):
        pretrained.read_pretrained(checkpoint)
    edit_tensors(checkpoint, lambda t: t | {'classifier.bias': np.ones(2, np.float32)})
    edit_json(checkpoint / 'config.json', id2label={'0': 'no', '1': 'yes'})
    read = pretrained.read_pretrained(checkpoint)
    assert read.labels == ('no', 'yes')
    assert read.head['classifier']['kernel'].shape == (8, 2)


QUERY = 'encoder.layer.2.attention.self.query.weight'


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda t: {k: v for k, v in t.items() if k != QUERY}, f'no tensor {QUERY!r} .our layer_2'),
        (lambda t: t | {QUERY: t[QUERY][:, :7]}, r'query.weight.* has shape \(8, 7\).* \(8, 8\)'),
        (lambda t: t | {'adapter.up': t[QUERY]}, 'has 1 tensors that BertModel .*: adapter.up;'),
    ],
)
def test_tensor_errors(checkpoint, edit, message):
    edit_tensors(checkpoint, edit)
    with pytest.raises(ValueError, match=message):
        pretrained.read_pretrained(checkpoint)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 't5'}, "is a model of type 't5'; supported are: bert"),
        ({'position_embedding_type': 'relative_key'}, "'relative_key'; only 'absolute'"),
        ({'hidden_size': ...}, "config.json has no 'hidden_size'"),
        ({'hidden_act': 'mish'}, "activation='mish' is not supported"),
        ({'is_causal': True}, 'is_causal=True; only False is supported'),
    ],
)
def test_config_errors(checkpoint, changes, message):
    edit_json(checkpoint / 'config.json', **changes)
    with pytest.raises(ValueError, match=message):
        pretrained.read_pretrained(checkpoint)


def test_missing_files(checkpoint):
    (checkpoint / 'model.safetensors').rename(checkpoint / 'pytorch_model.bin')
    with pytest.raises(FileNotFoundError, match='no model.safetensors; .*pytorch_model.bin, conv'):
        pretrained.read_pretrained(checkpoint)
    (checkpoint / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='has no config.json'):
        pretrained.read_pretrained(checkpoint)


def test_max_length_and_license(checkpoint):
    (checkpoint / 'sentence_bert_config.json').unlink()
    (checkpoint / 'tokenizer_config.json').unlink()
    assert pretrained.read_pretrained(checkpoint).max_length == 20
    (checkpoint / 'tokenizer_config.json').write_text('{"model_max_length": 1e30}')
    assert pretrained.read_pretrained(checkpoint).max_length == 20
    (checkpoint / 'tokenizer_config.json').write_text('{"model_max_length": 14}')
    (checkpoint / 'README.md').write_text('---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: no\n')
    read = pretrained.read_pretrained(checkpoint)
    assert (read.max_length, read.license) == (14, 'apache-2.0')


def test_tokenizer_forgets_padding_and_truncation(checkpoint):
    tokenizer = tokenizer_files.load(checkpoint).fast
    assert tokenizer.encode('cat cat cat').ids == [5, 5, 5]
    with pytest.raises(FileNotFoundError, match='has no tokenizer.json and no vocabulary'):
        tokenizer_files.load(checkpoint / '1_Pooling')


def test_tokenizer_from_a_vocabulary_alone(tmp_path):
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'cat']
    (tmp_path / 'vocab.txt').write_text('\n'.join(words) + '\n')
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    loaded = load_tokenizer(tmp_path)
    assert loaded.fast.encode('Cat').ids == [2, 5, 3]
    assert loaded.special == {'cls': 2, 'sep': 3, 'pad': 0, 'mask': 4}


def test_special_ids(checkpoint):
    usual = {'cls': 2, 'sep': 3, 'pad': 0, 'mask': 4}
    assert load_tokenizer(checkpoint).special == usual
    # What the files say goes first.
    edit_json(checkpoint / 'tokenizer_config.json', cls_token='cat', sep_token='cat')
    assert load_tokenizer(checkpoint).special == usual | {'cls': 5, 'sep': 5}
    edit_json(checkpoint / 'tokenizer_config.json', mask_token='<blank>')
    assert load_tokenizer(checkpoint).special['mask'] == 6  # Added, as transformers does.


def test_an_index_counts_only_where_the_weights_are_not_in_one_file(checkpoint):
    """As in transformers; it may be left from an earlier save."""
    index = checkpoint / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'x': 'model-00001-of-00002.safetensors'}}))
    assert_params(pretrained.read_pretrained(checkpoint))


def test_two_tensors_of_one_parameter_are_refused(checkpoint):
    edit_tensors(checkpoint, lambda t: t | {f'bert.{QUERY}': t[QUERY] * 2})
    with pytest.raises(ValueError, match=f"has two tensors '{QUERY}', of which one name begins"):
        pretrained.read_pretrained(checkpoint)


def test_adapters_are_refused(checkpoint):
    (checkpoint / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match='an adapter .PEFT. that jdkd does not apply; merge it'):
        pretrained.read_pretrained(checkpoint)


@pytest.mark.parametrize('file', ['chat_template.jinja', 'tokenizer_config.json'])
def test_texts_that_would_be_messages_of_a_chat_are_refused(checkpoint, file):
    (checkpoint / 'modules.json').unlink(missing_ok=True)
    pretrained.read_pretrained(checkpoint)
    (checkpoint / file).write_text('{"chat_template": "{{ messages[0].content }}"}')
    with pytest.raises(ValueError, match='has a chat template and no modules.json'):
        pretrained.read_pretrained(checkpoint)


@pytest.mark.parametrize('architectures', [None, ...])
def test_a_classifier_may_name_no_architecture(checkpoint, architectures):
    head = {'classifier.weight': np.ones((1, 8), np.float32), 'classifier.bias': np.ones(1, 'f')}
    edit_json(checkpoint / 'config.json', architectures=architectures)
    assert not pretrained.read_pretrained(checkpoint).classifies
    edit_tensors(checkpoint, lambda t: t | head)
    assert pretrained.read_pretrained(checkpoint).classifies
    (checkpoint / 'model.safetensors').unlink()
    assert not pretrained.read_architectures(checkpoint, tensors=False)[0].classifies


@pytest.mark.parametrize('file', ['model.safetensors', 'config.json', 'tokenizer.json'])
def test_pointers_of_git_lfs_are_told_from_damage(checkpoint, file):
    (checkpoint / file).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4d\n')
    with pytest.raises(ValueError, match=f'{file} is a pointer of Git LFS .* run "git lfs pull"'):
        pretrained.read_pretrained(checkpoint)
        load_tokenizer(checkpoint)


@pytest.mark.parametrize('file', ['modules.json', 'config_sentence_transformers.json'])
def test_links_to_nothing_are_not_missing_files(checkpoint, file):
    """Without either, the checkpoint would load and mean something else."""
    (checkpoint / file).unlink()
    (checkpoint / file).symlink_to('../../blobs/gone')
    with pytest.raises(ValueError, match=f'{file} is a link to no file where a JSON file belongs'):
        pretrained.read_pretrained(checkpoint)
    (checkpoint / file).unlink()
    (checkpoint / file).mkdir()
    with pytest.raises(ValueError, match=f'{file} is a directory where a JSON file belongs'):
        pretrained.read_pretrained(checkpoint)
