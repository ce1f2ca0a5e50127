"""Writes models as directories that sentence-transformers and transformers load."""

import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import logging
from flax import traverse_util

from jdkd.config.systems import FORMATS, POOLINGS
from jdkd.models import modules_json
from jdkd.models.config import TransformerConfig
from jdkd.models.cross_encoder import CrossEncoder, head_shapes
from jdkd.models.dual_encoder import DualEncoder, tower
from jdkd.models.families import FAMILIES, Slot, slot
from jdkd.models.transformer import param_shapes
from jdkd.runtime import files as fs
from jdkd.runtime.checkpoint_files import read_json
from jdkd.runtime.messages import brief, shown
from jdkd.tokens import tokenizer_files

MARKER = 'jdkd_export.json'
# Files that `onnx_export` writes.
_ONNX = re.compile(r'onnx/((query|document)/)?model(_quantized)?\.onnx')
# Keys of tokenizer_config.json in which transformers notes where it found the files.
_LOCAL_PATHS = ('name_or_path', 'special_tokens_map_file', 'tokenizer_file')


def export_sentence_transformer(
    directory: str | os.PathLike,
    *,
    model: DualEncoder | CrossEncoder,
    params: Mapping[str, Any],
    tokenizer_dir: str | os.PathLike,
    max_length: int,
    model_card: str,
    query_length: int | None = None,
    passage_length: int | None = None,
    query_prompt: str = '',
    passage_prompt: str = '',
    passage_format: str = 'joined',
    set_aside: Callable[[str], Any] | None = None,
) -> None:
    """Writes a directory for sentence-transformers and transformers, completely or not at all.

    `SentenceTransformer(directory)` loads a dual-encoder, in the layout that is read since version
    2, if queries and passages have one length, and since version 6 otherwise.
    `CrossEncoder(directory)` loads a cross-encoder, as a sequence classifier whose scores are
    our logits without a sigmoid. All tensors are float32.

    Args:
        directory: The directory; left as it is if it is this export, replaced if it is empty or
            an earlier one.
        model, params: The module and its parameters; untied towers (see `dual_encoder.tower`)
            become a Router.
        tokenizer_dir: Directory of the tokenizer files to copy; `max_length` becomes their limit.
        max_length: Maximum length of a text, or pair of texts, in tokens; longer ones are cut.
        model_card: Text of README.md.
        query_length, passage_length: The same for queries and passages of a dual-encoder, the
            longer of which is `max_length`; None for `max_length`.
        query_prompt, passage_prompt: Texts that `encode_query` and `encode_document` put first.
        passage_format: For `read_passage_format`; other libraries have no place for it.
        set_aside: Moves the directory away, for the reason that it is given, where files in it were
            changed or added since it was exported; None to refuse that.

    Raises:
        FileExistsError: if the directory holds anything but an export by jdkd, or a file that was
            changed or added since without `set_aside`, or the hidden one beside it, in which
            exports are written, is not jdkd's.
        FileNotFoundError: if there are no tokenizer files.
        ValueError: if the format cannot express the model, the parameters do not match it, or a
            parameter is not finite.
    """
    target = pathlib.Path(directory).absolute()  # `.` has no name.
    _clean(target)
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
    lengths = {
        'query_length': query_length or max_length,
        'passage_length': passage_length or max_length,
    }
    if max(lengths.values()) != max_length:
        raise ValueError(f'max_length={max_length} is not the longer of {lengths}.')
    if isinstance(model, CrossEncoder):
        files, encoders = _cross_encoder(model, params), ['']
    else:
        prompts = {'query_prompt': query_prompt, 'passage_prompt': passage_prompt}
        files, encoders = _dual_encoder(model, params, **lengths, **prompts)
    tokenizer_config = read_json(pathlib.Path(tokenizer_dir, 'tokenizer_config.json')) or {}
    tokenizer_config |= {'model_max_length': max_length}
    # Older checkpoints name the class there alone, and the export has a config.json of its own.
    kind = (read_json(pathlib.Path(tokenizer_dir, 'config.json')) or {}).get('tokenizer_class')
    if kind is not None:
        tokenizer_config.setdefault('tokenizer_class', kind)
    for key in _LOCAL_PATHS:
        tokenizer_config.pop(key, None)
    copies = [pathlib.Path(tokenizer_dir, name) for name in tokenizer_files.FILES]
    copies = [path for path in copies if path.is_file()]
    if not copies:
        raise FileNotFoundError(
            f'{tokenizer_dir} has no tokenizer files ({", ".join(tokenizer_files.FILES)}).'
        )
    marker = {'format_version': 1, 'passage_format': passage_format}
    for folder in encoders:
        files |= {os.path.join(folder, file.name): file for file in copies}
        files[os.path.join(folder, 'tokenizer_config.json')] = tokenizer_config
    _write(target, files | {'README.md': model_card}, marker, set_aside)


