"""What sentence-transformers keeps around an encoder: pooling, projection, unit length, prompts.

modules.json lists the modules of a directory in the order in which they are applied, each with a
folder of its own. Read are the spellings of versions 2 to 5 and of 6; written are those of the
former, which every version loads.
Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

from jdkd.models.dual_encoder import POOLINGS, DualEncoder, Projection

_ORDER = ('Transformer', 'Pooling', 'Dense', 'Normalize')
# Where the tensors of a projection are written: it comes third wherever there is one.
DENSE_WEIGHTS = '2_Dense/model.safetensors'
# Keys of a module's config.json that may have this one value only.
_FIXED = {
    'include_prompt': True,
    'use_residual': False,
    'module_input_name': 'sentence_embedding',
    'module_output_name': 'sentence_embedding',
}
# Key of `dual_encoder.PROJECTION_ACTIVATIONS` -> class of torch.
_ACTIVATIONS = {
    'tanh': 'torch.nn.modules.activation.Tanh',  # First: what a Dense that does not tell has.
    'identity': 'torch.nn.modules.linear.Identity',
    'relu': 'torch.nn.modules.activation.ReLU',
    'gelu': 'torch.nn.modules.activation.GELU',
}


@dataclasses.dataclass(frozen=True)
class Modules:
    """What a directory says of the way from token states to embeddings.

    Attributes:
        encoder: Where the encoder and its tokenizer are.
        pooling: One of `dual_encoder.POOLINGS`; None where no file tells.
        projection: The dense layer after pooling, if there is one.
        projection_params: Its `kernel` `[D, out_dim]` and `bias` `[out_dim]`, float32.
        normalize: Whether embeddings get unit length.
        query_prompt: What is put before queries.
        passage_prompt: What is put before passages.
    """

    encoder: pathlib.Path
    pooling: str | None = None
    projection: Projection | None = None
    projection_params: dict[str, np.ndarray] | None = None
    normalize: bool = False
    query_prompt: str = ''
    passage_prompt: str = ''


def read(root: pathlib.Path) -> Modules:
    """Reads modules.json and all that it names; a directory without one is an encoder alone.

    Raises:
        FileNotFoundError: if a projection has no safetensors.
        ValueError: if the modules do something that `DualEncoder` cannot.
    """
    prompts = (read_json(root / 'config_sentence_transformers.json') or {}).get('prompts') or {}
    names = ('document', 'passage', 'corpus')  # Of passages; as `encode_document` looks for them.
    found = {
        'query_prompt': prompts.get('query') or '',
        'passage_prompt': next(filter(None, map(prompts.get, names)), ''),
    }
    modules = read_json(root / 'modules.json')
    if modules is None:
        return Modules(encoder=root, **found)
    kinds = [_kind(module['type']) for module in modules]
    if not re.fullmatch('Transformer( Pooling( Dense)?( Normalize)?)?', ' '.join(kinds)):
        raise ValueError(
            f'{root}/modules.json has the modules {", ".join(kinds)}; supported are Transformer, '
            'Pooling, Dense and Normalize, in this order, each once, the last two optional.'
        )
    folders = {kind: root / module['path'] for kind, module in zip(kinds, modules, strict=True)}
    _check_lower_case(folders['Transformer'])
    if 'Pooling' in folders:
        found['pooling'] = _pooling(folders['Pooling'])
    if 'Dense' in folders:
        found['projection'], found['projection_params'] = _projection(folders['Dense'])
    if 'Normalize' in folders:
        _module_config(folders['Normalize'])
    return Modules(encoder=folders['Transformer'], normalize='Normalize' in folders, **found)


def files(
    model: DualEncoder, *, max_length: int, query_prompt: str, passage_prompt: str
) -> dict[str, Any]:
    """What `read` reads, but for tensors: content of each JSON file by its path.

    Args:
        model: The dual-encoder.
        max_length: Longest text, in tokens.
        query_prompt: What is put before queries.
        passage_prompt: What is put before passages.
    """
    width = model.transformer.hidden_size
    has = {'Dense': model.projection is not None, 'Normalize': model.normalize}
    kinds = [kind for kind in _ORDER if has.get(kind, True)]
    paths = {kind: f'{i}_{kind}' if i else '' for i, kind in enumerate(kinds)}
    found = {
        'modules.json': [
            {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
            for i, (kind, path) in enumerate(paths.items())
        ],
        'sentence_bert_config.json': {'max_seq_length': max_length, 'do_lower_case': False},
        'config_sentence_transformers.json': {
            'prompts': {'query': query_prompt, 'document': passage_prompt},
            'default_prompt_name': None,
            'similarity_fn_name': 'cosine' if model.normalize else 'dot',
        },
        f'{paths["Pooling"]}/config.json': {
            'word_embedding_dimension': width,
            'pooling_mode_cls_token': model.pooling == 'cls',
            'pooling_mode_mean_tokens': model.pooling == 'mean',
            'pooling_mode_max_tokens': model.pooling == 'max',
            'pooling_mode_mean_sqrt_len_tokens': False,
        },
    }
    if model.projection is not None:
        found[f'{paths["Dense"]}/config.json'] = {
            'in_features': width,
            'out_features': model.projection.out_dim,
            'bias': model.projection.bias,
            'activation_function': _ACTIVATIONS[model.projection.activation],
        }
    return found


def read_json(file: pathlib.Path) -> Any:
    """The content of a JSON file, None where there is no such file."""
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None


def _kind(type_name: str) -> str:
    """`Pooling` in all spellings; the whole name of a class that is not sentence-transformers'."""
    library, _, path = type_name.partition('.')
    return path.rsplit('.', 1)[-1] if library == 'sentence_transformers' else type_name


