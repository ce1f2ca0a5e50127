"""Reads and writes the modules that sentence-transformers puts around an encoder.

modules.json lists the modules of a checkpoint (encoder, pooling, projection, normalisation) in
order, each with its own folder. For untied towers the first module is a Router, with a route for
queries and one for passages. We read the spellings of versions 2 to 6 and write those of versions 2
to 5, which every version loads (Routers since version 5), but for a length of queries or passages
of their own, which version 6 introduced.
Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jdkd.config.systems import POOLINGS
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.models.sentence_config import ModelConfig, Settings, read_model_config, read_settings
from jdkd.runtime.checkpoint_files import join_inside, open_tensors, read_json, reading
from jdkd.runtime.messages import brief, shown
from jdkd.tokens import tokenizer_files

_TYPES = 'sentence_transformers.models'
ROUTES = {'query': 'query', 'passage': 'document'}  # Tower -> route of a Router.
# Keys of a module's config.json for which only this value is supported.
_FIXED = {
    'include_prompt': True,
    'use_residual': False,
    'module_input_name': 'sentence_embedding',
    'module_output_name': 'sentence_embedding',
}
# Key of `dual_encoder.PROJECTION_ACTIVATIONS` -> class of torch.
_ACTIVATIONS = {
    'tanh': 'torch.nn.modules.activation.Tanh',  # The default of Dense.
    'identity': 'torch.nn.modules.linear.Identity',
    'relu': 'torch.nn.modules.activation.ReLU',
    'gelu': 'torch.nn.modules.activation.GELU',
}


@dataclasses.dataclass(frozen=True)
class Modules:
    """The modules of a checkpoint."""

    encoder: pathlib.Path  # Directory of the encoder and its tokenizer.
    pooling: str | None = None  # One of `POOLINGS`; None if no file tells.
    projection: Projection | None = None
    # `kernel` `[D, out_dim]` and `bias` `[out_dim]` of the projection, float32.
    projection_params: dict[str, np.ndarray] | None = None
    normalize: bool = False  # Whether embeddings have unit length.
    settings: Settings = Settings()  # Of the encoder.
    model_config: ModelConfig = ModelConfig()  # Of all modules together.
    query: 'Modules | None' = None  # Queries' own tower, if any; all else is then of passages.


def read(root: pathlib.Path) -> Modules:
    """Reads modules.json and the modules in it; a directory without it is only an encoder.

    Raises:
        FileNotFoundError: if a module lacks a file.
        ValueError: if `DualEncoder` does not support the modules, or a file is damaged or names
            another outside the directory.
    """
    file = root / 'modules.json'
    modules = read_json(file, list)
    if modules is None:  # Like sentence-transformers, which then reads no other file of its.
        tokenizer = read_json(root / 'tokenizer_config.json') or {}
        if tokenizer.get('chat_template') or (root / 'chat_template.jinja').exists():
            raise ValueError(
                f'{root} has a chat template and no modules.json: sentence-transformers embeds its '
                'texts as messages of a chat, which jdkd does not; remove the template, or give '
                'the checkpoint a modules.json.'
            )
        return Modules(root)
    config = read_model_config(root / 'config_sentence_transformers.json')
    with reading(file):
        chain = [(_kind(m['type']), join_inside(root, m['path'], file)) for m in modules]
    if config.reads_pairs and len(chain) > 1:
        raise ValueError(
            f'{root}/config_sentence_transformers.json has model_type=CrossEncoder, but {file} has '
            f'the modules {brief(", ".join(kind for kind, _ in chain))}; remove one of the two.'
        )
    if chain and chain[0][0] in ('Router', 'Asym'):
        routes = _routes(chain[0][1])
        query, passage = (
            dataclasses.replace(_chain(root, [*routes[route], *chain[1:]]), model_config=config)
            for route in ROUTES.values()
        )
        return dataclasses.replace(passage, query=query)
    return dataclasses.replace(_chain(root, chain), model_config=config)


def folders(model: DualEncoder, tower: str | None = None) -> dict[str, str]:
    """Returns the folder to write each module to, in the order of application.

    `tower` is 'query' or 'passage' for untied towers, None for tied ones.
    """
    has = {'Dense': model.projection is not None, 'Normalize': model.normalize}
    kinds = ['Transformer', 'Pooling', *(kind for kind in has if has[kind])]
    if tower is not None:
        return {kind: f'{ROUTES[tower]}_{i}_{kind}' for i, kind in enumerate(kinds)}
    return {kind: f'{i}_{kind}' if i else '' for i, kind in enumerate(kinds)}


def files(
    model: DualEncoder,
    *,
    untied: bool,
    query_length: int,
    passage_length: int,
    query_prompt: str,
    passage_prompt: str,
) -> dict[str, Any]:
    """Returns the content of each JSON file by its path, for `read`.

    Lengths are in tokens. If `untied`, queries and passages have a tower each.
    """
    modules = [('Router', '')] if untied else [*folders(model).items()]
    contents: dict[str, Any] = {
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
    lengths = {'query': query_length, 'document': passage_length}
    if not untied:
        longest = max(lengths.values())
        # Keys that sentence-transformers knows since version 6, and older versions refuse.
        own = {f'{route}_length': n for route, n in lengths.items() if n < longest}
        return contents | _module_files(model, folders(model), {'max_seq_length': longest, **own})
    towers = {route: folders(model, tower) for tower, route in ROUTES.items()}
    types = {}
    for route, paths in towers.items():
        types |= {path: f'{_TYPES}.{kind}' for kind, path in paths.items()}
        contents |= _module_files(model, paths, {'max_seq_length': lengths[route]})
    contents['router_config.json'] = {
        'types': types,
        'structure': {route: list(paths.values()) for route, paths in towers.items()},
        # Texts of no given kind are encoded as passages.
        'parameters': {'default_route': ROUTES['passage'], 'allow_empty_key': True},
    }
    return contents


def _module_files(
    model: DualEncoder, paths: dict[str, str], lengths: dict[str, int]
) -> dict[str, Any]:
    """Returns the content of the JSON file of each module of a tower by its path."""
    width = model.transformer.hidden_size
    contents = {
        os.path.join(paths['Transformer'], 'sentence_bert_config.json'): {
            **lengths,
            'do_lower_case': False,
        },
        os.path.join(paths['Pooling'], 'config.json'): {
            'word_embedding_dimension': width,
            'pooling_mode_cls_token': model.pooling == 'cls',
            'pooling_mode_mean_tokens': model.pooling == 'mean',
            'pooling_mode_max_tokens': model.pooling == 'max',
            'pooling_mode_mean_sqrt_len_tokens': False,
        },
    }
    if model.projection is not None:
        contents[os.path.join(paths['Dense'], 'config.json')] = {
            'in_features': width,
            'out_features': model.projection.out_dim,
            'bias': model.projection.bias,
            'activation_function': _ACTIVATIONS[model.projection.activation],
        }
    return contents


def _routes(folder: pathlib.Path) -> dict[str, list[tuple[str, pathlib.Path]]]:
    """Returns kind and folder of each module of a Router by route."""
    candidates = (folder / 'router_config.json', folder / 'config.json')
    file = next((file for file in candidates if file.is_file()), None)
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
        return {
            route: [(kinds[name], join_inside(folder, name, file)) for name in names]
            for route, names in routes.items()
        }


def _chain(root: pathlib.Path, chain: Sequence[tuple[str, pathlib.Path]]) -> Modules:
    """Reads the modules of one tower, given kind and folder of each."""
    kinds, folders = [kind for kind, _ in chain], dict(chain)
    # Dropout does nothing but in training, and normalising twice no more than once.
    if not re.fullmatch(
        'Transformer( Pooling( Dropout)*( Dense( Dropout)*)?( Normalize( Dropout)*)*)?',
        ' '.join(kinds),
    ):
        raise ValueError(
            f'{root}/modules.json has the modules {brief(", ".join(kinds)) or "[]"}; supported '
            'are Transformer, Pooling, Dense and Normalize, in this order, each once, the last two '
            'optional, and Dropout after Pooling.'
        )
    settings = read_settings(folders['Transformer'])
    if settings.do_lower_case:
        _check_lower_case(folders['Transformer'])
    pooling = _pooling(folders['Pooling']) if 'Pooling' in folders else None
    projection, params = _projection(folders['Dense']) if 'Dense' in folders else (None, None)
    if 'Normalize' in folders:
        _module_config(folders['Normalize'])
    return Modules(
        encoder=folders['Transformer'],
        pooling=pooling,
        projection=projection,
        projection_params=params,
        normalize='Normalize' in folders,
        settings=settings,
    )


def _kind(type_name: str) -> str:
    """Returns the class name of a sentence-transformers module; other libraries' names in full."""
    library, _, path = type_name.partition('.')
    return path.rsplit('.', 1)[-1] if library == 'sentence_transformers' else type_name


