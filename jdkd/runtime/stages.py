"""Stages: directories that are complete or absent, each with a manifest of what made them.

A stage builds into a temporary directory beside its own and moves it into place once its manifest
is written, so a directory with its final name is always whole. A stage that is there with the
same inputs is not built again; one with other inputs is refused, never overwritten.

A long stage may be resumable: its temporary directory outlives a kill, and `parts` finds the files
there that were finished.
"""

import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import jax
import ml_collections
from absl import logging

FORMAT = 2
MANIFEST = 'manifest.json'
_STARTED = 'started.json'  # What a resumable stage is being built from.

# Seconds that stages took which were built inside those that are being built now.
_inner: list[float] = []


def to_json(value: Any) -> Any:
    """ConfigDicts and tuples as plain JSON values."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def digest(value: Any) -> str:
    """sha256 of a JSON-able value, equal for equal values."""
    text = json.dumps(to_json(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: pathlib.Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def identify(
    files: Iterable[pathlib.Path], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What files hold, by path: `size`, `mtime_ns` and `sha256`.

    Args:
        files: Which.
        known: What this function returned before: a file of the same size and time is not read,
            and one that is gone counts as unchanged.

    Raises:
        FileNotFoundError: if a file is missing that is not known.
    """
    found = {}
    for file in files:
        if str(file) in known and not file.exists():
            logging.warning('%s is gone; going on with what was made of it.', file)
            found[str(file)] = known[str(file)]
            continue
        stat = file.stat()
        entry = {'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns}
        before = known.get(str(file), {})
        same = entry.items() <= before.items()
        entry['sha256'] = before['sha256'] if same else file_digest(file)
        found[str(file)] = entry
    return found


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that the file is either the old or the new one, also after a crash."""
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('w', encoding='utf-8') as f:
        json.dump(to_json(value), f, indent=2, sort_keys=True)
        f.write('\n')
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def stage(
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Any],
    *,
    resumable: bool = False,
) -> dict[str, Any]:
    """Builds a stage unless it is already there.

    Args:
        directory: Where the stage lives.
        inputs: All that decides its contents: config fields and digests of the stages before it.
        build: Called with an empty directory to write into; what it returns (JSON or None) is
            kept in the manifest as `result`.
        resumable: Calls `build` with what an earlier call from the same inputs left when it was
            stopped; for builders that write with `parts`.

    Returns:
        The manifest: `digest` of the inputs, `result`, `seconds` that the call took which finished
        it, without the stages it built inside, `outputs` (file sizes).

    Raises:
        ValueError: if the stage was built from other inputs.
    """
    directory = pathlib.Path(directory)
    inputs = {'format': FORMAT, **to_json(inputs)}
    manifest = read_manifest(directory)
    if manifest is not None:
        changed = sorted(
            k
            for k in inputs.keys() | manifest['inputs'].keys()
            if inputs.get(k) != manifest['inputs'].get(k)
        )
        if changed:
            raise ValueError(
                f'{directory} was built from other inputs ({", ".join(changed)} differ); '
                'use another --workdir, or remove that directory and those made after it.'
            )
        return manifest
    temporary = directory.with_name(directory.name + '.tmp')
    started = temporary / _STARTED
    resumed = resumable and started.exists() and read_json(started) == inputs
    if temporary.exists() and not resumed:
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True, exist_ok=True)
    if resumable:
        write_json(started, inputs)
    logging.info('%s %s', 'going on with' if resumed else 'building', directory)
    start = time.monotonic()
    _inner.append(0.0)
    try:
        result = build(temporary)
    except Exception:
        if not resumable:
            shutil.rmtree(temporary)  # Maybe gigabytes, which nothing would go on with.
        raise
    finally:
        inner = _inner.pop()
    seconds = time.monotonic() - start
    if _inner:
        _inner[-1] += seconds
    started.unlink(missing_ok=True)
    manifest = {
        'digest': digest(inputs),
        'inputs': inputs,
        'outputs': {
            str(p.relative_to(temporary)): p.stat().st_size
            for p in sorted(temporary.rglob('*'))
            if p.is_file()
        },
        'result': to_json(result),
        'seconds': round(seconds - inner, 3),
    }
    write_json(temporary / MANIFEST, manifest)
    temporary.replace(directory)
    return manifest


def stage_of_files(
    directory: pathlib.Path,
    files: Iterable[pathlib.Path],
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Mapping[str, Any]],
) -> dict[str, Any]:
    """A stage made of files from outside the workdir, which are not read again while they stay.

    Args:
        directory: As for `stage`.
        files: Each is an input: its contents must stay the same.
        inputs: The others.
        build: As for `stage`; its result gets the entry `files`, see `identify`.

    Returns:
        The manifest.

    Raises:
        ValueError: if a file or another input has changed.
        FileNotFoundError: if a file is missing and the stage is not there.
    """
    manifest = read_manifest(directory)
    found = identify(files, manifest['result']['files'] if manifest else {})
    contents = {path: entry['sha256'] for path, entry in found.items()}

    return stage(directory, {**inputs, **contents}, lambda out: {**build(out), 'files': found})


def parts(
    directory: pathlib.Path, name: str, count: int, write: Callable[[int, BinaryIO], None]
) -> list[pathlib.Path]:
    """Writes the numbered files of a resumable stage; those that are there already are kept.

    Each is whole or absent. With several processes, each writes its share: number i is of process
    i modulo their count.

    Args:
        directory: Of the stage, as `build` is given it.
        name: Of the files, with their number in place of `{}`.
        count: How many there are.
        write: Called with a number and the open file; what it writes is a function of the number.

    Returns:
        The paths of all of them, in order.
    """
    paths = [directory / name.format(f'{i:05d}') for i in range(count)]
    for i in range(jax.process_index(), count, jax.process_count()):
        if paths[i].exists():
            continue
        temporary = paths[i].with_name(paths[i].name + '.tmp')
        with temporary.open('wb') as f:
            write(i, f)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(paths[i])
    return paths


def read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, None if the stage is not there."""
    path = pathlib.Path(directory) / MANIFEST
    return read_json(path) if path.exists() else None


def seconds(workdir: pathlib.Path) -> dict[str, float]:
    """Wall seconds of every finished stage under a workdir, by its relative path."""
    return {
        str(path.parent.relative_to(workdir)): read_json(path)['seconds']
        for path in sorted(pathlib.Path(workdir).rglob(MANIFEST))
    }
