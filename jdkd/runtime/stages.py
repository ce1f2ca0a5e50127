"""Stages: directories that are complete or absent, each with a manifest of its inputs and outputs.

A stage is built in a temporary directory beside its own and moved into place once its manifest is
written, so a directory with its final name is always complete. A stage with the same inputs is
reused after its files have been compared with the checksums of the manifest, once per process. A
damaged stage is never used: it is named, moved to `replaced/` in the workdir and rebuilt; the
stages built from it stay, because builds are deterministic. A stage with other inputs is an error,
or is replaced in the same way with `--update`.

A long stage may be resumable: its temporary directory outlives a kill, and `jdkd.runtime.parts`
skips the files that are finished.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import logging

from jdkd.runtime import bucket, distributed, files, libraries, lock
from jdkd.runtime.files import MANIFEST, STARTED
from jdkd.runtime.messages import brief
from jdkd.version import __version__

FORMAT = 5
_DELETED = '.deleted.json'  # Suffix of the manifests of deleted stages.
_REMEDY = 'the command that made it, such as jdkd train, rebuilds it when it is run again'

# One item for each stage being built: the seconds of the stages built inside it.
_inner_seconds: list[float] = []
# Stages whose files were verified, and the hold on the workdir at that time.
_verified: dict[pathlib.Path, lock.Held | None] = {}


class DamagedError(ValueError):
    """Files in the workdir differ from what was written; the message names them."""


def to_json(value: Any) -> Any:
    """Config sections and tuples as plain JSON values."""
    if hasattr(value, 'to_dict'):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def digest(value: Any) -> str:
    """sha256 of a value with a JSON form; equal for equal values."""
    return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON atomically: after a crash, the file is either the old or the new one."""
    with files.atomic_write(path) as f:
        json.dump(to_json(value), f, indent=2)  # Unsorted: tables show the order of the keys.
        f.write('\n')


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding='utf-8'))


def build_stage(
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Any],
    *,
    resumable: bool = False,
    begun_with: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds a stage unless it exists; returns its manifest.

    All processes call it and build, because a build may contain other stages and computations on
    all devices. The files of process 0 are kept; the others write into directories that are
    deleted, or share the work of `parts`. Call a stage of host work alone within
    `distributed.from_primary`.

    Args:
        inputs: Config fields and digests of earlier stages that determine its contents.
        build: Writes into the empty directory that it is given; returns JSON or None.
        resumable: Whether `build` continues in the directory that a stopped call with the same
            inputs left behind. It then writes with `parts`; only process 0 writes other files.
        begun_with: What a resumed build depends on besides, such as the number of devices: where it
            differs, the build begins anew. A finished stage is reused whatever it is.

    Returns:
        The manifest: `inputs` and their `digest`, the `result` of `build`, `outputs` (size and
        sha256 of each file), `seconds` without the stages built inside, `version` of jdkd and
        those of the `libraries` that compute.

    Raises:
        ValueError: if the stage has other inputs and must not be updated, or is of a newer version.
        DamagedError: if it is damaged and this process does not hold the workdir.
    """
    inputs = {'format': FORMAT, **to_json(inputs)}
    manifest, damaged = distributed.from_primary(
        lambda: _find_reusable(directory, inputs), f'{directory}: reusable'
    )
    if manifest is not None:
        return manifest
    temporary, body = _build(directory, inputs, build, resumable, begun_with or {})
    distributed.barrier(f'{directory}: built')
    return distributed.from_primary(
        lambda: _finish(directory, temporary, body, damaged),
        f'{directory}: finished',
        writes=[directory / MANIFEST],
    )


def build_stage_from_files(
    directory: pathlib.Path,
    paths: Iterable[pathlib.Path],
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Mapping[str, Any]],
    *,
    kept: bool = False,
) -> dict[str, Any]:
    """Builds a stage from files outside the workdir, on process 0; returns its manifest.

    The contents of the files are inputs too; their fingerprint is `files` of the result. Unchanged
    files are not read again. Other processes need not see the files.

    Args:
        kept: Whether a finished stage is used, with a warning, where only files have changed.

    Raises:
        ValueError: if a file or another input has changed.
        FileNotFoundError: if a file is missing and the stage does not exist.
    """

    def build_on_primary():
        manifest = None
        with contextlib.suppress(DamagedError):  # `build_stage` reports it.
            manifest = peek(directory)
        before = manifest['result']['files'] if manifest else {}
        prints = files.fingerprint(paths, before)
        contents = {path: entry['sha256'] for path, entry in prints.items()}
        read = {path: entry['sha256'] for path, entry in before.items()}
        if kept and manifest and contents != read:
            changed = min(path for path, _ in contents.items() ^ read.items())
            if to_json(inputs).items() <= manifest['inputs'].items():  # Nothing else has changed.
                logging.warning('%s has changed; %s is of what it was before.', changed, directory)
                return read_manifest(directory)  # Damage is an error: what it was made of is gone.
        return build_stage(
            directory, {**inputs, **contents}, lambda out: {**build(out), 'files': prints}
        )

    return distributed.from_primary(
        build_on_primary, f'{directory}: built from files', writes=[directory / MANIFEST]
    )


def delete(directory: pathlib.Path) -> None:
    """Deletes a finished stage, on this process; its manifest stays, for `read_seconds`.

    From then on there is no such stage. A kill leaves no half of it: the directory is renamed to
    what the next build, or the next deletion, clears.
    """
    temporary = directory.with_name(f'{directory.name}.tmp')
    files.remove(temporary)
    with contextlib.suppress(DamagedError):
        if manifest := peek(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            write_json(directory.with_name(directory.name + _DELETED), manifest)
    with contextlib.suppress(FileNotFoundError):
        directory.rename(temporary)
        files.remove(temporary)
    _verified.pop(directory, None)
    if kept := bucket.of(directory):
        kept.deleted(directory)


def remove_all(directory: pathlib.Path) -> None:
    """Removes a directory of stages on this process, without a trace."""
    files.remove(directory)
    if kept := bucket.of(directory):
        kept.deleted(directory)


def exists(directory: pathlib.Path) -> bool:
    """Whether there is a finished stage, here or in the run's bucket."""
    kept = bucket.of(directory)
    return (directory / MANIFEST).is_file() or bool(kept and kept.manifest(directory))


