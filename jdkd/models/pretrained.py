"""Weights in: a Hugging Face checkpoint as our parameters, and its tokenizer.

Only safetensors are read. What differs between model families is data, in `families.FAMILIES`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
from flax import traverse_util

from jdkd.models import modules_json
from jdkd.models.config import TransformerConfig, pick_layers
from jdkd.models.cross_encoder import head_shapes
from jdkd.models.dual_encoder import Projection
from jdkd.models.families import FAMILIES, Slot, slot
from jdkd.models.modules_json import read_json as _read_json
from jdkd.models.transformer import param_shapes


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
        out_dim: Dimensions of an embedding.
    """

    config: TransformerConfig
    tokenizer_dir: pathlib.Path
    out_dim: int


def read_sketches(path: str | os.PathLike) -> list[Sketch]:
    """One sketch for each tower of a directory that `read_pretrained` can read.

    Raises:
        FileNotFoundError: if a file is missing, tensors included.
        ValueError: if the model is of a kind that we do not have.
    """
    modules = modules_json.read(pathlib.Path(path))
    found = []
    for tower in filter(None, (modules, modules.query)):
        _weight_files(tower.encoder)
        config = _read_config(_raw_config(tower.encoder), tower.encoder)
        width = tower.projection.out_dim if tower.projection else config.hidden_size
        found.append(Sketch(config, tower.encoder, width))
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
    raw = _raw_config(directory)
    config = _read_config(raw, directory)
    if modules.projection is not None:
        width = len(modules.projection_params['kernel'])
        if width != config.hidden_size:
            raise ValueError(
                f'The Dense module of {root} takes {width} dimensions, but the encoder has '
                f'{config.hidden_size}; fetch the checkpoint again.'
            )
    family = FAMILIES[config.family]
    tensors = _Tensors(directory, config.family)
    params = traverse_util.unflatten_dict(
        tensors.take(param_shapes(config), family.modules), sep='/'
    )
    head, labels = None, ()
    if family.classifier in (raw.get('architectures') or ()):
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
            for name, value in safetensors.numpy.load_file(file).items():
                name = name.removeprefix(self.family.prefix)
                # Checkpoints converted from TensorFlow name layer norms so.
                name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
                name = name.replace('LayerNorm.beta', 'LayerNorm.bias')
                self.all[name] = value

    def rows(self, name: str) -> int:
        """Size of the first axis of a tensor; 0 where there is none."""
        return len(self.all.get(name, ()))

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
            value = self.all[name]
            # Theirs is [out, in], ours [in, out].
            is_kernel = path.endswith('/kernel')
            rows, *rest = shape[::-1] if is_kernel else shape
            expected = (parts * rows, *rest)
            if value.shape != expected:
                raise ValueError(
                    f'Tensor {name!r} in {self.directory} has shape {value.shape}, but its '
                    f'config.json and its other tensors imply {expected}.'
                )
            self.taken.add(name)
            value = value[part * rows : (part + 1) * rows]
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
                f'does not use: {", ".join(unknown[:5])}; give a checkpoint of that model, or '
                f'of {self.family.classifier}.'
            )


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    index = _read_json(directory / 'model.safetensors.index.json')
    names = sorted(set(index['weight_map'].values())) if index else ['model.safetensors']
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f'{directory} has no {name}; where its weights are a pytorch_model.bin, convert '
                'them: load the model with transformers and save_pretrained() it again.'
            )
    return [directory / name for name in names]


def _raw_config(directory: pathlib.Path) -> dict[str, Any]:
    raw = _read_json(directory / 'config.json')
    if raw is None:
        raise FileNotFoundError(
            f'{directory} has no config.json; give the directory of a Hugging Face checkpoint.'
        )
    return raw


