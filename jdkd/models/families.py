"""Model families of the Hugging Face hub, as data: what they call things, where they differ.

A family needs code only where its config.json says something in a way of its own: a pair of
functions, `read` and `write`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jdkd.models.config import Disentangled, RelativeBias, Rotary, TransformerConfig


class Slot(NamedTuple):
    """Where a parameter is in a checkpoint: part of a tensor whose first axis stacks `parts`."""

    name: str
    part: int = 0
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class Family:
    """What one family of models calls things in a Hugging Face checkpoint.

    Attributes:
        architecture: The encoder's class, for config.json.
        classifier: The sequence classifier's class, whose `head` we read.
        prefix: What a tensor's name may begin with, if saved from a model with a head.
        modules: Path of our module -> name of theirs, or a `Slot`; `{i}` is the layer.
        head: The same for `CrossEncoder(head='linear')`, under the whole name.
        fields: Field of `TransformerConfig` -> key of config.json.
        defaults: What else the family's `TransformerConfig` has, also where config.json lacks a
            key of `fields`.
        fixed: Keys of config.json that may have this one value only.
        read: From config.json to more fields. Raises ValueError with what it cannot be.
        write: From the config to more keys of config.json.
        ignored: Regexes, on the whole name, of tensors that are not needed.
        unused: Shape, in config fields, of tensors that `architecture` has and no embedding
            needs. They are exported as zeros: transformers would warn that they are missing.
        separators: [SEP] tokens between the two texts of a pair.
        segments: Whether the second text of a pair has token type 1.
        dropout_first: Whether the classifier drops out before its first dense layer too.
    """

    architecture: str
    classifier: str
    prefix: str
    modules: Mapping[str, str | Slot]
    head: Mapping[str, str]
    fields: Mapping[str, str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda raw: {}
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    ignored: Sequence[str] = ()
    unused: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    separators: int = 1
    segments: bool = False
    dropout_first: bool = False


_FIELDS = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'hidden_size',
    'num_layers': 'num_hidden_layers',
    'num_heads': 'num_attention_heads',
    'intermediate_size': 'intermediate_size',
    'max_positions': 'max_position_embeddings',
    'type_vocab_size': 'type_vocab_size',
    'layer_norm_eps': 'layer_norm_eps',
    'activation': 'hidden_act',
    'pad_id': 'pad_token_id',
}
_MODULES = {
    'embeddings/word': 'embeddings.word_embeddings',
    'embeddings/position': 'embeddings.position_embeddings',
    'embeddings/token_type': 'embeddings.token_type_embeddings',
    'embeddings/norm': 'embeddings.LayerNorm',
    'layer_{i}/attention/query': 'encoder.layer.{i}.attention.self.query',
    'layer_{i}/attention/key': 'encoder.layer.{i}.attention.self.key',
    'layer_{i}/attention/value': 'encoder.layer.{i}.attention.self.value',
    'layer_{i}/attention/output': 'encoder.layer.{i}.attention.output.dense',
    'layer_{i}/attention_norm': 'encoder.layer.{i}.attention.output.LayerNorm',
    'layer_{i}/ffn/up': 'encoder.layer.{i}.intermediate.dense',
    'layer_{i}/ffn/down': 'encoder.layer.{i}.output.dense',
    'layer_{i}/ffn_norm': 'encoder.layer.{i}.output.LayerNorm',
}
_POOLER = {
    'pooler.dense.weight': ('hidden_size', 'hidden_size'),
    'pooler.dense.bias': ('hidden_size',),
}
_ABSOLUTE = {'position_embedding_type': 'absolute', 'is_decoder': False}
_IGNORED = (r'embeddings\.(position|token_type)_ids', r'pooler\..*')
_TWO_LAYER_HEAD = {'pooler': 'classifier.dense', 'classifier': 'classifier.out_proj'}


def _without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _read_offset(raw: Mapping[str, Any]) -> dict[str, Any]:
    # fairseq counts positions from the one after the padding's.
    offset = (1 if raw.get('pad_token_id') is None else raw['pad_token_id']) + 1
    return {
        'position_offset': offset,
        'max_positions': raw.get('max_position_embeddings', 512) - offset,
    }


def _write_offset(config: TransformerConfig) -> dict[str, Any]:
    return {'max_position_embeddings': config.max_positions + config.position_offset}


def _read_deberta(raw: Mapping[str, Any]) -> dict[str, Any]:
    terms = raw.get('pos_att_type') or ()
    terms = terms.lower().split('|') if isinstance(terms, str) else terms
    terms = tuple(sorted(term.strip() for term in terms))
    if not set(terms) <= {'c2p', 'p2c'}:
        raise ValueError(f'pos_att_type={terms}; only c2p and p2c are supported')
    if not raw.get('relative_attention'):
        raise ValueError('relative_attention=False; only true is supported')
    if raw.get('pooler_hidden_size', raw.get('hidden_size')) != raw.get('hidden_size'):
        raise ValueError(
            f'pooler_hidden_size={raw["pooler_hidden_size"]}; only hidden_size is supported'
        )
    span = raw.get('max_relative_positions', -1)
    return {
        'embedding_size': raw.get('embedding_size'),
        'relative': Disentangled(
            num_buckets=max(raw.get('position_buckets', -1), 0),
            max_distance=span if span > 0 else raw.get('max_position_embeddings', 512),
            terms=terms,
            share_key=raw.get('share_att_key', False),
            norm='layer_norm' in raw.get('norm_rel_ebd', 'none').lower(),
        ),
    }


def _write_deberta(config: TransformerConfig) -> dict[str, Any]:
    relative = config.relative
    return {
        'relative_attention': True,
        'position_buckets': relative.num_buckets or -1,
        'max_relative_positions': relative.max_distance,
        'pos_att_type': list(relative.terms),
        'share_att_key': relative.share_key,
        'norm_rel_ebd': 'layer_norm' if relative.norm else 'none',
        'pooler_hidden_size': config.hidden_size,
        # There is no null for "as wide as the states".
        **({'embedding_size': config.embedding_size} if config.embedding_size else {}),
    }


_LAYER_TYPES = ('full_attention', 'sliding_attention')


def _read_modernbert(raw: Mapping[str, Any]) -> dict[str, Any]:
    every = raw.get('global_attn_every_n_layers', 3)
    types = raw.get('layer_types') or [
        _LAYER_TYPES[bool(i % every)] for i in range(raw.get('num_hidden_layers', 0))
    ]
    if not set(types) <= set(_LAYER_TYPES):
        raise ValueError(f'layer_types={types}; only {" and ".join(_LAYER_TYPES)} are supported')
    usual = Rotary()
    old = (
        raw.get('global_rope_theta', usual.theta),
        raw.get('local_rope_theta', usual.local_theta),
    )
    thetas = []
    for kind, theta in zip(_LAYER_TYPES, old, strict=True):
        rope = (raw.get('rope_parameters') or {}).get(kind) or {}
        if raw.get('rope_scaling') or rope.get('rope_type', 'default') != 'default':
            raise ValueError('scaled rotary positions; only the default rope_type is supported')
        thetas.append(float(rope.get('rope_theta', theta)))
    return {
        'relative': Rotary(*thetas),
        'local_layers': tuple(i for i, kind in enumerate(types) if kind == _LAYER_TYPES[1]),
        'window': raw.get('local_attention', 128) // 2,
    }


def _write_modernbert(config: TransformerConfig) -> dict[str, Any]:
    thetas = (config.relative.theta, config.relative.local_theta)
    return {
        'rope_parameters': {
            kind: {'rope_type': 'default', 'rope_theta': theta}
            for kind, theta in zip(_LAYER_TYPES, thetas, strict=True)
        },
        'layer_types': [_LAYER_TYPES[i in config.local_layers] for i in range(config.num_layers)],
        'local_attention': 2 * config.window,
        # Those of the defaults would be out of a small vocabulary.
        **{f'{role}_token_id': None for role in ('bos', 'eos', 'cls', 'sep')},
    }


_ROBERTA = Family(
    architecture='RobertaModel',
    classifier='RobertaForSequenceClassification',
    prefix='roberta.',
    modules=_MODULES,
    head=_TWO_LAYER_HEAD,
    fields=_without(_FIELDS, 'max_positions'),
    defaults={'pad_id': 1},
    fixed=_ABSOLUTE,
    read=_read_offset,
    write=_write_offset,
    ignored=(*_IGNORED, r'lm_head\..*'),
    unused=_POOLER,
    separators=2,
    dropout_first=True,
)

FAMILIES = {
    'bert': Family(
        architecture='BertModel',
        classifier='BertForSequenceClassification',
        prefix='bert.',
        modules=_MODULES,
        head={'pooler': 'bert.pooler.dense', 'classifier': 'classifier'},
        fields=_FIELDS,
        fixed=_ABSOLUTE,
        ignored=(*_IGNORED, r'cls\..*'),
        unused=_POOLER,
        segments=True,
    ),
    # Sanh et al. 2019, https://arxiv.org/abs/1910.01108
    'distilbert': Family(
        architecture='DistilBertModel',
        classifier='DistilBertForSequenceClassification',
        prefix='distilbert.',
        modules={
            **{key: name for key, name in _MODULES.items() if key.startswith('embeddings/')},
            'layer_{i}/attention/query': 'transformer.layer.{i}.attention.q_lin',
            'layer_{i}/attention/key': 'transformer.layer.{i}.attention.k_lin',
            'layer_{i}/attention/value': 'transformer.layer.{i}.attention.v_lin',
            'layer_{i}/attention/output': 'transformer.layer.{i}.attention.out_lin',
            'layer_{i}/attention_norm': 'transformer.layer.{i}.sa_layer_norm',
            'layer_{i}/ffn/up': 'transformer.layer.{i}.ffn.lin1',
            'layer_{i}/ffn/down': 'transformer.layer.{i}.ffn.lin2',
            'layer_{i}/ffn_norm': 'transformer.layer.{i}.output_layer_norm',
        },
        head={'pooler': 'pre_classifier', 'classifier': 'classifier'},
        fields={
            'vocab_size': 'vocab_size',
            'hidden_size': 'dim',
            'num_layers': 'n_layers',
            'num_heads': 'n_heads',
            'intermediate_size': 'hidden_dim',
            'max_positions': 'max_position_embeddings',
            'activation': 'activation',
            'pad_id': 'pad_token_id',
        },
        defaults={'type_vocab_size': 0, 'head_activation': 'relu'},
        ignored=(*_IGNORED, r'vocab_(transform|layer_norm|projector)\..*'),
    ),
    # Liu et al. 2019, https://arxiv.org/abs/1907.11692
    'roberta': _ROBERTA,
    # Conneau et al. 2020, https://arxiv.org/abs/1911.02116
    'xlm-roberta': dataclasses.replace(
        _ROBERTA,
        architecture='XLMRobertaModel',
        classifier='XLMRobertaForSequenceClassification',
    ),
    # Clark et al. 2020, https://arxiv.org/abs/2003.10555
    'electra': Family(
        architecture='ElectraModel',
        classifier='ElectraForSequenceClassification',
        prefix='electra.',
        modules={**_MODULES, 'embeddings/project': 'embeddings_project'},
        head=_TWO_LAYER_HEAD,
        fields={**_FIELDS, 'embedding_size': 'embedding_size'},
        defaults={'embedding_size': 128, 'head_activation': 'gelu'},
        fixed=_ABSOLUTE,
        write=lambda config: {'embedding_size': config.embedding_size or config.hidden_size},
        ignored=(*_IGNORED, r'(generator|discriminator)_(predictions|lm_head)\..*'),
        segments=True,
        dropout_first=True,
    ),
    # Song et al. 2020, https://arxiv.org/abs/2004.09297
    'mpnet': Family(
        architecture='MPNetModel',
        classifier='MPNetForSequenceClassification',
        prefix='mpnet.',
        modules={
            **_MODULES,
            'positions/relative': 'encoder.relative_attention_bias',
            'layer_{i}/attention/query': 'encoder.layer.{i}.attention.attn.q',
            'layer_{i}/attention/key': 'encoder.layer.{i}.attention.attn.k',
            'layer_{i}/attention/value': 'encoder.layer.{i}.attention.attn.v',
            'layer_{i}/attention/output': 'encoder.layer.{i}.attention.attn.o',
            'layer_{i}/attention_norm': 'encoder.layer.{i}.attention.LayerNorm',
        },
        head=_TWO_LAYER_HEAD,
        fields=_without(_FIELDS, 'max_positions', 'type_vocab_size', 'pad_id'),
        defaults={'type_vocab_size': 0, 'pad_id': 1, 'relative': RelativeBias()},
        # In transformers these two are constants, whatever config.json says.
        fixed={'relative_attention_num_buckets': 32, 'pad_token_id': 1},
        read=_read_offset,
        write=_write_offset,
        ignored=(*_IGNORED, r'lm_head\..*'),
        unused=_POOLER,
        separators=2,
        dropout_first=True,
    ),
    # He et al. 2021, https://arxiv.org/abs/2006.03654 and https://arxiv.org/abs/2111.09543
    'deberta-v2': Family(
        architecture='DebertaV2Model',
        classifier='DebertaV2ForSequenceClassification',
        prefix='deberta.',
        modules={
            **_MODULES,
            'embeddings/project': 'embeddings.embed_proj',
            'positions/relative': 'encoder.rel_embeddings',
            'positions/norm': 'encoder.LayerNorm',
            'layer_{i}/attention/query': 'encoder.layer.{i}.attention.self.query_proj',
            'layer_{i}/attention/key': 'encoder.layer.{i}.attention.self.key_proj',
            'layer_{i}/attention/value': 'encoder.layer.{i}.attention.self.value_proj',
            'layer_{i}/attention/position_key': 'encoder.layer.{i}.attention.self.pos_key_proj',
            'layer_{i}/attention/position_query': 'encoder.layer.{i}.attention.self.pos_query_proj',
        },
        head={'pooler': 'pooler.dense', 'classifier': 'classifier'},
        fields={
            **_FIELDS,
            'position_embeddings': 'position_biased_input',
            'head_activation': 'pooler_hidden_act',
        },
        defaults={
            'type_vocab_size': 0,
            'layer_norm_eps': 1e-7,
            'project_first': True,
            'head_activation': 'gelu',
        },
        # The xlarge models of version 2 have a convolution after the first layer.
        fixed={'conv_kernel_size': 0},
        read=_read_deberta,
        write=_write_deberta,
        ignored=(
            *_IGNORED,
            r'(lm_predictions|mask_predictions|cls)\..*',
            r'(embeddings\.)?position_embeddings\.weight',
        ),
        segments=True,
    ),
    # Warner et al. 2024, https://arxiv.org/abs/2412.13663
    'modernbert': Family(
        architecture='ModernBertModel',
        classifier='ModernBertForSequenceClassification',
        prefix='model.',
        modules={
            'embeddings/word': 'embeddings.tok_embeddings',
            'embeddings/norm': 'embeddings.norm',
            'layer_{i}/attention/query': Slot('layers.{i}.attn.Wqkv', 0, 3),
            'layer_{i}/attention/key': Slot('layers.{i}.attn.Wqkv', 1, 3),
            'layer_{i}/attention/value': Slot('layers.{i}.attn.Wqkv', 2, 3),
            'layer_{i}/attention/output': 'layers.{i}.attn.Wo',
            'layer_{i}/attention_norm': 'layers.{i}.attn_norm',
            'layer_{i}/ffn/gate': Slot('layers.{i}.mlp.Wi', 0, 2),
            'layer_{i}/ffn/up': Slot('layers.{i}.mlp.Wi', 1, 2),
            'layer_{i}/ffn/down': 'layers.{i}.mlp.Wo',
            'layer_{i}/ffn_norm': 'layers.{i}.mlp_norm',
            'final_norm': 'final_norm',
        },
        head={'pooler': 'head.dense', 'pooler_norm': 'head.norm', 'classifier': 'classifier'},
        fields={
            **_without(_FIELDS, 'type_vocab_size'),
            'layer_norm_eps': 'norm_eps',
            'activation': 'hidden_activation',
            'head_pooling': 'classifier_pooling',
            'head_activation': 'classifier_activation',
        },
        defaults={
            'max_positions': 8192,
            'type_vocab_size': 0,
            'layer_norm_eps': 1e-5,
            'pad_id': 50283,
            'position_embeddings': False,
            'use_bias': False,
            'norm_first': True,
            'gated': True,
            'head_activation': 'gelu',
        },
        fixed={
            key: False for key in ('attention_bias', 'mlp_bias', 'norm_bias', 'classifier_bias')
        },
        read=_read_modernbert,
        write=_write_modernbert,
        ignored=(*_IGNORED, r'(head|decoder)\..*'),
    ),
}


def slot(path: str, modules: Mapping[str, str | Slot]) -> Slot:
    """Where the parameter at `path` is in a checkpoint, given `Family.modules`."""
    module, leaf = path.rsplit('/', 1)
    layer = re.match(r'layer_(\d+)/', module)
    found = modules[re.sub(r'^layer_\d+/', 'layer_{i}/', module)]
    found = Slot(found) if isinstance(found, str) else found
    name = found.name.format(i=layer and layer[1])
    return found._replace(name=f'{name}.{"bias" if leaf == "bias" else "weight"}')