def _module_config(folder: pathlib.Path) -> dict[str, Any]:
    raw = read_json(folder / 'config.json') or {}
    for key, value in _FIXED.items():
        if raw.get(key) not in (None, value):
            raise ValueError(
                f'{folder}/config.json has {key}={shown(raw[key])}; only {value!r} is supported; '
                'give a checkpoint with that value.'
            )
    return raw


def _pooling(folder: pathlib.Path) -> str:
    raw = _module_config(folder)
    if not raw:
        raise FileNotFoundError(f'{folder} has no config.json; fetch the checkpoint again.')
    modes = raw.get('pooling_mode')  # Since version 6; before, one flag per mode.
    if modes is None:
        flags = [key for key, value in raw.items() if key.startswith('pooling_mode_') and value]
        modes = [re.sub('^pooling_mode_|_tokens?$', '', flag) for flag in flags] or ['mean']
    modes = [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f'{folder}/config.json asks for pooling {brief(" and ".join(modes)) or "none"}; '
            f'supported is one of {", ".join(POOLINGS)}.'
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
        expected: dict[str, tuple[int, ...]] = {
            'linear.weight': (raw['out_features'], raw['in_features'])
        }
    if projection.bias:
        expected['linear.bias'] = (raw['out_features'],)
    tensors = open_tensors(file)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != expected:
        raise ValueError(
            f'{file} has tensors of shapes {shown(shapes)}, but its config.json implies '
            f'{shown(expected)}; fetch the checkpoint again.'
        )
    # Kernels are [out, in] there and [in, out] here.
    params = {'kernel': np.ascontiguousarray(tensors['linear.weight'].read().T, np.float32)}
    if projection.bias:
        params['bias'] = tensors['linear.bias'].read().astype(np.float32)
    return projection, params


def _check_lower_case(encoder: pathlib.Path) -> None:
    """Checks that the tokenizer lowercases texts, which sentence-transformers would do before."""
    normalizer = tokenizer_files.load(encoder).fast.normalizer
    if normalizer is None or normalizer.normalize_str('A') != 'a':
        raise ValueError(
            f'{encoder}/sentence_bert_config.json has do_lower_case=True, but the tokenizer keeps '
            'case; give it a lowercase normalizer in tokenizer.json.'
        )
