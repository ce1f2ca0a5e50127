"""Stages: directories that are complete or absent, each with a manifest of what made them.

A stage builds into a temporary directory beside its own and moves it into place once its manifest
is written, so a directory with its final name is always whole. A stage that is there with the
same inputs is not built again, after its files have been compared with the manifest's checksums,
once in a process. A damaged one is never used: it is named, moved to `replaced/` in the workdir and
built again; what was made of it stays, since a build gives the same again. One with other inputs
is refused, or replaced in the same way where the user asks for it (`--update`).

A long stage may be resumable: its temporary directory outlives a kill, and `part` finds what was
finished there.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import ml_collections
from absl import logging

import jdkd
from jdkd.runtime import distributed, files, lock

FORMAT = 5
MANIFEST = 'manifest.json'
_STARTED = 'started.json'  # What a resumable stage is being built from.
_MEND = 'give the command of the run once more: it makes that anew'

# Seconds that stages took which were built inside those that are being built now.
_inner: list[float] = []
# Stages that were found whole, and the hold on the workdir during which they were.
_whole: dict[pathlib.Path, lock.Held | None] = {}


class DamagedError(ValueError):
    """Something in the workdir is not what was written; the message says what."""


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


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that the file is either the old or the new one, also after a crash."""
    with files.atomic_write(path) as f:
        json.dump(to_json(value), f, indent=2)  # In its order, which tables show.
        f.write('\n')


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def build_stage(
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Any],
    *,
    resumable: bool = False,
) -> dict[str, Any]:
    """Builds a stage unless it is already there.

    Of several processes all call it and process 0 decides. All build, since a build may hold other
    stages and work of all devices: what process 0 writes is kept; the others write into a directory
    that is thrown away, or into the same one where they share out `parts`. A stage of host work
    alone is better called within `distributed.from_primary`.

    Args:
        directory: Where the stage lives.
        inputs: All that decides its contents: config fields and digests of the stages before it.
        build: Called with an empty directory to write into; what it returns (JSON or None) is
            kept in the manifest as `result`.
        resumable: Calls `build` with what an earlier call from the same inputs left when it was
            stopped; for builders that write with `part` or `parts`. What they write besides,
            process 0 does.

    Returns:
        The manifest: `inputs` and their `digest`, `result`, `outputs` (size and sha256 of each
        file), `seconds` that the call took which finished it, without the stages it built inside,
        and the `version` of jdkd.

    Raises:
        ValueError: if the stage was built from other inputs and is not to be updated, or by a
            newer version.
        DamagedError: if it is damaged and this process does not hold the workdir.
    """
    directory = pathlib.Path(directory)
    inputs = {'format': FORMAT, **to_json(inputs)}
    manifest, before = distributed.from_primary(
        lambda: _usable(directory, inputs), f'{directory}: there?'
    )
    if manifest is not None:
        return manifest
    finish = _build(directory, inputs, build, resumable, before)
    distributed.barrier(f'{directory}: all have built')
    return distributed.from_primary(finish, f'{directory}: finished', writes=[directory / MANIFEST])


def _build(
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Any],
    resumable: bool,
    before: Mapping[str, Any] | None,
) -> Callable[[], dict[str, Any]]:
    """Builds beside the stage's directory; returns what writes the manifest and moves it there.

    Args:
        directory, inputs, build, resumable: As for `stage`.
        before: Manifest of the same stage before it was damaged.
    """
    temporary = directory.with_name(directory.name + '.tmp')
    thrown_away = None
    if not distributed.is_primary() and not resumable:
        temporary = thrown_away = temporary.with_name(
            f'{temporary.name}-{distributed.process_index()}'
        )
    if distributed.is_primary() or thrown_away:
        resumed = _begin(temporary, inputs, resumable)
        logging.info('%s %s', 'going on with' if resumed else 'building', directory)
    if resumable:
        distributed.barrier(f'{directory}: begun')
        distributed.await_files([temporary / _STARTED])
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
    if thrown_away:
        shutil.rmtree(thrown_away)

    def finish():
        outputs = files.checksums(temporary)
        outputs.pop(_STARTED, None)
        manifest = {
            'digest': digest(inputs),
            'inputs': inputs,
            'outputs': outputs,
            'result': to_json(result),
            'seconds': round(seconds - inner, 3),
            'version': jdkd.__version__,
        }
        write_json(temporary / MANIFEST, manifest | {'sha256': digest(manifest)})
        temporary.replace(directory)
        # Only now: until here, a kill would make all of it anew.
        for path in directory.rglob(f'*{files.SEAL}'):
            path.unlink()
        (directory / _STARTED).unlink(missing_ok=True)
        for left in directory.parent.glob(f'{directory.name}.tmp-*'):
            shutil.rmtree(left)  # Of other processes, which were killed.
        _whole[directory] = lock.current()
        if before and _differs(before, manifest):
            logging.warning(
                '%s is not bit for bit what it was before the damage: another machine or library '
                'made it now. What was made of it stays; remove it to have that made again too.',
                directory,
            )
        return manifest

    return finish


