"""Weights in: a Hugging Face checkpoint as our parameters.

Only safetensors are read, and of their data nothing before the shapes are known to agree. What
differs between model families is data, in `families.FAMILIES`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from jdkd.models import modules_json
from jdkd.models.config import TransformerConfig, pick_layers
from jdkd.models.cross_encoder import head_shapes
from jdkd.models.dual_encoder import Projection
from jdkd.models.families import FAMILIES, Slot, slot
from jdkd.models.transformer import param_shapes
from jdkd.runtime import checkpoint_files
from jdkd.runtime.checkpoint_files import read_json, reading
from jdkd.runtime.messages import brief, shown


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint as it was read.

    Attributes:
        config: Sizes of the encoder, with the layers that were kept.
        params: Nested dict of float32 numpy arrays for `Transformer(config)`.
        head: The same for the pooler and classifier of `CrossEncoder(config, 'linear')`, where
            the checkpoint is a sequence classifier; else None.
        labels: What the outputs of that classifier are called; () without one.
        tokenizer_dir: Where the tokenizer's files are.
        pooling: One of `dual_encoder.POOLINGS` where sentence-transformers files tell, else None.
        normalize: Whether the checkpoint normalises its embeddings.
        projection: Its dense layer after pooling, or None.
        projection_params: Parameters of that layer.
        query_prompt: What the checkpoint puts before queries; '' for nothing.
        passage_prompt: The same for passages.
        max_length: Longest text, in tokens, that the checkpoint says it takes.
        source: The directory it was read from.
        license: As the model card says, or None.
        query: Where queries have a tower of their own, that tower; the rest is of passages.
    """

    config: TransformerConfig
    params: dict[str, Any]
    head: dict[str, Any] | None
    labels: tuple[str, ...]
    tokenizer_dir: pathlib.Path
    pooling: str | None
    normalize: bool
    projection: Projection | None
    projection_params: dict[str, np.ndarray] | None
    query_prompt: str
    passage_prompt: str
    max_length: int
    source: str
    license: str | None
    query: 'Pretrained | None' = None


@dataclasses.dataclass(frozen=True)
class Sketch:
    """What a checkpoint says of itself without its tensors.

    Attributes:
        config: Sizes of the encoder, with all its layers.
        tokenizer_dir: Where the tokenizer's files are.
        pooling: As of `Pretrained`.
        normalize: As of `Pretrained`.
        projection: As of `Pretrained`.
        classifies: Whether it is a sequence classifier.
        max_length: As of `Pretrained`.
    """

    config: TransformerConfig
    tokenizer_dir: pathlib.Path
    pooling: str | None
    normalize: bool
    projection: Projection | None
    classifies: bool
    max_length: int


def read_sketches(path: str | os.PathLike, *, tensors: bool = True) -> list[Sketch]:
    """One sketch for each tower of a directory that `read_pretrained` can read.

    Args:
        path: The directory.
        tensors: False where the encoder's tensors may be missing.

    Raises:
        FileNotFoundError: if a file is missing, tensors included.
        ValueError: if the model is of a kind that we do not have.
    """
    modules = modules_json.read(pathlib.Path(path))
    found = []
    for tower in filter(None, (modules, modules.query)):
        if tensors:
            _weight_files(tower.encoder)
        raw, config = _config_of(tower.encoder)
        found.append(
            Sketch(
                config,
                tower.encoder,
                tower.pooling,
                tower.normalize,
                tower.projection,
                _is_classifier(raw, tower.encoder / 'config.json'),
                _max_length(tower.encoder, config),
            )
        )
    return found


def read_pretrained(
    path: str | os.PathLike, layers: Sequence[int | str] | str | None = None
) -> Pretrained:
    """Reads a Hugging Face or sentence-transformers directory.

    Args:
        path: The directory; see `weights.find_weights`.
        layers: Layers to keep; see `config.pick_layers`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is of a kind that we do not have, or a tensor is missing, has
            another shape than config.json implies, or is not known.
    """
    root = pathlib.Path(path)
    modules = modules_json.read(root)
    read = _read(root, modules, layers)
    if modules.query is None:
        return read
    return dataclasses.replace(read, query=_read(root, modules.query, layers))


