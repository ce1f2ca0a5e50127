"""Weights out: directories that sentence-transformers and transformers load."""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from jdkd.models import modules_json
from jdkd.models.config import TransformerConfig
from jdkd.models.cross_encoder import CrossEncoder, head_shapes
from jdkd.models.dual_encoder import POOLINGS, DualEncoder, tower
from jdkd.models.families import FAMILIES, Slot, slot
from jdkd.models.transformer import param_shapes
from jdkd.runtime import checkpoint_files as files_lib
from jdkd.tokens import tokenizer_files

MARKER = 'jdkd_export.json'
_FORMAT_VERSION = 1


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
        params: Its parameters; see `dual_encoder.tower` for untied towers, which become a Router.
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
    copied = [
        file
        for name in tokenizer_files.FILES
        if (file := pathlib.Path(tokenizer_dir, name)).is_file()
    ]
    if not copied:
        raise FileNotFoundError(
            f'{tokenizer_dir} has no tokenizer files ({", ".join(tokenizer_files.FILES)}).'
        )
    encoders = ['']
    if isinstance(model, CrossEncoder):
        files = _cross_encoder(model, params)
    else:
        untied = 'transformer' not in params
        towers = {
            name: modules_json.folders(model, name if untied else None)
            for name in (modules_json.ROUTES if untied else ('passage',))
        }
        encoders = [folders['Transformer'] for folders in towers.values()]
        prompts = {'query_prompt': query_prompt, 'passage_prompt': passage_prompt}
        files = modules_json.files(model, untied=untied, max_length=max_length, **prompts)
        for name, folders in towers.items():
            files |= _dual_encoder(model, tower(params, name), folders)
    told = files_lib.read_json(pathlib.Path(tokenizer_dir, 'tokenizer_config.json')) or {}
    for folder in encoders:
        path = os.path.join(folder, 'tokenizer_config.json')
        files[path] = told | {'model_max_length': max_length}
    files[MARKER] = {'format_version': _FORMAT_VERSION}

    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f'.{target.name}.tmp')
    shutil.rmtree(scratch, ignore_errors=True)  # Of an export that was killed.
    new = scratch / 'new'
    new.mkdir(parents=True)
    try:
        for folder in encoders:
            (new / folder).mkdir(exist_ok=True)
            for file in copied:
                shutil.copyfile(file, new / folder / file.name)
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
            target.rename(scratch / 'old')
        new.rename(target)
    finally:
        shutil.rmtree(scratch)


def _dual_encoder(
    model: DualEncoder, params: Mapping[str, Any], folders: Mapping[str, str]
) -> dict[str, Any]:
    """Content of config.json and of each file of tensors of one tower, by path."""
    if model.pooling not in POOLINGS:
        raise ValueError(
            f'pooling={model.pooling!r} cannot be exported; use one of {", ".join(POOLINGS)}.'
        )
    config, encoder = model.transformer, folders['Transformer']
    files = {
        os.path.join(encoder, 'config.json'): _encoder_config(config),
        os.path.join(encoder, 'model.safetensors'): _to_tensors(config, params['transformer']),
    }
    if model.projection is not None:
        shapes = {'projection/kernel': (config.hidden_size, model.projection.out_dim)}
        if model.projection.bias:
            shapes['projection/bias'] = (model.projection.out_dim,)
        files[os.path.join(folders['Dense'], 'model.safetensors')] = _stacked(
            {'projection': params['projection']}, shapes, {'projection': 'linear'}
        )
    return files


def _cross_encoder(model: CrossEncoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a sequence classifier."""
    if model.head != 'linear':
        raise ValueError(
            f'a cross-encoder with head={model.head!r} cannot be exported, because no other '
            "library has such a head; train it with head='linear'."
        )
    head = {name: value for name, value in params.items() if name != 'transformer'}
    labels = [f'LABEL_{i}' for i in range(model.num_labels)]
    content = _encoder_config(model.transformer, labels)
    # Else CrossEncoder.predict would squash the logits with a sigmoid. Version 4 is the first to
    # read this.
    content['sentence_transformers'] = {
        'activation_fn': 'torch.nn.modules.linear.Identity',
        'version': '4.0.0',
    }
    tensors = _to_tensors(model.transformer, params['transformer'], head)
    return {'config.json': content, 'model.safetensors': tensors}


def _to_tensors(
    config: TransformerConfig, params: Mapping[str, Any], head: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by name, contiguous float32; a sequence classifier's with a head."""
    family = FAMILIES[config.family]
    tensors = _stacked(params, param_shapes(config), family.modules)
    if head is None:
        for name, fields in family.unused.items():
            tensors[name] = np.zeros([getattr(config, field) for field in fields], np.float32)
        return tensors
    shapes = head_shapes(config, len(head['classifier']['bias']))
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