def read_passage_format(directory: str | os.PathLike) -> str | None:
    """Format in which the model of an export reads passages; None of any other checkpoint."""
    file = pathlib.Path(directory, MARKER)
    content = read_json(file) or {}
    value = content.get('passage_format')
    if value is not None and value not in FORMATS:
        raise ValueError(
            f'{file} has passage_format {shown(value)}; use one of {", ".join(FORMATS)}.'
        )
    return value


def add_to_card(directory: pathlib.Path, heading: str, text: str) -> None:
    """Adds a section to the model card of an export, in place of one with that heading.

    A kill leaves the old card or the new one, each of which the next export may replace.
    """
    card = directory / 'README.md'
    title = f'\n## {heading}\n\n'
    new = card.read_text('utf-8').partition(title)[0] + title + text
    marker = _read_marker(directory)
    marker['card'] = hashlib.sha256(new.encode()).hexdigest()
    _write_marker(directory, marker)
    with fs.atomic_write(card) as f:
        f.write(new)


def _changed_files(directory: pathlib.Path, marker: Mapping[str, Any]) -> list[str]:
    """Names of an export's files that jdkd has not written, or that have changed since."""
    if 'files' not in marker:  # Those of version 0.1 list none; one that was cut holds nothing.
        return [] if marker else [MARKER]
    known = {(name, sha) for name, sha in marker['files'].items()}
    known.add(('README.md', marker.get('card')))
    found = _checksums(directory).items()
    return sorted(
        name for name, sha in found if (name, sha) not in known and not _ONNX.fullmatch(name)
    )


def _read_marker(directory: pathlib.Path) -> dict[str, Any]:
    """Content of the marker; none if it is damaged."""
    try:
        marker = read_json(directory / MARKER)
    except ValueError:
        return {}
    marker = marker if isinstance(marker, dict) else {}
    return marker if isinstance(marker.get('files', {}), dict) else {}


def _checksums(directory: pathlib.Path) -> dict[str, str]:
    sums = {name: entry['sha256'] for name, entry in fs.checksums(directory).items()}
    sums.pop(MARKER, None)
    return sums


def _write_marker(directory: pathlib.Path, marker: Mapping[str, Any]) -> None:
    with fs.atomic_write(directory / MARKER) as f:
        json.dump(marker, f, indent=2, sort_keys=True)
        f.write('\n')


def _is_there(
    target: pathlib.Path, sums: Mapping[str, str], set_aside: Callable[[str], Any] | None
) -> bool:
    """Whether a directory is an export of files with these checksums already.

    An earlier one that holds more than jdkd wrote is set aside, or is a FileExistsError.
    """
    if not target.exists() or not any(target.iterdir()):
        return False
    marker = _read_marker(target)
    if changed := _changed_files(target, marker):
        reason = (
            f'{target} has files that were changed or added since jdkd exported it '
            f'({brief(", ".join(changed))})'
        )
        if set_aside is None:
            raise FileExistsError(f'{reason}; move them away, or choose another directory.')
        set_aside(reason)
        return False
    if marker.get('files') == sums and all((target / name).is_file() for name in sums):
        return True
    if (target / 'onnx').exists():
        logging.warning('%s: its ONNX files go with it; --onnx makes new ones.', target)
    return False


def _write(
    target: pathlib.Path,
    files: Mapping[str, Any],
    marker: Mapping[str, Any],
    set_aside: Callable[[str], Any] | None = None,
) -> None:
    """Replaces a directory with files by their paths: paths to copy, texts, tensors or JSON."""
    scratch = _scratch(target)
    scratch.mkdir(parents=True)
    (scratch / MARKER).touch()
    new = scratch / 'new'
    try:
        for name, content in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, pathlib.Path):
                shutil.copyfile(content, path)
            elif path.suffix == '.safetensors':
                # transformers refuses safetensors that do not name a format.
                safetensors.numpy.save_file(content, path, metadata={'format': 'pt'})
            else:
                if not isinstance(content, str):
                    content = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
                    content += '\n'
                path.write_text(content, encoding='utf-8')
        sums = _checksums(new)
        _write_marker(new, {**marker, 'files': sums})
        if _is_there(target, sums, set_aside):
            return
        if target.exists():
            target.rename(scratch / 'old')
        new.rename(target)
    finally:
        _clean(target)