def _read(
    root: pathlib.Path,
    modules: modules_json.Modules,
    layers: Sequence[int | str] | str | None,
) -> Pretrained:
    """What `read_pretrained` returns, of one tower."""
    directory = modules.encoder
    raw, config = _config_of(directory)
    file = directory / 'config.json'
    if modules.projection is not None:
        width = len(modules.projection_params['kernel'])
        if width != config.hidden_size:
            raise ValueError(
                f'The Dense module of {root} takes {width} dimensions, but the encoder has '
                f'{config.hidden_size}; fetch the checkpoint again.'
            )
    family = FAMILIES[config.family]
    tensors = _Tensors(directory, config.family)
    if config.num_layers > len(tensors.all):
        raise ValueError(
            f'{file} promises {config.num_layers} layers, but there are {len(tensors.all)} '
            'tensors; fetch the checkpoint again.'
        )
    params = traverse_util.unflatten_dict(
        tensors.take(param_shapes(config), family.modules), sep='/'
    )
    head, labels = None, ()
    if _is_classifier(raw, file):
        with reading(file):
            labels = _labels(raw, tensors.rows(slot('classifier/bias', family.head).name))
        head = traverse_util.unflatten_dict(
            tensors.take(head_shapes(config, len(labels)), family.head), sep='/'
        )
    tensors.check_all_taken()
    config, picks = pick_layers(config, layers)
    params = _only_layers(params, picks)
    return Pretrained(
        config=config,
        params=params,
        head=head,
        labels=labels,
        tokenizer_dir=directory,
        pooling=modules.pooling,
        normalize=modules.normalize,
        projection=modules.projection,
        projection_params=modules.projection_params,
        query_prompt=modules.query_prompt,
        passage_prompt=modules.passage_prompt,
        max_length=_max_length(directory, config),
        source=str(root),
        license=_license(root / 'README.md'),
    )


class _Tensors:
    """The tensors of a directory; each one is taken, ignorable, or an error."""

    def __init__(self, directory: pathlib.Path, family: str):
        self.directory = directory
        self.family = FAMILIES[family]
        self.all, self.taken = {}, set()
        for file in _weight_files(directory):
            for name, tensor in checkpoint_files.open_tensors(file).items():
                name = name.removeprefix(self.family.prefix)
                # Checkpoints converted from TensorFlow name layer norms so.
                name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
                name = name.replace('LayerNorm.beta', 'LayerNorm.bias')
                self.all[name] = tensor

    def rows(self, name: str) -> int:
        """Size of the first axis of a tensor; 0 where there is none."""
        return self.all[name].shape[0] if name in self.all else 0

    def take(
        self, shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, str | Slot]
    ) -> dict[str, np.ndarray]:
        """Parameters by path, in our layout and float32."""
        params = {}
        for path, shape in shapes.items():
            name, part, parts = slot(path, modules)
            name = name.removeprefix(self.family.prefix)
            if name not in self.all:
                raise ValueError(
                    f'{self.directory} has no tensor {name!r} (our {path}); its config.json '
                    'promises one: fetch the checkpoint again, or mend its config.json.'
                )
            tensor = self.all[name]
            # Theirs is [out, in], ours [in, out].
            is_kernel = path.endswith('/kernel')
            rows, *rest = shape[::-1] if is_kernel else shape
            expected = (parts * rows, *rest)
            if tensor.shape != expected:
                raise ValueError(
                    f'Tensor {name!r} in {self.directory} has shape {shown(tensor.shape)}, but its '
                    f'config.json and its other tensors imply {expected}.'
                )
            self.taken.add(name)
            value = tensor.read()[part * rows : (part + 1) * rows]
            value = value.T if is_kernel else value
            params[path] = np.ascontiguousarray(value, np.float32)
        return params

    def check_all_taken(self) -> None:
        unknown = [
            name
            for name in sorted(self.all.keys() - self.taken)
            if not any(re.fullmatch(pattern, name) for pattern in self.family.ignored)
        ]
        if unknown:
            raise ValueError(
                f'{self.directory} has {len(unknown)} tensors that {self.family.architecture} '
                f'does not use: {brief(", ".join(unknown[:5]))}; give a checkpoint of that model, '
                f'or of {self.family.classifier}.'
            )


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    file = directory / 'model.safetensors.index.json'
    index = read_json(file)
    names = ['model.safetensors']
    if index is not None:
        with reading(file):
            names = sorted(set(index['weight_map'].values()))
    for name in names:
        if not checkpoint_files.join_inside(directory, name, file).is_file():
            raise FileNotFoundError(
                f'{directory} has no {name}; where its weights are a pytorch_model.bin, convert '
                'them: load the model with transformers and save_pretrained() it again.'
            )
    return [directory / name for name in names]