def _module_config(folder: pathlib.Path) -> dict[str, Any]:
    raw = read_json(folder / 'config.json') or {}
    for key, value in _FIXED.items():
        if raw.get(key) not in (None, value):
            raise ValueError(
                f'{folder}/config.json has {key}={raw[key]!r}; only {value!r} is supported; '
                'give a checkpoint that was made so.'
            )
    return raw


def _pooling(folder: pathlib.Path) -> str:
    raw = _module_config(folder)
    modes = raw.get('pooling_mode')  # Since version 6; before, a flag a mode.
    if modes is None:
        flags = [key for key, value in raw.items() if key.startswith('pooling_mode_') and value]
        modes = [
            flag.removeprefix('pooling_mode_').replace('cls_token', 'cls').removesuffix('_tokens')
            for flag in flags
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f'{folder}/config.json asks for pooling {" and ".join(modes) or "of no kind"}; '
            f'supported is one of {", ".join(POOLINGS)}, alone: give a checkpoint with that.'
        )
    return modes[0]


def _projection(folder: pathlib.Path) -> tuple[Projection, dict[str, np.ndarray]]:
    raw = _module_config(folder)
    activation = raw.get('activation_function', _ACTIVATIONS['tanh'])
    ours = {path.rsplit('.', 1)[-1]: name for name, path in _ACTIVATIONS.items()}
    name = activation.rsplit('.', 1)[-1]
    if not activation.startswith('torch.') or name not in ours:
        raise ValueError(
            f'{folder}/config.json has activation_function={activation!r}; supported are '
            f'{", ".join(_ACTIVATIONS.values())}.'
        )
    file = folder / 'model.safetensors'
    if not file.is_file():
        raise FileNotFoundError(
            f'{folder} has no model.safetensors; where its weights are a pytorch_model.bin, '
            'convert them: load the model with sentence-transformers and save() it again.'
        )
    projection = Projection(raw['out_features'], raw.get('bias', True), ours[name])
    expected = {'linear.weight': (raw['out_features'], raw['in_features'])}
    if projection.bias:
        expected['linear.bias'] = (raw['out_features'],)
    tensors = safetensors.numpy.load_file(file)
    found = {name: value.shape for name, value in tensors.items()}
    if found != expected:
        raise ValueError(
            f'{file} has tensors of shapes {found}, but its config.json implies {expected}; fetch '
            'the checkpoint again.'
        )
    # Theirs is [out, in], ours [in, out].
    params = {'kernel': np.ascontiguousarray(tensors['linear.weight'].T, np.float32)}
    if projection.bias:
        params['bias'] = tensors['linear.bias'].astype(np.float32)
    return projection, params


def _check_lower_case(encoder: pathlib.Path) -> None:
    """sentence-transformers may lower the case of texts before the tokenizer sees them."""
    if not (read_json(encoder / 'sentence_bert_config.json') or {}).get('do_lower_case'):
        return
    file = encoder / 'tokenizer.json'
    normalizer = tokenizers.Tokenizer.from_file(str(file)).normalizer if file.is_file() else None
    if normalizer is None or normalizer.normalize_str('A') != 'a':
        raise ValueError(
            f'{encoder}/sentence_bert_config.json has do_lower_case=True, but the tokenizer keeps '
            'case; give it a lowercase normalizer in tokenizer.json.'
        )
