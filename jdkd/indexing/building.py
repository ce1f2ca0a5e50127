"""Makes an index of passages, and adds passages to it."""

import contextlib
import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jdkd import retriever
from jdkd.corpus import building, importing, storage
from jdkd.corpus.passages import IdIndex, Passages
from jdkd.corpus.sources import base
from jdkd.indexing.contents import (
    FILE,
    STUDENT,
    Contents,
    Segment,
    check_student,
    read_part,
    segment_directory,
)
from jdkd.models import dual_encoder, weights
from jdkd.models.export import MARKER, read_passage_format
from jdkd.retrieval import encode
from jdkd.retriever import Retriever
from jdkd.runtime import distributed, files, lock, stages
from jdkd.runtime.messages import shown

_FILE_ROWS = 16_384  # Vectors a file, the most that a restart encodes again: minutes on a CPU.
_CHUNK = 4096  # Ids that are looked up at once.
_KNOWN = 'id in the index already'  # Kind of error.


def create(
    directory: pathlib.Path,
    student: str,
    collection: str,
    *,
    store: str = 'float32',
    on_error: str = 'stop',
    options: Mapping[str, Any] | None = None,
) -> Contents:
    """Makes an index, in a directory that the caller holds; goes on where a killed call stopped.

    Args:
        student: Directory or hub name of a dual-encoder, or the workdir of a run.
        collection: Source, file of passages, or workdir of a run; see `importing.open_passages`.
        store: Precision of the embeddings; see `vectors.save`.
        on_error: `stop` at the first unusable passage, or `skip` and count them.
        options: Of the source.

    Raises:
        FileNotFoundError: if the student or the collection does not exist.
        ValueError: if the directory holds something else, or a passage is bad.
    """
    source = importing.open_passages(collection, **(options or {}))
    model = weights.find_weights(retriever.find_student(student))
    retriever.load(model)  # What is wrong with it is told before it is copied.
    sums = {name: files.sha256(model / name) for name in weights.checkpoint_files(model)}
    wanted = Contents(student, sums, store)
    found = distributed.from_primary(
        lambda: _begin(directory, wanted, model), f'{directory}: begun'
    )
    contents = Contents.read(directory) if found else wanted
    inputs = {'files': contents.student_files}
    distributed.from_primary(
        lambda: stages.build_stage(
            directory / STUDENT, inputs, lambda out: _copy(model, out, sums)
        ),
        f'{directory}: the student',
        writes=[directory / STUDENT / stages.MANIFEST],
    )
    content = distributed.from_primary(
        lambda: _digest(collection, source, on_error, options), f'{directory}: the passages'
    )
    if contents.segments and contents.segments[0].content != content:
        raise ValueError(
            f'{directory} is an index of {contents.segments[0].source}, and not of what '
            f'{collection} holds now; to add passages, use `jdkd add {directory} FILE`, and to '
            'index others, another --output.'
        )
    return _add(directory, contents, collection, source, content, on_error)


def add(
    directory: pathlib.Path,
    collection: str,
    *,
    on_error: str = 'stop',
    options: Mapping[str, Any] | None = None,
) -> Contents:
    """Adds passages to an index that the caller holds; goes on where a killed call stopped.

    Adding what was added before changes nothing. See `create` for the arguments.

    Raises:
        FileNotFoundError: if there is no index or no such collection.
        ValueError: if a passage is bad, or its id is in the index already; with `skip`, such
            passages are left out.
        DamagedError: if the copy of the student, or a segment, is damaged.
    """
    contents = Contents.read(directory)
    check_student(directory)
    source = importing.open_passages(collection, **(options or {}))
    content = distributed.from_primary(
        lambda: _digest(collection, source, on_error, options), f'{directory}: the passages'
    )
    return _add(directory, contents, collection, source, content, on_error)


def check_new(directory: pathlib.Path) -> None:
    """Raises a ValueError if a directory holds something else than an index."""
    if (directory / FILE).is_file() or not directory.is_dir():
        return
    own = (lock.FILE, lock.HOLDER)
    others = [p.name for p in directory.iterdir() if p.name not in own]
    if others:
        raise ValueError(
            f'{directory} holds something else than an index ({shown(min(others))}); give an '
            'empty or new directory as --output.'
        )


def _identity(contents: Contents) -> dict[str, str]:
    """Checksums of a student's files without its model card, and what says who exported it."""
    beside = 'README.md', MARKER
    return {name: sha for name, sha in contents.student_files.items() if name not in beside}


def _begin(directory: pathlib.Path, wanted: Contents, model: pathlib.Path) -> bool:
    """Writes the contents of an empty index; returns whether there is one of the same student."""
    try:
        found = Contents.read(directory)
    except FileNotFoundError:
        check_new(directory)
        wanted.write(directory)
        return False
    copy = directory / STUDENT
    formats = read_passage_format(copy if copy.is_dir() else model), read_passage_format(model)
    for name, theirs, ours in (
        ('the student', _identity(found), _identity(wanted)),
        ('the format of passages', *formats),
        ('--store', found.store, wanted.store),
    ):
        if theirs != ours:
            raise ValueError(
                f'{directory} was made with another value of {name} ({found.student}, '
                f'{found.store}); give another --output, or remove it.'
            )
    return True


def _copy(model: pathlib.Path, out: pathlib.Path, names: Mapping[str, str]) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, out / name)


