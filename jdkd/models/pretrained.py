"""Reads Hugging Face checkpoints into our parameters.

Only safetensors are read, and no tensor data before all shapes are checked. Differences between
model families are data, in `families.FAMILIES`.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from flax import traverse_util

from jdkd.models import modules_json, sentence_config
from jdkd.models.config import MAX_SIZE, Layers, TransformerConfig, pick_layers
from jdkd.models.cross_encoder import head_shapes
from jdkd.models.dual_encoder import Projection
from jdkd.models.families import FAMILIES, Family, Slot, slot
from jdkd.models.transformer import param_shapes
from jdkd.runtime import checkpoint_files
from jdkd.runtime.checkpoint_files import read_json, reading
from jdkd.runtime.messages import brief, shown

_FIXED = {'is_causal': False}  # Values of config.json of every family.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model of a checkpoint, without its tensors."""

    config: TransformerConfig
    tokenizer_dir: pathlib.Path
    pooling: str | None  # Of `POOLINGS`; None without sentence-transformers files.
    normalize: bool  # Whether scores are cosines: of normalised embeddings, or by `similarity`.
    similarity: str | None = None  # Of `sentence_config.SIMILARITIES`; None (not named) is cosine.
    projection: Projection | None
    classifies: bool  # Whether the checkpoint is a sequence classifier.
    labels: tuple[str, ...]  # Names of its outputs; () without one, or without tensors.
    # Lengths in tokens according to the checkpoint.
    max_length: int  # Of a text, or a pair of texts.
    query_length: int
    passage_length: int

    @property
    def kind(self) -> str:
        """What the checkpoint is used as where nothing else is said."""
        return 'cross_encoder' if self.is_cross_encoder else 'dual_encoder'

    @property
    def is_cross_encoder(self) -> bool:
        """Whether it scores pairs: a classifier without a pooling of sentence-transformers."""
        return self.classifies and self.pooling is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained(Architecture):
    """A checkpoint, with the selected layers of its encoder."""

    params: dict[str, Any]  # Nested dict of float32 numpy arrays for `Transformer(config)`.
    # The same for the pooler and classifier of `CrossEncoder(config, 'linear')`; None unless the
    # checkpoint is a sequence classifier.
    head: dict[str, Any] | None
    projection_params: dict[str, np.ndarray] | None
    query_prompt: str  # Text that the checkpoint puts before queries; '' for none.
    passage_prompt: str
    passage_prompt_name: str = 'document'  # In the checkpoint's list of prompts.
    source: str  # The directory of the checkpoint.
    license: str | None  # According to the model card.
    query: 'Pretrained | None' = None  # Queries' own tower, if any; all else is of passages.


def read_architectures(path: str | os.PathLike, *, tensors: bool = True) -> list[Architecture]:
    """Reads the architecture of each tower of a checkpoint that `read_pretrained` supports.

    With `tensors=False`, the encoder's tensors may be missing; a classifier is then believed to
    have them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is not supported.
    """
    modules = modules_json.read(pathlib.Path(path))
    architectures = []
    for tower in filter(None, (modules, modules.query)):
        if tensors:
            _weight_files(tower.encoder)
        architectures.append(_read_architecture(tower))
    return architectures


def read_pretrained(path: str | os.PathLike, layers: Layers = None) -> Pretrained:
    """Reads a Hugging Face or sentence-transformers directory; `config.pick_layers` picks layers.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is not supported, or a tensor is missing, unknown, or has another
            shape than config.json implies.
    """
    root = pathlib.Path(path)
    modules = modules_json.read(root)
    pretrained = _read_tower(root, modules, layers)
    if modules.query is None:
        return pretrained
    return dataclasses.replace(pretrained, query=_read_tower(root, modules.query, layers))


