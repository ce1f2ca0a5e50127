"""Files of a checkpoint, which anyone may have written: data that is read, or refused by name.

Nothing is unpickled and no code that comes with a checkpoint is run. Links are followed, because
the Hugging Face cache is made of them.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors

from jdkd.runtime.messages import brief, shown

_LARGEST_JSON = 2**27  # Bytes; the largest tokenizers have a quarter of that.
_DTYPES = ('F64', 'F32', 'F16', 'BF16')  # Of weights; others would need scales, or be no weights.


@contextlib.contextmanager
def reading(file: pathlib.Path) -> Iterator[None]:
    """For reading what a file holds: where it is not as the reader expects, the file is to blame.

    Args:
        file: What the message names.

    Raises:
        ValueError: for whatever computing with unexpected values raises; errors that name
            themselves what is wrong (ValueError, OSError) pass.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        safetensors.SafetensorError,
    ) as error:
        raise ValueError(
            f'{file} is damaged or not of the kind that it should be ({type(error).__name__}: '
            f'{brief(error)}); fetch the checkpoint again.'
        ) from error


def join_inside(folder: pathlib.Path, name: Any, by: pathlib.Path) -> pathlib.Path:
    """A path as a file of the folder names it.

    Raises:
        ValueError: if it is no path inside the folder.
    """
    plain = isinstance(name, str) and name.isprintable() and len(name) < 256
    path = pathlib.PurePath(name if plain else '..')
    if path.is_absolute() or '..' in path.parts:
        raise ValueError(f'{by} names {shown(name)}, which is not inside {folder}.')
    return folder / path


def read_json(file: pathlib.Path, kind: type = dict) -> Any:
    """The content of a JSON file, None where there is no such file.

    Raises:
        ValueError: if it is too large, no JSON, or not of the kind, or if it asks for code.
    """
    if not file.is_file():
        return None
    check_size(file)
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
            f'{file} has auto_map: this checkpoint is made for Python code of its own, which is '
            "never run here; give one that transformers' own classes load."
        )
    return content


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file of which only the header has been read.

    Attributes:
        file: Where it is.
        name: Its name there.
        shape: As the header says, which has been checked against the size of the file.
        handle: The open file.
    """

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    handle: Any

    def read(self) -> np.ndarray:
        """The array.

        Raises:
            ValueError: if it is not of floating point numbers.
        """
        dtype = self.handle.get_slice(self.name).get_dtype()
        if dtype not in _DTYPES:
            raise ValueError(
                f'Tensor {self.name!r} in {self.file} is of type {dtype}; supported are '
                f'{", ".join(_DTYPES)}.'
            )
        with reading(self.file):
            return self.handle.get_tensor(self.name)


def open_tensors(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, memory-mapped.

    Raises:
        ValueError: if its header is damaged, or promises what the file does not hold.
    """
    with reading(file):
        handle = safetensors.safe_open(str(file), 'numpy')
        return {
            name: Tensor(file, name, tuple(handle.get_slice(name).get_shape()), handle)
            for name in handle.keys()
        }


def check_size(file: pathlib.Path) -> None:
    """Checks that a JSON file is no larger than any that a checkpoint has.

    Raises:
        ValueError: if it is.
    """
    size = file.stat().st_size
    if size > _LARGEST_JSON:
        raise ValueError(f'{file} has {size} bytes, more than the {_LARGEST_JSON} that are read.')
