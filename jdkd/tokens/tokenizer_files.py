"""The tokenizer of a checkpoint, as the tokenizers library has it."""

import os
import pathlib

import tokenizers

from jdkd.runtime.checkpoint_files import check_size, read_json, reading
from jdkd.runtime.messages import brief

# What exports copy.
FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.txt',
    'vocab.json',
    'merges.txt',
)

# What tokenizers that do not say call their special tokens.
_SPECIAL = {
    'cls': ('[CLS]', '<s>'),
    'sep': ('[SEP]', '</s>'),
    'pad': ('[PAD]', '<pad>'),
    'mask': ('[MASK]', '<mask>'),
}


def load(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """The fast tokenizer of a directory, which neither truncates nor pads until told to.

    Raises:
        FileNotFoundError: if there are no tokenizer files.
        ValueError: if they are damaged, or ask for code of their own.
    """
    directory = pathlib.Path(path)
    _check_links(directory)
    read_json(directory / 'tokenizer_config.json')  # Which may ask for code.
    if (directory / 'tokenizer.json').is_file():
        tokenizer = read_tokenizer_json(directory / 'tokenizer.json')
    else:
        if not any((directory / name).is_file() for name in ('vocab.txt', 'vocab.json')):
            raise FileNotFoundError(
                f'{directory} has no tokenizer.json and no vocabulary; copy the tokenizer of the '
                'checkpoint there.'
            )
        import transformers  # Here, because it takes seconds.

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            ).backend_tokenizer
            _check_vocabulary(directory, tokenizer)
        except Exception as error:  # Each class of tokenizer has errors of its own.
            raise ValueError(
                f'{directory} has no tokenizer that transformers can read ({brief(error)}); put '
                'its tokenizer.json there.'
            ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _check_vocabulary(directory: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> None:
    """transformers makes do with special tokens alone where it does not find its own file."""
    words = read_json(directory / 'vocab.json')
    if words is None:
        words = {*(directory / 'vocab.txt').read_text(encoding='utf-8').split('\n')} - {''}
    if tokenizer.get_vocab_size() < len(words):
        raise ValueError(f'its vocabulary of {len(words)} tokens is not taken up')


def special_ids(path: str | os.PathLike) -> dict[str, int]:
    """Ids of the special tokens `cls`, `sep`, `pad` and `mask` of a tokenizer directory.

    Raises:
        FileNotFoundError: if there are no tokenizer files.
        ValueError: if the vocabulary has no such token.
    """
    directory = pathlib.Path(path)
    told = read_json(directory / 'special_tokens_map.json') or {}
    told |= read_json(directory / 'tokenizer_config.json') or {}
    tokenizer = load(directory)
    ids = {}
    for role, usual in _SPECIAL.items():
        token = told.get(f'{role}_token')
        with reading(directory / 'tokenizer_config.json'):
            token = token['content'] if isinstance(token, dict) else token
            found = [tokenizer.token_to_id(t) for t in ((token,) if token else usual)]
        found = [i for i in found if i is not None]
        if not found:
            raise ValueError(
                f'The tokenizer in {directory} has no {role} token '
                f'({brief(token or " or ".join(usual))}); name it as {role}_token in its '
                'tokenizer_config.json.'
            )
        ids[role] = found[0]
    return ids


def read_tokenizer_json(file: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        ValueError: if it is none.
    """
    check_size(file)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        tokenizer.encode('A few words.')  # Some faults show when it is used.
    except BaseException as error:  # Of Exception itself, and where Rust panics not even of that.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(
            f'{file} is no tokenizer that can be used ({brief(error)}); fetch the checkpoint again.'
        ) from error
    return tokenizer


def _check_links(folder: pathlib.Path) -> None:
    """Checks that the files of a tokenizer, which exports copy, are the checkpoint's own.

    Raises:
        ValueError: if one is a link to elsewhere; it may be to what nobody meant to publish.
    """
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