def _read_architecture(modules: modules_json.Modules) -> Architecture:
    """Returns the architecture of one tower, with all layers."""
    directory = modules.encoder
    file = directory / 'config.json'
    if (directory / 'adapter_config.json').is_file():
        raise ValueError(
            f'{directory} has adapter_config.json, an adapter (PEFT) that jdkd does not apply; '
            'merge it into the weights with merge_and_unload() and save_pretrained() of peft.'
        )
    raw = read_json(file)
    if raw is None:
        raise FileNotFoundError(
            f'{directory} has no config.json; give the directory of a Hugging Face checkpoint.'
        )
    settings, similarity = modules.settings, modules.model_config.similarity
    config = _with_room(_read_config(raw, file), settings)
    with reading(file):
        names = raw.get('architectures') or ()
        named = FAMILIES[config.family].classifier in names
    outputs = _classifier_outputs(directory, config.family, named) if named or not names else None
    with reading(file):
        labels = raw.get('id2label') or {}  # May name too few.
        labels = tuple(str(labels.get(str(i), i)) for i in range(outputs or 0))
    longest = config.max_positions
    length = min(settings.text or _tokenizer_length(directory) or longest, longest)
    return Architecture(
        config=config,
        tokenizer_dir=directory,
        pooling=modules.pooling,
        normalize=modules.normalize or similarity in (None, 'cosine'),
        similarity='cosine' if modules.normalize and similarity is None else similarity,
        projection=modules.projection,
        classifies=outputs is not None,
        labels=labels,
        max_length=length,
        query_length=min(settings.query or length, longest),
        passage_length=min(settings.passage or length, longest),
    )


def _read_tower(root: pathlib.Path, modules: modules_json.Modules, layers: Layers) -> Pretrained:
    architecture = _read_architecture(modules)
    config = architecture.config
    file = modules.encoder / 'config.json'
    if modules.projection_params is not None:
        width = len(modules.projection_params['kernel'])
        if width != config.hidden_size:
            raise ValueError(
                f'The Dense module of {root} takes {width} dimensions, but the encoder has '
                f'{config.hidden_size}; fetch the checkpoint again.'
            )
    family = FAMILIES[config.family]
    tensors = _Tensors(modules.encoder, family)
    if config.num_layers > len(tensors.all):
        raise ValueError(
            f'{file} promises {config.num_layers} layers, but there are {len(tensors.all)} '
            'tensors; fetch the checkpoint again.'
        )
    params = tensors.take(param_shapes(config), family.modules)
    head = None
    if architecture.classifies:
        head = tensors.take(head_shapes(config, len(architecture.labels)), family.head)
    tensors.check_all_taken()
    config, indices = pick_layers(config, layers)
    kept = {key: value for key, value in params.items() if not key.startswith('layer_')}
    kept |= {f'layer_{new}': params[f'layer_{old}'] for new, old in enumerate(indices)}
    shared: dict[str, Any] = vars(architecture) | {'config': config}
    return Pretrained(
        **shared,
        params=kept,
        head=head,
        projection_params=modules.projection_params,
        query_prompt=modules.model_config.query_prompt,
        passage_prompt=modules.model_config.passage_prompt,
        passage_prompt_name=modules.model_config.passage_prompt_name,
        source=str(root),
        license=_license(root / 'README.md'),
    )


def _classifier_outputs(directory: pathlib.Path, kind: str, named: bool) -> int | None:
    """Outputs of a checkpoint's classifier, None without one.

    Without tensors it is 0, if the checkpoint names itself a classifier.
    """
    try:
        tensors = _Tensors(directory, FAMILIES[kind])
    except FileNotFoundError:
        return 0 if named else None
    if tensors.has_head:
        bias = tensors.all.get(slot('classifier/bias', FAMILIES[kind].head).name)
        return bias.shape[0] if bias else 0
    if named:
        _warn_of_no_classifier(directory, FAMILIES[kind].classifier)
    return None


@functools.cache  # Once, though a checkpoint is read several times.
def _warn_of_no_classifier(directory: pathlib.Path, classifier: str) -> None:
    logging.warning(
        f'{directory}/config.json names {classifier}, but the weights lack its classifier: it is '
        'read as an encoder.'
    )