def _read_config(raw: Mapping[str, Any], directory: pathlib.Path) -> TransformerConfig:
    kind = raw.get('model_type')
    if kind not in FAMILIES:
        raise ValueError(
            f'{directory} is a model of type {kind!r}; supported are: {", ".join(FAMILIES)}.'
        )
    family = FAMILIES[kind]
    for key, value in family.fixed.items():
        if raw.get(key, value) != value:
            raise ValueError(
                f'{directory}/config.json has {key}={raw[key]!r}; only {value!r} is supported.'
            )
    told = {ours: raw[key] for ours, key in family.fields.items() if raw.get(key) is not None}
    fields = family.defaults | told
    for field in dataclasses.fields(TransformerConfig):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise ValueError(f'{directory}/config.json has no {family.fields[field.name]!r}.')
    try:
        return TransformerConfig(family=kind, **fields | family.read(raw))
    except ValueError as error:
        raise ValueError(f'{directory}/config.json: {error}') from error


def _labels(raw: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of a classifier's outputs; numbers where config.json does not name as many."""
    names = raw.get('id2label') or {}
    return tuple(names.get(str(i), str(i)) for i in range(count))


def _only_layers(params: dict[str, Any], picks: Sequence[int]) -> dict[str, Any]:
    picked = {key: value for key, value in params.items() if not key.startswith('layer_')}
    return picked | {f'layer_{new}': params[f'layer_{old}'] for new, old in enumerate(picks)}


def _max_length(directory: pathlib.Path, config: TransformerConfig) -> int:
    own = _read_json(directory / 'sentence_bert_config.json') or {}
    tokenizer = _read_json(directory / 'tokenizer_config.json') or {}
    told = own.get('max_seq_length') or tokenizer.get('model_max_length')
    # A tokenizer without a limit says 1e30.
    return int(min(told or config.max_positions, config.max_positions))


def _license(card: pathlib.Path) -> str | None:
    text = card.read_text(encoding='utf-8') if card.is_file() else ''
    front = re.match(r'---\n(.*?)\n---', text, re.DOTALL)
    found = front and re.search(r'^license:\s*(\S+)', front[1], re.MULTILINE)
    return found[1] if found else None


# What tokenizers that do not say call their special tokens.
_SPECIAL = {
    'cls': ('[CLS]', '<s>'),
    'sep': ('[SEP]', '</s>'),
    'pad': ('[PAD]', '<pad>'),
    'mask': ('[MASK]', '<mask>'),
}


def load_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """The fast tokenizer of a directory, which neither truncates nor pads until told to.

    Raises:
        FileNotFoundError: if there are no tokenizer files.
    """
    directory = pathlib.Path(path)
    if (directory / 'tokenizer.json').is_file():
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / 'tokenizer.json'))
    else:
        if not any((directory / name).is_file() for name in ('vocab.txt', 'vocab.json')):
            raise FileNotFoundError(
                f'{directory} has no tokenizer.json and no vocabulary; copy the tokenizer of the '
                'checkpoint there.'
            )
        import transformers  # Here, because it takes seconds.

        tokenizer = transformers.AutoTokenizer.from_pretrained(directory).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def special_ids(path: str | os.PathLike) -> dict[str, int]:
    """Ids of the special tokens `cls`, `sep`, `pad` and `mask` of a tokenizer directory.

    Raises:
        FileNotFoundError: if there are no tokenizer files.
        ValueError: if the vocabulary has no such token.
    """
    directory = pathlib.Path(path)
    told = _read_json(directory / 'special_tokens_map.json') or {}
    told |= _read_json(directory / 'tokenizer_config.json') or {}
    tokenizer = load_tokenizer(directory)
    ids = {}
    for role, usual in _SPECIAL.items():
        token = told.get(f'{role}_token')
        token = token['content'] if isinstance(token, dict) else token
        found = [tokenizer.token_to_id(t) for t in ((token,) if token else usual)]
        found = [i for i in found if i is not None]
        if not found:
            raise ValueError(
                f'The tokenizer in {directory} has no {role} token ({token or " or ".join(usual)});'
                f' name it as {role}_token in its tokenizer_config.json.'
            )
        ids[role] = found[0]
    return ids
