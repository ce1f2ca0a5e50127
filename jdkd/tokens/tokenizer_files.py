"""Reads the tokenizer files of a checkpoint as transformers does."""

import os
import pathlib
import re
from typing import Any, NamedTuple

import tokenizers

from jdkd.runtime.checkpoint_files import check_json, read_json
from jdkd.runtime.messages import brief, shown

# Files that exports copy.
FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.txt',
    'vocab.json',
    'merges.txt',
)

# Usual special tokens, for tokenizers that do not name theirs.
_SPECIAL = {
    'cls': ('[CLS]', '<s>'),
    'sep': ('[SEP]', '</s>'),
    'pad': ('[PAD]', '<pad>'),
    'mask': ('[MASK]', '<mask>'),
}


class LoadedTokenizer(NamedTuple):
    """A tokenizer and the settings that it does not hold itself."""

    fast: tokenizers.Tokenizer  # With truncation and padding off.
    special_tokens: dict[str, str | None]  # Names of `cls`, `sep`, `pad` and `mask`, if given.
    truncation_side: str  # 'right' or 'left', where long texts are cut.
    token_types: bool  # Whether the model is given the token types.


def load(path: str | os.PathLike) -> LoadedTokenizer:
    """Loads the tokenizer of a directory, with the ids that transformers' AutoTokenizer gives.

    Of tokenizer.json, transformers takes little more than the vocabulary: for most families it
    makes the rest anew from tokenizer_config.json and the defaults of the tokenizer's class. A
    directory without config.json, of no family, has the tokenizer of tokenizer.json.

    Raises:
        FileNotFoundError: There are no tokenizer files.
        ValueError: They are damaged, or need their own code.
    """
    directory = pathlib.Path(path)
    _check_links(directory)
    raw = read_json(directory / 'config.json') or {}
    _check_class(directory / 'config.json', raw)
    # Rejects a config that needs its own code.
    config = read_json(directory / 'tokenizer_config.json') or {}
    _check_class(directory / 'tokenizer_config.json', config)
    file = directory / 'tokenizer.json'
    if file.is_file():
        check_json(file)
    elif not any((directory / name).is_file() for name in ('vocab.txt', 'vocab.json')):
        raise FileNotFoundError(
            f'{directory} has no tokenizer.json and no vocabulary; copy the tokenizer of the '
            'checkpoint there.'
        )
    try:
        tokenizer = _from_transformers(directory, raw)
        fast = tokenizer.backend_tokenizer
        if not file.is_file():
            _check_vocabulary(directory, fast)
        fast.no_padding()
        fast.no_truncation()
        fast.encode('A few words.')  # Some defects show only in use.
    except BaseException as error:  # Classes raise their own errors; a Rust panic is no Exception.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        if file.is_file():
            _read_tokenizer_json(file)
        settings = directory / 'tokenizer_config.json'
        raise ValueError(
            f'{settings if config else directory}: there is no tokenizer that transformers can '
            f'read ({brief(error)}); put its tokenizer.json there, and a tokenizer_config.json '
            'that fits it.'
        ) from error
    special = {role: getattr(tokenizer, f'{role}_token') for role in _SPECIAL}
    types = 'token_type_ids' in tokenizer.model_input_names
    return LoadedTokenizer(fast, special, tokenizer.truncation_side, types)


def special_ids(loaded: LoadedTokenizer, directory: pathlib.Path) -> dict[str, int]:
    """Finds the ids of `cls`, `sep`, `pad` and `mask`; raises ValueError if one is missing."""
    ids = {}
    for role, usual in _SPECIAL.items():
        token = loaded.special_tokens[role]
        known = [loaded.fast.token_to_id(t) for t in ((token,) if token else usual)]
        known = [i for i in known if i is not None]
        if not known:
            raise ValueError(
                f'The tokenizer in {directory} has no {role} token '
                f'({brief(token or " or ".join(usual))}); name it as {role}_token in its '
                'tokenizer_config.json.'
            )
        ids[role] = known[0]
    return ids


def _from_transformers(directory: pathlib.Path, raw: dict[str, Any]) -> Any:
    """Returns the tokenizer of transformers; `raw` is config.json."""
    # Unless told otherwise, it advises to install PyTorch.
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    import transformers  # Takes seconds.

    options: dict[str, Any] = {'trust_remote_code': False, 'local_files_only': True}
    if not raw:
        return transformers.PreTrainedTokenizerFast.from_pretrained(directory, **options)
    kind = raw.get('model_type')
    # Only what decides on the tokenizer; the model itself is read elsewhere.
    if isinstance(kind, str) and kind in transformers.CONFIG_MAPPING:
        config = transformers.AutoConfig.for_model(kind)
    else:
        config = transformers.PreTrainedConfig()
    config.tokenizer_class = raw.get('tokenizer_class')
    return transformers.AutoTokenizer.from_pretrained(directory, config=config, **options)


def _check_class(file: pathlib.Path, raw: dict[str, Any]) -> None:
    """Checks that a file names no class but a tokenizer."""
    name = raw.get('tokenizer_class')
    if name is not None and not (
        isinstance(name, str) and re.fullmatch(r'\w*(Tokenizer|TokenizerFast|Backend)', name)
    ):
        raise ValueError(
            f'{file} has tokenizer_class={shown(name)}, which is no tokenizer of transformers; '
            'give a checkpoint with one.'
        )


def _check_vocabulary(directory: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Checks that transformers has read the vocabulary, not just made up special tokens."""
    words = read_json(directory / 'vocab.json')
    if words is None:
        words = {*(directory / 'vocab.txt').read_text(encoding='utf-8').split('\n')} - {''}
    if tokenizer.get_vocab_size() < len(words):
        raise ValueError(f'it ignores the vocabulary of {len(words)} tokens')


def _read_tokenizer_json(file: pathlib.Path) -> None:
    """Reads a tokenizer.json; raises ValueError if it holds no usable tokenizer."""
    try:
        tokenizers.Tokenizer.from_file(str(file)).encode('A few words.')
    except BaseException as error:  # A Rust panic is no Exception.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f'{file} is no tokenizer that can be used ({brief(error)}); fetch the checkpoint again.'
        ) from error


def _check_links(folder: pathlib.Path) -> None:
    """Raises ValueError if a tokenizer file, which exports copy, links outside the checkpoint."""
    folder = folder.resolve()
    # The Hugging Face cache keeps models--x/snapshots/<commit>/file -> ../../blobs/<hash>.
    cached = [f.parent / 'blobs' for f in folder.parents if f.name == 'snapshots']
    for name in FILES:
        target = (folder / name).resolve()
        if not any(target.is_relative_to(own) for own in (folder, *cached)):
            raise ValueError(
                f'{folder / name} is a link to {target}, outside the checkpoint; copy the file '
                'there.'
            )