class _Tensors:
    """The tensors of a directory; each must be taken or ignorable."""

    def __init__(self, directory: pathlib.Path, family: Family):
        self.directory = directory
        self.family = family
        self.all: dict[str, checkpoint_files.Tensor] = {}
        self.taken = set()
        inside = set()  # Tensors whose names have the encoder's prefix.
        for file in _weight_files(directory):
            for name, tensor in checkpoint_files.open_tensors(file).items():
                # Names of layer norms in checkpoints converted from TensorFlow.
                renamed = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
                renamed = renamed.replace('LayerNorm.beta', 'LayerNorm.bias')
                own = renamed.removeprefix(family.prefix)
                if own in self.all:
                    raise ValueError(
                        f'{directory} has two tensors {shown(own)}, of which one name begins with '
                        f'{family.prefix!r} or both are in several files; remove one.'
                    )
                self.all[own] = tensor
                if renamed != own:
                    inside.add(own)
        # Of a model with a head, all other tensors are that head's.
        self.others = self.all.keys() - inside if inside else set()

    @property
    def has_head(self) -> bool:
        """Whether there are tensors that only the family's classifier has."""
        modules = (name.removeprefix(self.family.prefix) for name in self.family.head.values())
        starts = tuple(f'{module}.' for module in modules)
        return any(name.startswith(starts) and not self._is_ignored(name) for name in self.all)

    def _is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.family.ignored)

    def take(
        self, shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, str | Slot]
    ) -> dict[str, Any]:
        """Reads nested parameters, in our layout and float32."""
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
            # Kernels are [out, in] there and [in, out] here.
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
        return traverse_util.unflatten_dict(params, sep='/')

    def check_all_taken(self) -> None:
        left = [name for name in sorted(self.all.keys() - self.taken) if not self._is_ignored(name)]
        if heads := [name for name in left if name in self.others]:
            logging.info('%s: another head is left out: %s', self.directory, brief(heads))
        if unknown := [name for name in left if name not in self.others]:
            raise ValueError(
                f'{self.directory} has {len(unknown)} tensors that {self.family.architecture} '
                f'does not use: {brief(", ".join(unknown[:5]))}; give a checkpoint of that model, '
                f'or of {self.family.classifier}.'
            )


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    file, names = directory / 'model.safetensors.index.json', ['model.safetensors']
    # As in transformers, an index counts only where the weights are not in one file.
    index = None if (directory / names[0]).is_file() else read_json(file)
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


def _read_config(raw: Mapping[str, Any], file: pathlib.Path) -> TransformerConfig:
    kind = raw.get('model_type')
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f'{file.parent} is a model of type {shown(kind)}; supported are: {", ".join(FAMILIES)}.'
        )
    family = FAMILIES[kind]
    for key, value in {**_FIXED, **family.fixed}.items():
        if raw.get(key) not in (None, value):
            raise ValueError(f'{file} has {key}={shown(raw[key])}; only {value!r} is supported.')
    given = {ours: raw[key] for ours, key in family.fields.items() if raw.get(key) is not None}
    fields = {**family.defaults, **given}
    for field in dataclasses.fields(TransformerConfig):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise ValueError(f'{file} has no {family.fields[field.name]!r}.')
    try:
        with reading(file):
            TransformerConfig(family=kind, **fields)  # Checks sizes that `read` computes with.
            return TransformerConfig(family=kind, **fields | family.read(raw))
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f'{file}: {error}') from error


def _with_room(config: TransformerConfig, settings: sentence_config.Settings) -> TransformerConfig:
    """Raises the length of an encoder whose positions have no end to that of its texts."""
    lengths = [settings.text, settings.query, settings.passage]
    longest = min(max(filter(None, lengths), default=0), MAX_SIZE)
    if config.position_embeddings or longest <= config.max_positions:
        return config
    return dataclasses.replace(config, max_positions=longest)


def _tokenizer_length(directory: pathlib.Path) -> int | None:
    """Returns the limit of a tokenizer in tokens, under its name or an old one; None for none."""
    file = directory / 'tokenizer_config.json'
    raw = read_json(file) or {}
    limits = (sentence_config.check_length(file, raw, k) for k in ('model_max_length', 'max_len'))
    return next(filter(None, limits), None)


def _license(card: pathlib.Path) -> str | None:
    if not card.is_file():
        return None
    with card.open(encoding='utf-8', errors='replace') as f:
        text = f.read(2**16)
    front = re.match(r'---\n(.*?)\n---', text, re.DOTALL)
    license = front and re.search(r'^license: *["\']?([\w.+-]+)', front[1], re.MULTILINE)
    return license[1] if license else None