def _config_of(directory: pathlib.Path) -> tuple[dict[str, Any], TransformerConfig]:
    """config.json, and what we make of it."""
    file = directory / 'config.json'
    raw = read_json(file)
    if raw is None:
        raise FileNotFoundError(
            f'{directory} has no config.json; give the directory of a Hugging Face checkpoint.'
        )
    return raw, _read_config(raw, file)


def _read_config(raw: Mapping[str, Any], file: pathlib.Path) -> TransformerConfig:
    kind = raw.get('model_type')
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f'{file.parent} is a model of type {shown(kind)}; supported are: {", ".join(FAMILIES)}.'
        )
    family = FAMILIES[kind]
    for key, value in family.fixed.items():
        if raw.get(key, value) != value:
            raise ValueError(f'{file} has {key}={shown(raw[key])}; only {value!r} is supported.')
    told = {ours: raw[key] for ours, key in family.fields.items() if raw.get(key) is not None}
    fields = family.defaults | told
    for field in dataclasses.fields(TransformerConfig):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise ValueError(f'{file} has no {family.fields[field.name]!r}.')
    try:
        with reading(file):
            TransformerConfig(family=kind, **fields)  # Before `read` computes with sizes.
            return TransformerConfig(family=kind, **fields | family.read(raw))
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f'{file}: {error}') from error


def _is_classifier(raw: Mapping[str, Any], file: pathlib.Path) -> bool:
    with reading(file):
        return FAMILIES[raw['model_type']].classifier in (raw.get('architectures') or ())


def _labels(raw: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of a classifier's outputs; numbers where config.json does not name as many."""
    names = raw.get('id2label') or {}
    return tuple(str(names.get(str(i), i)) for i in range(count))


def _only_layers(params: dict[str, Any], picks: Sequence[int]) -> dict[str, Any]:
    picked = {key: value for key, value in params.items() if not key.startswith('layer_')}
    return picked | {f'layer_{new}': params[f'layer_{old}'] for new, old in enumerate(picks)}


def _max_length(directory: pathlib.Path, config: TransformerConfig) -> int:
    for name, field in (
        ('sentence_bert_config.json', 'max_seq_length'),
        ('tokenizer_config.json', 'model_max_length'),
    ):
        told = (read_json(directory / name) or {}).get(field)
        if not told:
            continue
        if not isinstance(told, int | float) or not told >= 1:
            raise ValueError(
                f'{directory / name} has {field}={shown(told)}; it is a number of tokens.'
            )
        # A tokenizer without a limit says 1e30.
        return int(min(told, config.max_positions))
    return config.max_positions


def _license(card: pathlib.Path) -> str | None:
    if not card.is_file():
        return None
    with card.open(encoding='utf-8', errors='replace') as f:
        text = f.read(2**16)
    front = re.match(r'---\n(.*?)\n---', text, re.DOTALL)
    found = front and re.search(r'^license: *["\']?([\w.+-]+)', front[1], re.MULTILINE)
    return found[1] if found else None