def _clean(target: pathlib.Path) -> None:
    """Removes what an export left beside its directory; if it was killed, restores the earlier one.

    Raises:
        FileExistsError: if that was not made by an export.
    """
    scratch = _scratch(target)
    if not os.path.lexists(scratch):
        return
    is_ours = scratch.is_dir() and not scratch.is_symlink()
    # A kill may come before the marker is there, or after it is removed.
    if not (is_ours and ((scratch / MARKER).is_file() or not any(scratch.iterdir()))):
        raise FileExistsError(
            f'{scratch} exists and was not made by jdkd, which writes exports there; move it away, '
            'or choose another directory.'
        )
    old, new = scratch / 'old', scratch / 'new'
    if old.exists() and not target.exists():
        old.rename(target)
    for path in (old, new, scratch / MARKER):
        fs.remove(path)
    scratch.rmdir()


def _scratch(target: pathlib.Path) -> pathlib.Path:
    """The directory beside an export in which it is written."""
    return target.with_name(f'.{target.name}.tmp')


def _dual_encoder(
    model: DualEncoder, params: Mapping[str, Any], **options: Any
) -> tuple[dict[str, Any], list[str]]:
    """Returns the files of all modules by path (`modules_json.files`), and encoders' folders."""
    untied = 'transformer' not in params
    files = modules_json.files(model, untied=untied, **options)
    encoders = []
    for name in modules_json.ROUTES if untied else ('passage',):
        folders = modules_json.folders(model, name if untied else None)
        files |= _tower(model, tower(params, name), folders)
        encoders.append(folders['Transformer'])
    return files, encoders


def _tower(
    model: DualEncoder, params: Mapping[str, Any], folders: Mapping[str, str]
) -> dict[str, Any]:
    """Returns config.json and the tensors of one tower by path."""
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
        width = model.projection.out_dim
        shapes = {'projection/kernel': (config.hidden_size, width)}
        bias = {'projection/bias': (width,)} if model.projection.bias else {}
        files[os.path.join(folders['Dense'], 'model.safetensors')] = _stacked(
            {'projection': params['projection']}, shapes | bias, {'projection': 'linear'}
        )
    return files


def _cross_encoder(model: CrossEncoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns config.json and the tensors of a sequence classifier by path."""
    if model.head != 'linear':
        raise ValueError(
            f'a cross-encoder with head={model.head!r} cannot be exported, because no other '
            "library has that head; train it with head='linear'."
        )
    head = {name: value for name, value in params.items() if name != 'transformer'}
    labels = [f'LABEL_{i}' for i in range(model.num_labels)]
    content = _encoder_config(model.transformer, labels)
    # Otherwise CrossEncoder.predict would apply a sigmoid. Read since version 4.
    content['sentence_transformers'] = {
        'activation_fn': 'torch.nn.modules.linear.Identity',
        'version': '4.0.0',
    }
    tensors = _to_tensors(model.transformer, params['transformer'], head)
    return {'config.json': content, 'model.safetensors': tensors}


def _to_tensors(
    config: TransformerConfig, params: Mapping[str, Any], head: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Returns Hugging Face's tensors by name; those of a sequence classifier if given its head."""
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
    """Checks parameters and returns them by their names in `modules`, in that layout, float32."""
    flat: dict[str, Any] = traverse_util.flatten_dict(jax.device_get(dict(params)), sep='/')
    actual = {path: np.shape(value) for path, value in flat.items()}
    if actual != shapes:
        path = min(p for p in {**actual, **shapes} if actual.get(p) != shapes.get(p))
        raise ValueError(
            f'The parameters do not match the config: {path} has shape {actual.get(path)}, '
            f'expected {shapes.get(path)} (None: absent); give the config they were created with.'
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
    """Returns the content of config.json; that of a sequence classifier if given its labels."""
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
