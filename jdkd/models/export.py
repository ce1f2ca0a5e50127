"""Weights out: a directory that sentence-transformers and transformers load."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from jdkd.models.config import TransformerConfig
from jdkd.models.cross_encoder import head_shapes
from jdkd.models.dual_encoder import POOLINGS
from jdkd.models.families import FAMILIES, Slot, slot
from jdkd.models.transformer import param_shapes

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
    config: TransformerConfig,
    params: Mapping[str, Any],
    pooling: str,
    normalize: bool,
    tokenizer_dir: str | os.PathLike,
    max_length: int,
    model_card: str,
) -> None:
    """Writes a dual-encoder for `SentenceTransformer(directory)`, all of it or nothing.

    The files are in the layout that sentence-transformers reads since version 2, and float32.

    Args:
        directory: Where to; replaced if it is empty or an earlier export.
        config: Sizes of the encoder.
        params: Parameters of `Transformer(config)`.
        pooling: 'mean' or 'cls'.
        normalize: Whether embeddings have unit length; users then compare them by cosine, else
            by inner product.
        tokenizer_dir: Whose tokenizer files are copied as they are.
        max_length: Longest text, in tokens; longer ones are truncated.
        model_card: Text of README.md.

    Raises:
        FileExistsError: if the directory holds something that is no export of ours.
        FileNotFoundError: if there are no tokenizer files.
        ValueError: if an argument is not supported, the parameters are not those of `config`, or
            one of them is not finite.
    """
    target = pathlib.Path(directory)
    if target.exists() and not (
        target.is_dir() and ((target / MARKER).is_file() or not any(target.iterdir()))
    ):
        raise FileExistsError(
            f'{target} exists and was not exported by jdkd (it has no {MARKER}); choose another '
            'directory or remove it.'
        )
    if pooling not in POOLINGS:
        raise ValueError(f'pooling={pooling!r} cannot be exported; use {" or ".join(POOLINGS)}.')
    if not 0 < max_length <= config.max_positions:
        raise ValueError(
            f'max_length={max_length} is not between 1 and the max_positions='
            f'{config.max_positions} of the model.'
        )
    tensors = _to_tensors(config, params)
    tokenizer_files = [
        file for name in TOKENIZER_FILES if (file := pathlib.Path(tokenizer_dir, name)).is_file()
    ]
    if not tokenizer_files:
        raise FileNotFoundError(
            f'{tokenizer_dir} has no tokenizer files ({", ".join(TOKENIZER_FILES)}).'
        )

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.name}-') as scratch:
        new = pathlib.Path(scratch, 'new')
        new.mkdir()
        for name, content in _configs(config, pooling, normalize, max_length).items():
            (new / name).parent.mkdir(exist_ok=True)
            text = json.dumps(content, indent=2, sort_keys=True) + '\n'
            (new / name).write_text(text, encoding='utf-8')
        for file in tokenizer_files:
            shutil.copyfile(file, new / file.name)
        (new / 'README.md').write_text(model_card, encoding='utf-8')
        # transformers refuses safetensors that do not name a format.
        safetensors.numpy.save_file(tensors, new / 'model.safetensors', metadata={'format': 'pt'})
        if target.exists():
            target.rename(pathlib.Path(scratch, 'old'))
        new.rename(target)


def _to_tensors(
    config: TransformerConfig, params: Mapping[str, Any], head: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by name, contiguous float32; a sequence classifier's with a head."""
    family = FAMILIES[config.family]
    if head is None:
        tensors = _stacked(params, param_shapes(config), family.modules)
        for name, fields in family.unused.items():
            tensors[name] = np.zeros([getattr(config, field) for field in fields], np.float32)
        return tensors
    shapes = head_shapes(config, len(head['classifier']['bias']))
    tensors = _stacked(params, param_shapes(config), family.modules)
    tensors = {family.prefix + name: value for name, value in tensors.items()}
    return tensors | _stacked(head, shapes, family.head)


def _stacked(
    params: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    modules: Mapping[str, str | Slot],
) -> dict[str, np.ndarray]:
    """Checked parameters under the names of `modules`, in the other layout."""
    flat = traverse_util.flatten_dict(jax.device_get(dict(params)), sep='/')
    found = {path: np.shape(value) for path, value in flat.items()}
    if found != shapes:
        path = sorted(p for p in found | shapes if found.get(p) != shapes.get(p))[0]
        raise ValueError(
            f'The parameters are not those of the config: {path} has shape {found.get(path)}, '
            f'expected {shapes.get(path)} (None: there is none); give the config they were made '
            'with.'
        )
    stacks = {}
    for path, value in flat.items():
        value = np.asarray(value, np.float32)
        if not np.isfinite(value).all():
            raise ValueError(f'Parameter {path} is not finite; export an earlier checkpoint.')
        name, part, _ = slot(path, modules)
        stacks.setdefault(name, {})[part] = value.T if path.endswith('/kernel') else value
    return {
        name: np.ascontiguousarray(np.concatenate([parts[i] for i in sorted(parts)]))
        for name, parts in stacks.items()
    }


def _encoder_config(config: TransformerConfig, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Content of config.json; a sequence classifier's with labels."""
    family = FAMILIES[config.family]
    content = {
        'architectures': [family.classifier if labels else family.architecture],
        'model_type': config.family,
        'dtype': 'float32',
        **family.fixed,
        **{key: getattr(config, ours) for ours, key in family.fields.items()},
        **family.write(config),
    }
    if labels:
        content['id2label'] = {str(i): label for i, label in enumerate(labels)}
        content['label2id'] = {label: i for i, label in enumerate(labels)}
    return content


def _configs(
    config: TransformerConfig, pooling: str, normalize: bool, max_length: int
) -> dict[str, Any]:
    """Content of each JSON file by its name."""
    modules = [('', 'Transformer'), ('1_Pooling', 'Pooling')]
    if normalize:
        modules.append(('2_Normalize', 'Normalize'))
    return {
        'config.json': _encoder_config(config),
        'modules.json': [
            {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
            for i, (path, kind) in enumerate(modules)
        ],
        '1_Pooling/config.json': {
            'word_embedding_dimension': config.hidden_size,
            'pooling_mode_cls_token': pooling == 'cls',
            'pooling_mode_mean_tokens': pooling == 'mean',
            'pooling_mode_max_tokens': False,
            'pooling_mode_mean_sqrt_len_tokens': False,
        },
        'sentence_bert_config.json': {'max_seq_length': max_length, 'do_lower_case': False},
        'config_sentence_transformers.json': {
            'similarity_fn_name': 'cosine' if normalize else 'dot',
        },
        MARKER: {'format_version': _FORMAT_VERSION},
    }
