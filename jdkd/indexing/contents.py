"""What the directory of an index holds.

    index.json                   the student, the precision, and the segments in their order
    student/                     a copy of the checkpoint: the index needs nothing else
    segments/<name>/passages/    ids, titles and texts, as in an imported collection
    segments/<name>/vectors/     their embeddings

All but `index.json` are stages. Each addition of passages is a segment, which counts once
`index.json` names it: whatever is killed before leaves the index as it was.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Self

from jdkd.runtime import stages
from jdkd.runtime.messages import shown

FILE = 'index.json'
STUDENT = 'student'
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Segment:
    """Passages that were added together.

    Attributes:
        name: Its directory.
        content: Digest of what was added; adding it again changes nothing.
        source: Where it came from, as the user named it.
        passages: Their number.
    """

    name: str
    content: str
    source: str
    passages: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """`index.json`."""

    student: str  # As the user named it.
    student_files: Mapping[str, str]  # {relative path: sha256}
    store: str  # Of config.fields.STORES.
    segments: tuple[Segment, ...] = ()

    @property
    def passages(self) -> int:
        return sum(segment.passages for segment in self.segments)

    def write(self, directory: pathlib.Path) -> None:
        stages.write_json(directory / FILE, {'format': FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, directory: pathlib.Path) -> Self:
        """Reads the contents of an index.

        Raises:
            FileNotFoundError: if there is no index.
            ValueError: if the file is damaged or of a newer jdkd.
        """
        path = directory / FILE
        try:
            fields: dict[str, Any] = stages.read_json(path)
            number = fields.pop('format')
            if number == FORMAT:
                segments = tuple(Segment(**segment) for segment in fields.pop('segments'))
                return cls(**fields, segments=segments)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'{directory} holds no index; make one with `jdkd index --output {directory}`.'
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f'{path} is damaged; make the index again in another directory.'
            ) from None
        raise ValueError(
            f'{path} has format {shown(number)}, and this jdkd reads {FORMAT}; use the jdkd that '
            'wrote it, or make the index again.'
        )


def segment_directory(directory: pathlib.Path, name: str) -> pathlib.Path:
    return directory / 'segments' / name


def read_part(directory: pathlib.Path, segment: Segment, part: str) -> dict[str, Any]:
    """The manifest of the `passages` or `vectors` of a segment.

    Raises:
        DamagedError: if files are missing or have changed; names the command that rebuilds them.
    """
    again = f'`jdkd add {directory} {segment.source}`, with the options that it had, rebuilds it'
    return _read_stage(segment_directory(directory, segment.name) / part, again)


def check_student(directory: pathlib.Path) -> None:
    """Raises a DamagedError, which says what rebuilds it, unless the student's copy is intact."""
    _read_stage(directory / STUDENT, 'the `jdkd index` that made it, given again, rebuilds it')


def _read_stage(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    manifest = stages.read_manifest(path, remedy)
    if manifest is None:
        raise stages.DamagedError(f'{path} is missing; {remedy}.')
    return manifest
