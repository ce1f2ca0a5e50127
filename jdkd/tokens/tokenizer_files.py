"""Reads the tokenizer files of a checkpoint with the tokenizers library."""

import os
import pathlib

import tokenizers

from jdkd.runtime.checkpoint_files import check_size, read_json, reading
from jdkd.runtime.messages import brief

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


def load(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """Loads the fast tokenizer of a directory, with truncation and padding off.

    Raises:
        FileNotFoundError: There are no tokenizer files.
        ValueError: They are damaged, or need their own code.
    """
    directory = pathlib.Path(path)
    _check_links(directory)
    read_json(directory / 'tokenizer_config.json')  # Rejects a config that needs its own code.
    if (directory / 'tokenizer.json').is_file():
        tokenizer = read_tokenizer_json(directory / 'tokenizer.json')
    else:
        if not any((directory / name).is_file() for name in ('vocab.txt', 'vocab.json')):
            raise FileNotFoundError(
                f'{directory} has no tokenizer.json and no vocabulary; copy the tokenizer of the '
                'checkpoint there.'
            )
        import transformers  # Takes seconds.

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            ).backend_tokenizer
            _check_vocabulary(directory, tokenizer)
        except Exception as error:  # Each tokenizer class raises errors of its own.
            raise ValueError(
                f'{directory} has no tokenizer that transformers can read ({brief(error)}); put '
                'its tokenizer.json there.'
            ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _check_vocabulary(directory: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Checks that transformers has read the vocabulary, not just made up special tokens."""
    words = read_json(directory / 'vocab.json')
    if words is None:
        words = {*(directory / 'vocab.txt').read_text(encoding='utf-8').split('\n')} - {''}
    if tokenizer.get_vocab_size() < len(words):
        raise ValueError(f'it ignores the vocabulary of {len(words)} tokens')


def special_ids(path: str | os.PathLike) -> dict[str, int]:
    """Finds the ids of `cls`, `sep`, `pad` and `mask`; raises ValueError if one is missing."""
    directory = pathlib.Path(path)
    config = read_json(directory / 'special_tokens_map.json') or {}
    config |= read_json(directory / 'tokenizer_config.json') or {}
    tokenizer = load(directory)
    ids = {}
    for role, usual in _SPECIAL.items():
        token = config.get(f'{role}_token')
        with reading(directory / 'tokenizer_config.json'):
            token = token['content'] if isinstance(token, dict) else token
            known = [tokenizer.token_to_id(t) for t in ((token,) if token else usual)]
        known = [i for i in known if i is not None]
        if not known:
            raise ValueError(
                f'The tokenizer in {directory} has no {role} token '
                f'({brief(token or " or ".join(usual))}); name it as {role}_token in its '
                'tokenizer_config.json.'
            )
        ids[role] = known[0]
    return ids


def read_tokenizer_json(file: pathlib.Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json; raises ValueError if it holds no usable tokenizer."""
    check_size(file)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        tokenizer.encode('A few words.')  # Some defects show only in use.
    except BaseException as error:  # A Rust panic is no Exception.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f'{file} is no tokenizer that can be used ({brief(error)}); fetch the checkpoint again.'
        ) from error
    return tokenizer


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