def _differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a build gave something else than the same build before."""
    # Orbax gives files new names each time.
    same_names = before['outputs'].keys() == now['outputs'].keys()
    return before['result'] != now['result'] or (same_names and before['outputs'] != now['outputs'])


def _usable(directory: pathlib.Path, inputs: Mapping[str, Any]) -> tuple[dict | None, dict | None]:
    """The manifest of a stage that is whole and of these inputs; else it is set aside if there.

    Returns:
        The manifest or None; and that of the same stage which was damaged, if it can be read.
    """
    manifest = None
    try:
        manifest = _read(directory)
        if manifest is None:
            return None, None
        theirs = manifest['inputs']
        if theirs['format'] > FORMAT:
            raise ValueError(
                f'{directory} was made by a newer jdkd (format {theirs["format"]}; this one reads '
                f'{FORMAT}); upgrade jdkd, or use another --workdir.'
            )
        changed = [k for k in inputs.keys() | theirs.keys() if inputs.get(k) != theirs.get(k)]
        if not changed:
            _check(directory, manifest)
            return manifest, None
        why = f'{directory} was built from other inputs ({", ".join(sorted(changed))} differ)'
        if not (lock.current() and lock.current().update):
            raise ValueError(
                f'{why}; use another --workdir, or add --update to replace it and what depends on '
                'it.'
            )
        manifest = None
    except DamagedError as e:
        why = str(e)
    if not lock.current():
        raise DamagedError(f'{why}; {_MEND}')
    lock.set_aside(directory, why)
    return None, manifest


def _begin(temporary: pathlib.Path, inputs: Mapping[str, Any], resumable: bool) -> bool:
    """Makes the directory to build in; whether it is one that is gone on with."""
    started = temporary / _STARTED
    try:
        if resumable and read_json(started) == inputs:
            return True
    except (FileNotFoundError, ValueError):
        pass
    if lock.current() and started.exists():
        lock.set_aside(temporary, f'{temporary} was begun from other inputs')
    elif temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    if resumable:
        write_json(started, inputs)
    return False


def build_stage_from_files(
    directory: pathlib.Path,
    paths: Iterable[pathlib.Path],
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Mapping[str, Any]],
) -> dict[str, Any]:
    """A stage made of files from outside the workdir, which are not read again while they stay.

    Of several processes the first makes it; the others need not see the files.

    Args:
        directory: As for `stage`.
        paths: Each is an input: its contents must stay the same.
        inputs: The others.
        build: As for `stage`; its result gets the entry `files`, see `files.identify`.

    Returns:
        The manifest.

    Raises:
        ValueError: if a file or another input has changed.
        FileNotFoundError: if a file is missing and the stage is not there.
    """

    def make():
        try:
            manifest = _read(directory)
        except DamagedError:  # `stage` says so.
            manifest = None
        found = files.fingerprint(paths, manifest['result']['files'] if manifest else {})
        contents = {path: entry['sha256'] for path, entry in found.items()}
        return build_stage(
            directory, {**inputs, **contents}, lambda out: {**build(out), 'files': found}
        )

    return distributed.from_primary(
        make, f'{directory}: made of files', writes=[directory / MANIFEST]
    )


def write_part(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Makes a file or directory of a resumable stage, unless it is there and still what it was.

    Args:
        path: In the directory that `build` is given.
        write: Called with the path of a file or directory to make.
    """
    if path.exists():
        if not (problem := files.check_seal(path)):
            return
        logging.warning('%s; making it again.', problem)
    temporary = path.with_name(path.name + '.tmp')
    files.remove(temporary)
    write(temporary)
    files.remove(path)
    files.seal(temporary, path)
    temporary.replace(path)


def write_parts(
    directory: pathlib.Path, name: str, count: int, write: Callable[[int, BinaryIO], None]
) -> list[pathlib.Path]:
    """Writes the numbered files of a resumable stage; those that are there already are kept.

    Each is whole or absent. With several processes, each writes its share, number i being of
    process i modulo their count, and waits for the others.

    Args:
        directory: Of the stage, as `build` is given it.
        name: Of the files, with their number in place of `{}`.
        count: How many there are.
        write: Called with a number and the open file; what it writes is a function of the number.

    Returns:
        The paths of all of them, in order: those of the other processes too.
    """
    paths = [directory / name.format(f'{i:05d}') for i in range(count)]

    def write_file(i, path):
        with path.open('wb') as f:
            write(i, f)

    for i in range(distributed.process_index(), count, distributed.process_count()):
        write_part(paths[i], functools.partial(write_file, i))
    distributed.barrier(f'{directory / name}: all parts')
    distributed.await_files(paths)
    distributed.barrier(f'{directory / name}: seen by all')  # Only then may one be removed.
    return paths


def read_manifest(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, None if the stage is not there.

    Raises:
        DamagedError: if the stage is not what was written.
    """
    directory = pathlib.Path(directory)

    def read():
        try:
            manifest = _read(directory)
            if manifest is not None:
                _check(directory, manifest)
        except DamagedError as e:
            raise DamagedError(f'{e}; {_MEND}') from None
        return manifest

    return distributed.from_primary(read, f'{directory}: what is there?')


def _read(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest, if it is what was written; the stage's files are not looked at."""
    path = directory / MANIFEST
    if not directory.exists():
        return None
    if not path.exists():
        raise DamagedError(f'{path} is missing')
    try:
        manifest = read_json(path)
        # Versions before format 3 wrote no checksums.
        if manifest['inputs']['format'] < 3 and 'sha256' not in manifest:
            return manifest
        if manifest.pop('sha256') != digest(manifest):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f'{path} is damaged: it is not what was written') from None
    return manifest


def _check(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Compares a stage's files with its manifest, the first time in this process."""
    if directory in _whole and _whole[directory] is lock.current():
        return
    if problem := files.find_damage(directory, manifest['outputs']):
        raise DamagedError(f'{directory} is damaged: {problem}')
    _whole[directory] = lock.current()


def read_seconds(workdir: pathlib.Path) -> dict[str, float]:
    """Wall seconds of every finished stage under a workdir, by its relative path."""
    found = (path.relative_to(workdir) for path in sorted(pathlib.Path(workdir).rglob(MANIFEST)))
    return {
        str(path.parent): read_json(workdir / path)['seconds']
        for path in found
        if path.parts[0] != lock.REPLACED
    }
