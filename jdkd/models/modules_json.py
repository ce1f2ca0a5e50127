"""What sentence-transformers keeps around an encoder: pooling, projection, unit length, prompts.

modules.json lists the modules of a directory in the order in which they are applied, each with a
folder of its own; a Router begins with modules for queries and others for passages: untied towers.
Read are the spellings of versions 2 to 5 and of 6; written are those of the former, which every
version loads (that knows the Router: since version 5).
Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jdkd.models.dual_encoder import POOLINGS, DualEncoder, Projection
from jdkd.runtime import checkpoint_files as files_lib
from jdkd.runtime.checkpoint_files import join_inside, read_json, reading
from jdkd.runtime.messages import brief, shown
from jdkd.tokens import tokenizer_files

_ORDER = ('Transformer', 'Pooling', 'Dense', 'Normalize')
_TYPES = 'sentence_transformers.models'
# Our towers as a Router calls its routes.
ROUTES = {'query': 'query', 'passage': 'document'}
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
        query: Where queries have a tower of their own, its modules; the rest is of passages.
    """

    encoder: pathlib.Path
    pooling: str | None = None
    projection: Projection | None = None
    projection_params: dict[str, np.ndarray] | None = None
    normalize: bool = False
    query_prompt: str = ''
    passage_prompt: str = ''
    query: 'Modules | None' = None


def read(root: pathlib.Path) -> Modules:
    """Reads modules.json and all that it names; a directory without one is an encoder alone.

    Raises:
        FileNotFoundError: if a projection has no safetensors.
        ValueError: if the modules do something that `DualEncoder` cannot, or a file is damaged or
            names another outside the directory.
    """
    found = _prompts(root / 'config_sentence_transformers.json')
    file = root / 'modules.json'
    modules = read_json(file, list)
    if modules is None:
        return Modules(encoder=root, **found)
    with reading(file):
        chain = [(_kind(m['type']), join_inside(root, m['path'], file)) for m in modules]
    if chain and chain[0][0] in ('Router', 'Asym'):
        routes = _routes(chain[0][1])
        query, passage = (
            dataclasses.replace(_chain(root, [*routes[route], *chain[1:]]), **found)
            for route in ROUTES.values()
        )
        return dataclasses.replace(passage, query=query)
    return dataclasses.replace(_chain(root, chain), **found)


def folders(model: DualEncoder, tower: str | None = None) -> dict[str, str]:
    """Where each module is written, in the order in which they are applied.

    Args:
        model: The dual-encoder.
        tower: 'query' or 'passage' of untied towers; None for tied ones.
    """
    has = {'Dense': model.projection is not None, 'Normalize': model.normalize}
    kinds = [kind for kind in _ORDER if has.get(kind, True)]
    if tower is not None:
        return {kind: f'{ROUTES[tower]}_{i}_{kind}' for i, kind in enumerate(kinds)}
    return {kind: f'{i}_{kind}' if i else '' for i, kind in enumerate(kinds)}


def files(
    model: DualEncoder, *, untied: bool, max_length: int, query_prompt: str, passage_prompt: str
) -> dict[str, Any]:
    """What `read` reads, but for tensors: content of each JSON file by its path.

    Args:
        model: The dual-encoder.
        untied: Whether queries and passages have a tower each.
        max_length: Longest text, in tokens.
        query_prompt: What is put before queries.
        passage_prompt: What is put before passages.
    """
    modules = [('Router', '')] if untied else [*folders(model).items()]
    found = {
        'modules.json': [
            {'idx': i, 'name': str(i), 'path': path, 'type': f'{_TYPES}.{kind}'}
            for i, (kind, path) in enumerate(modules)
        ],
        'config_sentence_transformers.json': {
            'prompts': {'query': query_prompt, 'document': passage_prompt},
            'default_prompt_name': None,
            'similarity_fn_name': 'cosine' if model.normalize else 'dot',
        },
    }
    if not untied:
        return found | _module_files(model, folders(model), max_length)
    towers = {route: folders(model, tower) for tower, route in ROUTES.items()}
    found['router_config.json'] = {
        'types': {
            path: f'{_TYPES}.{kind}' for paths in towers.values() for kind, path in paths.items()
        },
        'structure': {route: list(paths.values()) for route, paths in towers.items()},
        # What is said to be neither a query nor a passage is taken for a passage.
        'parameters': {'default_route': ROUTES['passage'], 'allow_empty_key': True},
    }
    for paths in towers.values():
        found |= _module_files(model, paths, max_length)
    return found


def _module_files(
    model: DualEncoder, paths: dict[str, str], max_length: int
) -> dict[str, dict[str, Any]]:
    """Content of the JSON file of each module of a tower, by its path."""
    width = model.transformer.hidden_size
    contents = {
        'Transformer': {'max_seq_length': max_length, 'do_lower_case': False},
        'Pooling': {
            'word_embedding_dimension': width,
            'pooling_mode_cls_token': model.pooling == 'cls',
            'pooling_mode_mean_tokens': model.pooling == 'mean',
            'pooling_mode_max_tokens': model.pooling == 'max',
            'pooling_mode_mean_sqrt_len_tokens': False,
        },
    }
    if model.projection is not None:
        contents['Dense'] = {
            'in_features': width,
            'out_features': model.projection.out_dim,
            'bias': model.projection.bias,
            'activation_function': _ACTIVATIONS[model.projection.activation],
        }
    names = {'Transformer': 'sentence_bert_config.json'}
    return {
        os.path.join(paths[kind], names.get(kind, 'config.json')): content
        for kind, content in contents.items()
    }


