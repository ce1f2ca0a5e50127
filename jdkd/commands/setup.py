"""What commands share: finding a config, holding a workdir, opening a run."""

import contextlib
import functools
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

import ml_collections
from absl import logging

from jdkd import config as configs
from jdkd.algorithm import pseudo_labels
from jdkd.config import Config, EvalConfig
from jdkd.corpus import importing, lengths
from jdkd.corpus.collection import Collection
from jdkd.run import Run
from jdkd.runtime import bucket, distributed, files, interrupts, lock
from jdkd.runtime import mesh as meshes
from jdkd.runtime.object_store import BucketError
from jdkd.systems import roles
from jdkd.systems.loading import read_tokenizer

_NO_SPACE = 2**20  # Bytes below which a disk counts as full.
_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def find_config(name: str) -> str:
    """Completes the bare name of a packaged config, such as `mta4dpr:tiny`, to its path.

    Any other name is returned as it is; what follows the colon is the config's argument.
    """
    file, colon, argument = name.partition(':')
    packaged = _CONFIGS / f'{file}.py'
    is_bare = re.fullmatch(r'\w+', file) and not pathlib.Path(file).is_file()
    return f'{packaged}{colon}{argument}' if is_bare and packaged.is_file() else name


def read_config(name: str) -> ml_collections.ConfigDict:
    """The config of a file or of a packaged name; see `find_config`.

    Raises:
        FileNotFoundError: if there is none.
    """
    file, _, argument = find_config(name).partition(':')
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f'there is no config file {file!r}; give one, or mta4dpr:tiny.')
    return configs.run_file(file, argument)


def resolve_training(config: ml_collections.ConfigDict) -> Config:
    """Resolves a config to train with; raises a ValueError for that of an evaluation."""
    resolved = configs.resolve(config)
    if isinstance(resolved, EvalConfig):
        raise ValueError('the config says what to measure; give one to train with: mta4dpr.')
    return resolved


def load_config(workdir: pathlib.Path) -> Config:
    """The config of a training run.

    Raises:
        FileNotFoundError: if the workdir holds no run.
        ValueError: if it holds measurements of a checkpoint instead.
    """
    config = configs.load(workdir)
    if isinstance(config, EvalConfig):
        raise ValueError(f'{workdir} holds measurements, which --mode eval reads and no other.')
    return config


@contextlib.contextmanager
def hold_workdir(
    workdir: pathlib.Path,
    config: Config | EvalConfig | None = None,
    *,
    update: bool = False,
    exit_on_signals: bool = True,
) -> Iterator[None]:
    """Makes the workdir and holds its lock; process 0 takes it for all processes.

    Args:
        config: Saved as config.json, or compared with the one there; None to leave that alone.
        update: Whether what was made from another config may be replaced.
        exit_on_signals: Whether SIGTERM and Ctrl-C end the process; see `interrupts`.

    Raises:
        RuntimeError: if another process holds the workdir.
        ValueError: if the workdir belongs to a run of another config, or is no local directory.
        OSError: if it, or its bucket, cannot be written, or the disk is full.
    """
    files.require_local(workdir, 'workdir')
    with contextlib.ExitStack() as stack:

        def hold():
            stack.enter_context(lock.hold(workdir, update=update))
            stack.enter_context(bucket.hold(workdir))
            if config is not None:
                configs.save(workdir, config)

        try:
            if exit_on_signals:
                stack.enter_context(interrupts.handle_signals())
            written = [] if config is None else [workdir / configs.FILE]
            distributed.from_primary(hold, 'the workdir', writes=written)
            yield
            distributed.from_primary(bucket.flush, 'the uploads')  # The others wait for it.
        except BucketError:
            raise
        except Exception as e:
            # Some libraries only say that writing failed.
            may_be = isinstance(e, RuntimeError) and workdir.exists()
            is_full = may_be and shutil.disk_usage(workdir).free < _NO_SPACE
            if not (is_full or files.is_disk_full(e)):
                raise
            raise OSError(
                f'the disk is full ({e}); free some space and run the same command again: it '
                f'resumes from the finished work in {workdir}.'
            ) from e
        distributed.barrier('the end')


def open_run(
    config: Config,
    workdir: pathlib.Path,
    collect: Callable[..., Collection] = importing.load_collection,
) -> Run:
    """Opens a run on the mesh of its config, with lengths and steps that fit its collection.

    Without training, `collect` is `importing.import_collection`.
    """
    mesh, workdir = meshes.make_mesh(config.mesh.data, config.mesh.model), workdir.absolute()
    collection = collect(config, workdir)
    split = config.collection.train_split
    tokenizer = functools.cache(lambda: read_tokenizer(config.student))
    fitted = lengths.fit(
        config,
        lambda: tokenizer().count(collection.passages),
        lambda: tokenizer().count([*collection.queries[split].values()]),
    )
    if fitted != config:
        logging.info(
            'queries are cut to %d tokens, passages to %d, and to %d in training',
            fitted.student.query_length,
            fitted.student.passage_length,
            fitted.train_passage_length,
        )
    fitted = roles.fit_to_labels(
        fitted, lambda: (len(collection.labelled(split)), len(collection.unlabelled(split)))
    )
    return pseudo_labels.read(Run(fitted, workdir, mesh, collection, asked=config))


def open_trained_run(workdir: pathlib.Path) -> Run:
    """Opens the run of a workdir, for commands that do not train.

    Its collection is what was imported, with a warning where the source has changed since.
    """
    collect = functools.partial(importing.load_collection, kept=True)
    return open_run(load_config(workdir), workdir, collect)
