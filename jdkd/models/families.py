"""Model families of the Hugging Face hub: names of tensors and config fields, as data.

A family needs code only if its config.json has fields in a form of its own; see `config_json`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jdkd.models import config_json
from jdkd.models.config import RelativeBias, TransformerConfig


class Slot(NamedTuple):
    """Location of a parameter in a checkpoint: one of the `parts` stacked on a tensor's axis 0."""

    name: str
    part: int = 0
    parts: int = 1


@dataclasses.dataclass(frozen=True)
class Family:
    """Names that a model family uses in Hugging Face checkpoints."""

    architecture: str  # The encoder's class, for config.json.
    classifier: str  # The sequence classifier's class, whose `head` we read.
    prefix: str  # Of tensor names in checkpoints of models with a head.
    modules: Mapping[str, str | Slot]  # Our path -> their name, or a `Slot`; `{i}` is the layer.
    head: Mapping[str, str]  # The same for `CrossEncoder(head='linear')`, with full names.
    fields: Mapping[str, str]  # Field of `TransformerConfig` -> key of config.json.
    # Further fields of the config, and values for keys of `fields` that config.json lacks.
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Keys of config.json for which only this value is supported.
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Maps config.json to further fields. Raises ValueError for unsupported values.
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda raw: {}
    # Maps the config to further keys of config.json.
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    ignored: Sequence[str] = ()  # Regexes that match the full names of tensors we do not need.
    # Shape, as config fields, of tensors that `architecture` has but embeddings do not need.
    # Exported as zeros, since transformers warns about missing tensors.
    unused: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    separators: int = 1  # Number of [SEP] tokens between the two texts of a pair.
    segments: bool = False  # Whether the second text of a pair has token type 1.
    dropout_first: bool = False  # Whether the classifier also drops out before its pooler.


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


_ROBERTA = Family(
    architecture='RobertaModel',
    classifier='RobertaForSequenceClassification',
    prefix='roberta.',
    modules=_MODULES,
    head=_TWO_LAYER_HEAD,
    fields=_without(_FIELDS, 'max_positions'),
    defaults={'pad_id': 1},
    fixed=_ABSOLUTE,
    read=config_json.read_offset,
    write=config_json.write_offset,
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
            **{path: name for path, name in _MODULES.items() if path.startswith('embeddings/')},
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
            **_without(_FIELDS, 'type_vocab_size', 'layer_norm_eps'),
            'hidden_size': 'dim',
            'num_layers': 'n_layers',
            'num_heads': 'n_heads',
            'intermediate_size': 'hidden_dim',
            'activation': 'activation',
        },
        defaults={'type_vocab_size': 0, 'head_activation': 'relu'},
        ignored=(*_IGNORED, r'vocab_(transform|layer_norm|projector)\..*'),
    ),
    # Liu et al. 2019, https://arxiv.org/abs/1907.11692
    'roberta': _ROBERTA,
    # Conneau et al. 2020, https://arxiv.org/abs/1911.02116
    'xlm-roberta': dataclasses.replace(
        _ROBERTA, architecture='XLMRobertaModel', classifier='XLMRobertaForSequenceClassification'
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
    'mpnet': dataclasses.replace(
        _ROBERTA,
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
        fields=_without(_FIELDS, 'max_positions', 'type_vocab_size', 'pad_id'),
        defaults={'type_vocab_size': 0, 'pad_id': 1, 'relative': RelativeBias()},
        # transformers ignores config.json and uses these constants.
        fixed={'relative_attention_num_buckets': 32, 'pad_token_id': 1},
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
        # The xlarge models of version 2 add a convolution after the first layer.
        fixed={'conv_kernel_size': 0},
        read=config_json.read_deberta,
        write=config_json.write_deberta,
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
        fixed={f'{part}_bias': False for part in ('attention', 'mlp', 'norm', 'classifier')},
        read=config_json.read_modernbert,
        write=config_json.write_modernbert,
        ignored=(*_IGNORED, r'(head|decoder)\..*'),
    ),
}


def slot(path: str, modules: Mapping[str, str | Slot]) -> Slot:
    """Returns the location in a checkpoint of the parameter at `path`, given `Family.modules`."""
    module, leaf = path.rsplit('/', 1)
    layer = re.match(r'layer_(\d+)/', module)
    target = modules[re.sub(r'^layer_\d+/', 'layer_{i}/', module)]
    target = Slot(target) if isinstance(target, str) else target
    name = target.name.format(i=layer and layer[1])
    return target._replace(name=f'{name}.{"bias" if leaf == "bias" else "weight"}')
