"""Weights out: directories that sentence-transformers and transformers load."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from jdkd.models import modules_json
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import POOLINGS, DualEncoder
from jdkd.models.transformer import FAMILIES, TransformerConfig, param_shapes, tensor_name

MARKER = 'jdkd_export.json'
_FORMAT_VERSION = 1

TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.txt',
    'vocab.json',
    'merges.txt',
)


def export_sentence_transformer(
    directory: str | os.PathLike,
    *,
    model: DualEncoder | CrossEncoder,
    params: Mapping[str, Any],
    tokenizer_dir: str | os.PathLike,
    max_length: int,
    model_card: str,
    query_prompt: str = '',
    passage_prompt: str = '',
) -> None:
    """Writes a directory for sentence-transformers and transformers, all of it or nothing.

    A dual-encoder is for `SentenceTransformer(directory)`, in the layout that is read since
    version 2; a cross-encoder is a sequence classifier with one label for
    `CrossEncoder(directory)`, which then gives our raw logits, without a sigmoid. All in float32.

    Args:
        directory: Where to; replaced if it is empty or an earlier export.
        model: The module.
        params: Its parameters.
        tokenizer_dir: Whose tokenizer files are copied, with `max_length` as their limit.
        max_length: Longest text, or pair of texts, in tokens; longer ones are truncated.
        model_card: Text of README.md.
        query_prompt: What a dual-encoder sees before queries, for `encode_query`.
        passage_prompt: What it sees before passages, for `encode_document`.

    Raises:
        FileExistsError: if the directory holds something that is no export of ours.
        FileNotFoundError: if there are no tokenizer files.
        ValueError: if the model cannot be expressed there, the parameters are not its own, or one
            of them is not finite.
    """
    target = pathlib.Path(directory)
    if target.exists() and not (
        target.is_dir() and ((target / MARKER).is_file() or not any(target.iterdir()))
    ):
        raise FileExistsError(
            f'{target} exists and was not exported by jdkd (it has no {MARKER}); choose another '
            'directory or remove it.'
        )
    config = model.transformer
    if not 0 < max_length <= config.max_positions:
        raise ValueError(
            f'max_length={max_length} is not between 1 and the max_positions='
            f'{config.max_positions} of the model.'
        )
    tokenizer_files = [
        file for name in TOKENIZER_FILES if (file := pathlib.Path(tokenizer_dir, name)).is_file()
    ]
    if not tokenizer_files:
        raise FileNotFoundError(
            f'{tokenizer_dir} has no tokenizer files ({", ".join(TOKENIZER_FILES)}).'
        )
    if isinstance(model, CrossEncoder):
        files = _cross_encoder(model, params)
    else:
        prompts = {'query_prompt': query_prompt, 'passage_prompt': passage_prompt}
        files = _dual_encoder(model, params)
        files |= modules_json.files(model, max_length=max_length, **prompts)
    told = modules_json.read_json(pathlib.Path(tokenizer_dir, 'tokenizer_config.json')) or {}
    files['tokenizer_config.json'] = told | {'model_max_length': max_length}
    files[MARKER] = {'format_version': _FORMAT_VERSION}

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.name}-') as scratch:
        new = pathlib.Path(scratch, 'new')
        new.mkdir()
        for file in tokenizer_files:
            shutil.copyfile(file, new / file.name)
        for name, content in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            if name.endswith('.safetensors'):
                # transformers refuses safetensors that do not name a format.
                safetensors.numpy.save_file(content, new / name, metadata={'format': 'pt'})
            else:
                text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + '\n'
                (new / name).write_text(text, encoding='utf-8')
        (new / 'README.md').write_text(model_card, encoding='utf-8')
        if target.exists():
            target.rename(pathlib.Path(scratch, 'old'))
        new.rename(target)


def _dual_encoder(model: DualEncoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """Content of config.json and of each file of tensors, by path."""
    if model.pooling not in POOLINGS:
        raise ValueError(
            f'pooling={model.pooling!r} cannot be exported; use one of {", ".join(POOLINGS)}.'
        )
    files = {
        **_configs(model.transformer),
        'model.safetensors': _to_tensors(model.transformer, params['transformer']),
    }
    if model.projection is not None:
        dense = {'projection': params['projection']}
        files[modules_json.DENSE_WEIGHTS] = _dense_tensors(dense, {'projection': 'linear'})
    return files


def _cross_encoder(model: CrossEncoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a sequence classifier."""
    if model.head != 'linear':
        raise ValueError(
            f'a cross-encoder with head={model.head!r} cannot be exported, because no other '
            "library has such a head; train it with head='linear'."
        )
    family = FAMILIES[model.transformer.family]
    tensors = {
        family.prefix + name: value
        for name, value in _to_tensors(model.transformer, params['transformer']).items()
        if name not in family.unused
    }
    head = {name: value for name, value in params.items() if name != 'transformer'}
    for name, value in _dense_tensors(head, family.head).items():
        # A layer that the plain encoder has too, such as BERT's pooler, is part of it here.
        tensors[family.prefix + name if name in family.unused else name] = value
    files = _configs(model.transformer)
    files['config.json'] |= {
        'architectures': [family.classifier],
        'id2label': {'0': 'LABEL_0'},
        'label2id': {'LABEL_0': 0},
        # Else CrossEncoder.predict would squash the logits with a sigmoid.
        'sentence_transformers': {
            'activation_fn': 'torch.nn.modules.linear.Identity',
            'version': '4.0.0',  # The first that reads this.
        },
    }
    return {**files, 'model.safetensors': tensors}


def _dense_tensors(params: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Theirs, by name, of dense layers beside the encoder, given {our path: their module}."""
    tensors = {}
    for path, value in traverse_util.flatten_dict(jax.device_get(dict(params)), sep='/').items():
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f'Parameter {path} is not finite; export an earlier checkpoint.')
        value = value.T if path.endswith('/kernel') else value
        tensors[tensor_name(path, modules)] = np.ascontiguousarray(value)
    return tensors


def _to_tensors(config: TransformerConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by name, contiguous float32."""
    flat = traverse_util.flatten_dict(jax.device_get(dict(params)), sep='/')
    shapes = param_shapes(config)
    found = {path: np.shape(value) for path, value in flat.items()}
    if found != shapes:
        path = sorted(p for p in found | shapes if found.get(p) != shapes.get(p))[0]
        raise ValueError(
            f'The parameters are not those of the config: {path} has shape {found.get(path)}, '
            f'expected {shapes.get(path)} (None: there is none); give the config they were made '
            'with.'
        )
    family = FAMILIES[config.family]
    tensors = {}
    for path, value in flat.items():
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f'Parameter {path} is not finite; export an earlier checkpoint.')
        value = value.T if path.endswith('/kernel') else value
        name = tensor_name(path, family.modules)
        tensors[name] = np.ascontiguousarray(value)
    for name, fields in family.unused.items():
        tensors[name] = np.zeros([getattr(config, field) for field in fields], np.float32)
    return tensors


def _configs(config: TransformerConfig) -> dict[str, Any]:
    """Content of each JSON file of the encoder by its name."""
    family = FAMILIES[config.family]
    return {
        'config.json': {
            'architectures': [family.architecture],
            'model_type': config.family,
            'dtype': 'float32',
            **family.fixed,
            **{key: getattr(config, ours) for ours, key in family.fields.items()},
        },
    }