def _digest(
    collection: str, source: base.Source, on_error: str, options: Mapping[str, Any] | None
) -> str:
    """Digest of what a source holds and how it is read; of its name if it has no files."""
    contents: Sequence[Any] = [files.sha256(file) for file in source.files] or [collection]
    return stages.digest([*contents, on_error, *([options] if options else [])])


def _add(
    directory: pathlib.Path,
    contents: Contents,
    collection: str,
    source: base.Source,
    content: str,
    on_error: str,
) -> Contents:
    """Builds the segment of a source unless it is there; returns the contents with it."""
    added = [segment.content for segment in contents.segments]
    is_new = content not in added
    before = contents.segments if is_new else contents.segments[: added.index(content)]
    # Which passages are new depends on the segments before.
    inputs = {'content': content, 'after': [segment.name for segment in before]}
    name = stages.digest(inputs)[:12]
    target = segment_directory(directory, name)
    known = [open_passages(directory, segment).id_index for segment in before]
    new = dataclasses.replace(source, passages=_Unknown(source, known, directory))
    manifest = distributed.from_primary(
        lambda: _import(new, target, inputs, on_error), f'{target}: passages'
    )
    if manifest is None:
        return contents
    distributed.await_files([target / 'passages' / stages.MANIFEST])
    segment = Segment(name, content, collection, manifest['result']['passages'])
    _encode(directory, target, open_passages(directory, segment), contents)
    if not is_new:
        return contents
    contents = dataclasses.replace(contents, segments=(*contents.segments, segment))
    distributed.from_primary(lambda: _commit(directory, contents), f'{directory}: added')
    return contents


def _import(
    source: base.Source, target: pathlib.Path, inputs: Mapping[str, Any], on_error: str
) -> dict[str, Any] | None:
    """The manifest of a segment's passages; None if all that is usable is in the index already."""

    def build(out: pathlib.Path) -> dict[str, Any]:
        return building.build_passages(source, out, on_error=on_error)

    try:
        return stages.build_stage(target / 'passages', inputs, build)
    except ValueError as error:
        with contextlib.suppress(OSError):
            target.rmdir()  # Nothing is left of passages that cannot be used.
        if isinstance(error, building.NothingLeftError) and _KNOWN in error.skipped:
            base.log_skipped(source.name, error.skipped)
            return None
        raise


def _encode(
    directory: pathlib.Path, segment: pathlib.Path, passages: Passages, contents: Contents
) -> None:
    """Embeds the passages of a segment, unless that is done."""
    inputs = {
        'passages': passages.fingerprint,
        'student': stages.digest(contents.student_files),
        'store': contents.store,
    }

    def build(out: pathlib.Path) -> None:
        student = retriever.load(directory / STUDENT)
        tokens = _tokenise(segment, student, passages, inputs)
        encode.write_embeddings(
            out,
            student.encoder.model,
            dual_encoder.tower(student.encoder.params, 'passage'),
            tokens,
            store=contents.store,
            mesh=student.mesh,
            desc='encode passages',
            name=lambda row: f"passage '{passages.ids[row]}'",
            file_rows=_FILE_ROWS,
        )

    stages.build_stage(segment / 'vectors', inputs, build, resumable=True)
    if distributed.is_primary():
        shutil.rmtree(segment / 'tokens', ignore_errors=True)  # Nothing reads them again.


def _tokenise(segment: pathlib.Path, student: Retriever, passages: Passages, inputs):
    encoder = student.encoder
    length, texts = encoder.spec.passage_length, encoder.layout.inputs(passages)

    def build(out: pathlib.Path) -> None:
        encoder.tokenizer.write_store(
            out, texts, length, types=encoder.types, desc='tokenise passages'
        )

    stages.build_stage(segment / 'tokens', inputs, build, resumable=True)
    return encoder.tokenizer.load_store(segment / 'tokens', length)


def _commit(directory: pathlib.Path, contents: Contents) -> None:
    """Names the segments in index.json, and removes what other additions have left unfinished.

    Those were begun after fewer segments, so that nothing would go on with them.
    """
    contents.write(directory)
    names = {segment.name for segment in contents.segments}
    for path in (directory / 'segments').iterdir():
        if path.name not in names:
            files.remove(path)


def open_passages(directory: pathlib.Path, segment: Segment) -> Passages:
    """Opens the passages of a segment.

    Raises:
        DamagedError: if their files have changed.
    """
    manifest = read_part(directory, segment, 'passages')
    path = segment_directory(directory, segment.name) / 'passages'
    return storage.open_passages(path, manifest['result']['fingerprint'])


@dataclasses.dataclass(frozen=True)
class _Unknown:
    """The passages of a source whose ids no index of ids holds; the others are errors."""

    source: base.Source
    known: Sequence[IdIndex]
    directory: pathlib.Path

    def __call__(self, on_error: base.OnError) -> Iterator[base.Passage]:
        passages = iter(self.source.passages(on_error))
        while chunk := list(itertools.islice(passages, _CHUNK)):
            ids = [passage_id for _, passage_id, *_ in chunk]
            rows = [index.find(ids) for index in self.known]
            is_known = np.any(np.array(rows).reshape(-1, len(ids)) >= 0, axis=0)
            for passage, known in zip(chunk, is_known, strict=True):
                if known:
                    on_error(
                        _KNOWN,
                        f'{passage[0]}: the id {shown(passage[1])} is in {self.directory} already; '
                        'leave this passage out (--on_error=skip does) or give it another id.',
                    )
                else:
                    yield passage