def _prompts(file: pathlib.Path) -> dict[str, str]:
    told = (read_json(file) or {}).get('prompts') or {}
    names = ('document', 'passage', 'corpus')  # Of passages; as `encode_document` looks for them.
    with reading(file):
        query, passage = told.get('query'), next(filter(None, map(told.get, names)), None)
    for prompt in (query, passage):
        if not isinstance(prompt or '', str):
            raise ValueError(f'{file} has the prompt {shown(prompt)}; a prompt is a string.')
    return {'query_prompt': query or '', 'passage_prompt': passage or ''}


def _routes(folder: pathlib.Path) -> dict[str, list[tuple[str, pathlib.Path]]]:
    """Kind and folder of each module of a Router's routes, by the name of the route."""
    file = next(
        (f for name in ('router_config.json', 'config.json') if (f := folder / name).is_file()),
        None,
    )
    if file is None:
        raise FileNotFoundError(f'{folder} has no router_config.json; fetch the checkpoint again.')
    raw = read_json(file)
    with reading(file):
        routes, mappings = dict(raw['structure']), raw['parameters'].get('route_mappings')
        kinds = {name: _kind(kind) for name, kind in raw['types'].items()}
    if sorted(routes) != sorted(ROUTES.values()) or mappings:
        raise ValueError(
            f'{file} has the routes {brief(", ".join(routes))}'
            f'{" with route_mappings" if mappings else ""}; supported are '
            f'{" and ".join(ROUTES.values())}, without mappings.'
        )
    with reading(file):
        return {
            route: [(kinds[name], join_inside(folder, name, file)) for name in names]
            for route, names in routes.items()
        }


def _chain(root: pathlib.Path, chain: Sequence[tuple[str, pathlib.Path]]) -> Modules:
    """The modules of one tower, by kind and folder."""
    kinds, folders = [kind for kind, _ in chain], dict(chain)
    if not re.fullmatch('Transformer( Pooling( Dense)?( Normalize)?)?', ' '.join(kinds)):
        raise ValueError(
            f'{root}/modules.json has the modules {brief(", ".join(kinds))}; supported are '
            'Transformer, Pooling, Dense and Normalize, in this order, each once, the last two '
            'optional.'
        )
    found = {}
    _check_lower_case(folders['Transformer'])
    if 'Pooling' in folders:
        found['pooling'] = _pooling(folders['Pooling'])
    if 'Dense' in folders:
        found['projection'], found['projection_params'] = _projection(folders['Dense'])
    if 'Normalize' in folders:
        _module_config(folders['Normalize'])
    return Modules(encoder=folders['Transformer'], normalize='Normalize' in folders, **found)


def _kind(type_name: str) -> str:
    """`Pooling` in all spellings; the whole name of a class that is not sentence-transformers'."""
    library, _, path = type_name.partition('.')
    return path.rsplit('.', 1)[-1] if library == 'sentence_transformers' else type_name


def _module_config(folder: pathlib.Path) -> dict[str, Any]:
    raw = read_json(folder / 'config.json') or {}
    for key, value in _FIXED.items():
        if raw.get(key) not in (None, value):
            raise ValueError(
                f'{folder}/config.json has {key}={shown(raw[key])}; only {value!r} is supported; '
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
    modes = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f'{folder}/config.json asks for pooling {brief(" and ".join(modes)) or "of no kind"}; '
            f'supported is one of {", ".join(POOLINGS)}, alone: give a checkpoint with that.'
        )
    return modes[0]


def _projection(folder: pathlib.Path) -> tuple[Projection, dict[str, np.ndarray]]:
    raw = _module_config(folder)
    activation = str(raw.get('activation_function', _ACTIVATIONS['tanh']))
    ours = {path.rsplit('.', 1)[-1]: name for name, path in _ACTIVATIONS.items()}
    name = activation.rsplit('.', 1)[-1]
    if not activation.startswith('torch.') or name not in ours:
        raise ValueError(
            f'{folder}/config.json has activation_function={shown(activation)}; supported are '
            f'{", ".join(_ACTIVATIONS.values())}.'
        )
    file = folder / 'model.safetensors'
    if not file.is_file():
        raise FileNotFoundError(
            f'{folder} has no model.safetensors; where its weights are a pytorch_model.bin, '
            'convert them: load the model with sentence-transformers and save() it again.'
        )
    with reading(folder / 'config.json'):
        projection = Projection(raw['out_features'], bool(raw.get('bias', True)), ours[name])
        expected = {'linear.weight': (raw['out_features'], raw['in_features'])}
    if projection.bias:
        expected['linear.bias'] = (raw['out_features'],)
    tensors = files_lib.open_tensors(file)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(
            f'{file} has tensors of shapes {shown(found)}, but its config.json implies '
            f'{shown(expected)}; fetch the checkpoint again.'
        )
    # Theirs is [out, in], ours [in, out].
    params = {'kernel': np.ascontiguousarray(tensors['linear.weight'].read().T, np.float32)}
    if projection.bias:
        params['bias'] = tensors['linear.bias'].read().astype(np.float32)
    return projection, params


def _check_lower_case(encoder: pathlib.Path) -> None:
    """sentence-transformers may lower the case of texts before the tokenizer sees them."""
    if not (read_json(encoder / 'sentence_bert_config.json') or {}).get('do_lower_case'):
        return
    file = encoder / 'tokenizer.json'
    normalizer = tokenizer_files.read_tokenizer_json(file).normalizer if file.is_file() else None
    if normalizer is None or normalizer.normalize_str('A') != 'a':
        raise ValueError(
            f'{encoder}/sentence_bert_config.json has do_lower_case=True, but the tokenizer keeps '
            'case; give it a lowercase normalizer in tokenizer.json.'
        )