def peek(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, on this process; its files are neither fetched nor checked.

    None if there is no stage.

    Raises:
        DamagedError: if the manifest is damaged or missing.
    """
    path, kept = directory / MANIFEST, bucket.of(directory)
    if path.exists():
        content = path.read_bytes()
    elif directory.exists():
        raise DamagedError(f'{path} is missing')
    elif kept is None or (content := kept.manifest(directory)) is None:
        return None
    try:
        manifest = json.loads(content)
        sha256, old = manifest.pop('sha256', None), manifest['inputs']['format'] < 3
        # Formats before 3 have no checksum.
        if sha256 != digest(manifest) and not (old and sha256 is None):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f'{path} is damaged: its contents have changed') from None
    return manifest


def read_manifest(directory: pathlib.Path, remedy: str = _REMEDY) -> dict[str, Any] | None:
    """The manifest of a finished stage, None if the stage does not exist.

    Args:
        remedy: What the error says to do; by default to run the command that made it.

    Raises:
        DamagedError: if the stage is damaged.
    """

    def read():
        try:
            manifest = peek(directory)
            if manifest is not None:
                _verify(directory, manifest)
        except DamagedError as e:
            raise DamagedError(f'{e}; {remedy}') from None
        return manifest

    return distributed.from_primary(read, f'{directory}: manifest')


def read_seconds(workdir: pathlib.Path) -> dict[str, float]:
    """Wall seconds of every finished or deleted stage under a workdir, by its relative path."""
    deleted = {
        str(p.relative_to(workdir)).removesuffix(_DELETED): p
        for p in sorted(workdir.rglob(f'*{_DELETED}'))
    }
    manifests = {name: read_json(path) for name, path in deleted.items()}
    return {
        name: manifest['seconds']
        for name, manifest in sorted({**manifests, **read_manifests(workdir)}.items())
        if not name.startswith(f'{lock.REPLACED}/')
    }


def read_manifests(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Manifests of all finished stages under a workdir, by their relative paths; unchecked."""
    kept = bucket.of(workdir)
    manifests = dict(kept.manifests()) if kept else {}
    for path in workdir.rglob(MANIFEST):
        name = str(path.parent.relative_to(workdir))
        # What was set aside may be damaged.
        if not name.startswith(f'{lock.REPLACED}/') and '.tmp' not in path.parent.suffix:
            manifests[name] = read_json(path)
    return dict(sorted(manifests.items()))


def _find_reusable(
    directory: pathlib.Path, inputs: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Manifests of the intact and the damaged stage, if any; sets aside what cannot be reused."""
    damaged = None
    try:
        manifest = peek(directory)
        if manifest is None:
            return None, None
        problem = _check_inputs(directory, manifest['inputs'], inputs)
        if problem is None:
            damaged = manifest
            _verify(directory, manifest)
            return manifest, None
    except DamagedError as e:
        if not lock.current():
            raise DamagedError(f'{e}; {_REMEDY}') from None
        problem = str(e)
    _set_aside(directory, problem)
    return None, damaged


def _set_aside(directory: pathlib.Path, reason: str) -> None:
    target = lock.set_aside(directory, reason)
    if kept := bucket.of(directory):
        kept.moved(directory, target)


def _check_inputs(
    directory: pathlib.Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> str | None:
    """Says why to replace a stage, None if its inputs are ours; raises as `build_stage`."""
    if theirs['format'] > FORMAT:
        raise ValueError(
            f'{directory} was made by a newer jdkd (format {theirs["format"]}; this one reads '
            f'{FORMAT}); upgrade jdkd, or use another --workdir.'
        )
    changed = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if not changed:
        return None
    reason = f'{directory} was built from other inputs ({brief(", ".join(changed))} differ)'
    if not ((held := lock.current()) and held.update):
        raise ValueError(
            f'{reason}; use another --workdir, or add --update to replace it and the stages that '
            'depend on it.'
        )
    return reason


def _build(
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    build: Callable[[pathlib.Path], Any],
    resumable: bool,
    begun_with: Mapping[str, Any],
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Builds a stage beside its directory; returns where, and its manifest without `outputs`."""
    discarded = not distributed.is_primary() and not resumable
    suffix = f'.tmp-{distributed.process_index()}' if discarded else '.tmp'
    temporary = directory.with_name(directory.name + suffix)
    if distributed.is_primary() or discarded:
        begun = {**inputs, 'begun_with': to_json(begun_with)} if begun_with else inputs
        resumed = _begin(temporary, begun, resumable)
        logging.info('%s %s', 'resuming' if resumed else 'building', directory)
    if resumable:
        distributed.barrier(f'{directory}: begun')
        distributed.await_files([temporary / STARTED])
    start = time.monotonic()
    _inner_seconds.append(0.0)
    try:
        result = build(temporary)
    except Exception:
        if not resumable:
            shutil.rmtree(temporary)  # Frees the disk: nothing resumes from it.
        raise
    finally:
        inner = _inner_seconds.pop()
    seconds = time.monotonic() - start
    if _inner_seconds:
        _inner_seconds[-1] += seconds
    if discarded:
        shutil.rmtree(temporary)
    return temporary, {
        'digest': digest(inputs),
        'inputs': inputs,
        'result': to_json(result),
        'seconds': round(seconds - inner, 3),
        'version': __version__,
        'libraries': libraries.versions(),
    }


def _begin(temporary: pathlib.Path, inputs: Mapping[str, Any], resumable: bool) -> bool:
    """Creates the directory to build in; returns whether it resumes an earlier build."""
    started, kept = temporary / STARTED, bucket.of(temporary)
    with contextlib.suppress(FileNotFoundError, ValueError):
        if resumable and read_json(started) == inputs:
            if kept:
                kept.resume(temporary, inputs)
            return True
    if lock.current() and started.exists():
        lock.set_aside(temporary, f'{temporary} was begun from other inputs')
    elif temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    resumes = resumable and kept is not None and kept.resume(temporary, inputs)
    if resumable:
        write_json(started, inputs)
    return resumes


def _finish(
    directory: pathlib.Path,
    temporary: pathlib.Path,
    body: Mapping[str, Any],
    damaged: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Writes the manifest of a built stage and moves it into place; returns the manifest."""
    outputs = files.checksums(temporary)
    outputs.pop(STARTED, None)
    manifest = dict(sorted({**body, 'outputs': outputs}.items()))
    write_json(temporary / MANIFEST, manifest | {'sha256': digest(manifest)})
    temporary.replace(directory)
    # Not before the move: a kill would leave parts without seals, which would be rebuilt.
    for path in directory.rglob(f'*{files.SEAL}'):
        path.unlink()
    (directory / STARTED).unlink(missing_ok=True)
    for leftover in directory.parent.glob(f'{directory.name}.tmp-*'):
        shutil.rmtree(leftover)  # From other processes that were killed.
    _verified[directory] = lock.current()
    if kept := bucket.of(directory):
        kept.finished(directory)
    if damaged and damaged['outputs'].keys() != outputs.keys():
        outputs = damaged['outputs']  # Orbax gives files new names each time.
    if damaged and (damaged['result'], damaged['outputs']) != (manifest['result'], outputs):
        logging.warning(
            '%s is not bit for bit what it was before the damage: it was rebuilt on another '
            'machine or with other libraries (%s). The stages built from it stay; remove it to '
            'rebuild them too.',
            directory,
            libraries.changes(damaged.get('libraries'), manifest['libraries']),
        )
    return manifest


def _verify(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Compares the files of a stage with its manifest, the first time in this process."""
    if directory in _verified and _verified[directory] is lock.current():
        return
    problem, outputs, kept = None, manifest['outputs'], bucket.of(directory)
    is_here = directory.exists()
    if is_here:
        problem = files.find_damage(directory, outputs)
    if kept and (problem or not is_here) and kept.manifest(directory) is not None:
        if problem:
            logging.warning('%s; fetching it again.', problem)
            files.remove(directory)
        problem = kept.fetch(directory, outputs)
    if problem:
        raise DamagedError(f'{directory} is damaged: {problem}')
    _verified[directory] = lock.current()
