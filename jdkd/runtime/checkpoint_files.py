"""Reads the files of untrusted checkpoints; errors name the file.

Never unpickles and never runs code of a checkpoint. Follows symbolic links, because the Hugging
Face cache consists of them.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors

from jdkd.runtime import files
from jdkd.runtime.messages import brief, shown

_MAX_JSON_BYTES = 2**27  # Four times the largest tokenizers.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError)
_DTYPES = ('F64', 'F32', 'F16', 'BF16')  # Quantised types would need scales.


@contextlib.contextmanager
def reading(file: pathlib.Path) -> Iterator[None]:
    """Converts errors that unexpected contents of a file cause into errors that name the file.

    Raises:
        ValueError: for lookup, type, arithmetic and similar errors. ValueError and OSError pass
            unchanged: their messages explain themselves.
    """
    try:
        yield
    except (*_MALFORMED, safetensors.SafetensorError) as error:
        raise ValueError(
            f'{file} is damaged or of an unexpected kind ({type(error).__name__}: '
            f'{brief(error)}); fetch the checkpoint again.'
        ) from error


def join_inside(folder: pathlib.Path, name: Any, by: pathlib.Path) -> pathlib.Path:
    """Joins a folder and a path that the file `by` names; raises a ValueError if it leads out."""
    plain = isinstance(name, str) and name.isprintable() and len(name) < 256
    path = pathlib.PurePath(name if plain else '..')
    if path.is_absolute() or '..' in path.parts:
        raise ValueError(f'{by} names {shown(name)}, which is not inside {folder}.')
    return folder / path


def read_json(file: pathlib.Path, kind: type = dict) -> Any:
    """The content of a JSON file, None if there is no such file.

    Raises:
        ValueError: if it is no file, too large, invalid or of another type, or if it names Python
            code.
    """
    if not file.is_file():
        if file.is_symlink() or file.exists():
            raise ValueError(
                f'{file} is {"a directory" if file.is_dir() else "a link to no file"} where a JSON '
                'file belongs; fetch the checkpoint again.'
            )
        return None
    check_json(file)
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is no JSON ({error}); fetch the checkpoint again.') from error
    if not isinstance(content, kind):
        raise ValueError(
            f'{file} holds a {type(content).__name__} where a {kind.__name__} belongs; fetch the '
            'checkpoint again.'
        )
    if kind is dict and content.get('auto_map'):
        raise ValueError(
            f'{file} has auto_map: this checkpoint needs Python code of its own, which jdkd never '
            "runs; give one that transformers' own classes load."
        )
    return content


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is not read yet."""

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]  # The header has been checked against the size of the file.
    handle: Any  # The open file.

    def read(self) -> np.ndarray:
        """Reads the array; raises a ValueError if its numbers are not floating point."""
        dtype = self.handle.get_slice(self.name).get_dtype()
        if dtype not in _DTYPES:
            raise ValueError(
                f'Tensor {self.name!r} in {self.file} is of type {dtype}; supported are '
                f'{", ".join(_DTYPES)}.'
            )
        with reading(self.file):
            return self.handle.get_tensor(self.name)


def open_tensors(file: pathlib.Path) -> dict[str, Tensor]:
    """Memory-maps the tensors of a safetensors file, by name.

    Raises:
        ValueError: if its header is damaged or does not match the size of the file.
    """
    _check_pointer(file)
    with reading(file):
        handle = safetensors.safe_open(str(file), 'numpy')
        return {
            name: Tensor(file, name, tuple(handle.get_slice(name).get_shape()), handle)
            for name in handle.keys()
        }


def check_json(file: pathlib.Path) -> None:
    """Raises a ValueError for a JSON file larger than 128 MiB, or a pointer of Git LFS to one."""
    _check_pointer(file)
    size = file.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f'{file} has {size} bytes, more than the allowed {_MAX_JSON_BYTES}.')


def _check_pointer(file: pathlib.Path) -> None:
    with file.open('rb') as stream:
        if stream.read(len(files.GIT_LFS)) == files.GIT_LFS:
            raise ValueError(
                f'{file} is a pointer of Git LFS to a file that was not fetched; run '
                '"git lfs pull" in the repository.'
            )
