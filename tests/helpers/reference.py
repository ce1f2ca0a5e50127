"""Small random models of transformers, one a variant of each family, and what they compute.

For tests, the recorder and benchmarks.parity. Nothing here needs PyTorch until it is called.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from jdkd.models import export, pretrained
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import mean_pool, safe_normalize
from jdkd.models.families import FAMILIES, slot
from jdkd.models.transformer import Transformer

RECORDED = pathlib.Path(__file__).parents[1] / 'models/recorded'

_SIZES = {
    'vocab_size': 64,
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'intermediate_size': 48,
    'max_position_embeddings': 160,
    'pad_token_id': 0,
}
_FAIRSEQ = {'pad_token_id': 1, 'max_position_embeddings': 162, 'layer_norm_eps': 1e-5}
_DEBERTA = {'relative_attention': True, 'pos_att_type': 'p2c|c2p', 'layer_norm_eps': 1e-7}
# Name -> family, and keys of config.json that differ from _SIZES.
VARIANTS = {
    'bert': ('bert', {}),
    'distilbert': ('distilbert', {}),
    'roberta': ('roberta', _FAIRSEQ | {'type_vocab_size': 1}),
    'xlm-roberta': ('xlm-roberta', _FAIRSEQ | {'type_vocab_size': 1}),
    'electra': ('electra', {'embedding_size': 24}),
    'electra-unprojected': ('electra', {'embedding_size': 32, 'hidden_act': 'gelu_new'}),
    'mpnet': ('mpnet', _FAIRSEQ),
    'deberta-v2': (
        'deberta-v2',
        _DEBERTA | {'embedding_size': 24, 'type_vocab_size': 2, 'pooler_hidden_act': 'tanh'},
    ),
    'deberta-v3': (
        'deberta-v2',
        _DEBERTA
        | {
            'position_buckets': 16,
            'share_att_key': True,
            'norm_rel_ebd': 'layer_norm',
            'position_biased_input': False,
        },
    ),
    'modernbert': ('modernbert', {'local_attention': 8}),
    'modernbert-mean': (
        'modernbert',
        {'local_attention': 16, 'global_attn_every_n_layers': 2, 'classifier_pooling': 'mean'},
    ),
}


def build(variant, *, num_labels=1, seed=0, **overrides):
    """A sequence classifier of transformers, with weights large enough to matter."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    family, changes = VARIANTS[variant]
    sizes = _SIZES | {'initializer_range': 0.2, 'num_labels': num_labels} | changes | overrides
    names = {'bos_token_id': None, 'eos_token_id': None}
    if family == 'modernbert':
        names |= {'cls_token_id': None, 'sep_token_id': None}
    config = transformers.AutoConfig.for_model(family, **sizes | names)
    if family == 'distilbert':
        config.hidden_dim = sizes['intermediate_size']
    model = transformers.AutoModelForSequenceClassification.from_config(
        config, attn_implementation='eager'
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Else biases are 0 and norms 1: nothing to mix up.
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def rows(lengths, *, pad_id=0, vocab=64, seed=0):
    """Token rows and token types of the given lengths, padded on the right."""
    rng = np.random.default_rng(seed)
    width = max(lengths)
    real = np.arange(width) < np.array(lengths)[:, None]
    tokens = np.where(real, rng.integers(2, vocab, real.shape), pad_id).astype(np.int32)
    types = real & (np.arange(width) >= np.array(lengths)[:, None] // 2)
    return tokens, types.astype(np.int32)


def theirs(model, tokens, types):
    """(states, logits) of transformers, as torch tensors."""
    import torch

    pad_id = model.config.pad_token_id
    inputs = {
        'input_ids': torch.tensor(tokens, dtype=torch.long),
        'attention_mask': torch.tensor(tokens != pad_id).long(),
    }
    if FAMILIES[model.config.model_type].segments:
        inputs['token_type_ids'] = torch.tensor(types, dtype=torch.long)
    return model.base_model(**inputs)[0], model(**inputs).logits


def cross_encoder(read):
    """(module, params) of a sequence classifier that was read."""
    model = CrossEncoder(read.config, 'linear', len(read.labels))
    return model, {'transformer': read.params, **read.head}


def ours(read, tokens, types):
    """(states, logits) of jdkd; logits are `[B, num_labels]`."""
    model, params = cross_encoder(read)
    seen = types if FAMILIES[read.config.family].segments else None
    states = jax.jit(Transformer(read.config).apply)({'params': read.params}, tokens, seen)
    logits = jax.jit(model.apply)({'params': params}, tokens, types)
    return states, logits.reshape(len(tokens), -1)


def embeddings(states, mask):
    """Unit-length means of the states."""
    return np.asarray(safe_normalize(mean_pool(jnp.asarray(states), jnp.asarray(mask))))


def gradients(model, read, tokens, types, target):
    """Gradients of a listwise KL divergence: {path: (ours, theirs)}.

    Args:
        model: Of transformers, with one label.
        read: The same, read by jdkd.
        tokens: `[Q * N, L]`.
        types: `[Q * N, L]`.
        target: `[Q, N]` probabilities.
    """
    import torch

    model.zero_grad()
    logits = theirs(model, tokens, types)[1].reshape(target.shape)
    loss = torch.nn.functional.kl_div(
        torch.log_softmax(logits, -1), torch.tensor(target), reduction='batchmean'
    )
    loss.backward()
    module, params = cross_encoder(read)

    def our_loss(params):
        logits = module.apply({'params': params}, tokens, types).reshape(target.shape)
        terms = target * (np.log(target) - jax.nn.log_softmax(logits))
        return jnp.mean(jnp.sum(terms, axis=-1))

    value, grads = jax.jit(jax.value_and_grad(our_loss))(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    family = FAMILIES[read.config.family]
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    pairs = {}
    for path, grad in traverse_util.flatten_dict(grads, sep='/').items():
        inner = path.removeprefix('transformer/')
        place = slot(inner, family.head if inner == path else family.modules)
        name = place.name if inner == path else family.prefix + place.name
        part = np.split(found[name], place.parts)[place.part]
        pairs[path] = (np.asarray(grad), part.T if path.endswith('/kernel') else part)
    return pairs


def recorded(name, directory):
    """Writes a recorded checkpoint into a directory; what its model computed, by name."""
    arrays = dict(np.load(RECORDED / f'{name}.npz'))
    content = json.loads((RECORDED / f'{name}.json').read_text())
    tensors = {key[2:]: value for key, value in arrays.items() if key.startswith('w:')}
    (directory / 'config.json').write_text(json.dumps(content))
    safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
    return {key: value for key, value in arrays.items() if not key.startswith('w:')}


def read_live(model, directory):
    """A model of transformers as jdkd reads what it saves."""
    model.save_pretrained(directory)
    return pretrained.read_pretrained(directory)


def write(directory, config, params, head=None, labels=()):
    """An export without its tokenizer."""
    content = export._encoder_config(config, labels)
    (directory / 'config.json').write_text(json.dumps(content))
    tensors = export._to_tensors(config, params, head)
    file = directory / 'model.safetensors'
    safetensors.numpy.save_file(tensors, file, metadata={'format': 'pt'})
