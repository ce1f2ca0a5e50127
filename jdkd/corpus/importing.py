"""The collection of a run: read once from its source, kept on disk as memory-mapped columns.

    passages.arrow                  ids, titles, texts (Arrow IPC, large_string)
    hashes.npy, order.npy           passage id -> row
    group.npy                       rows of equal text
    queries.arrow, qrels.arrow, answers.arrow

Passages stream from the source to the disk. Importing P passages with Q queries holds at most about
0.3 GB + 70 bytes * P + 1 KB * Q: 8.8 million passages and 550,000 queries took 1.1 GB. What is
opened holds its queries alone (about 0.5 KB each), and the operating system keeps of the rest what
it has room for. `benchmarks.collection` measures both.
"""

import pathlib

from absl import logging

from jdkd.corpus.building import build_collection
from jdkd.corpus.collection import Collection, for_training
from jdkd.corpus.sources import registry
from jdkd.corpus.storage import open_collection
from jdkd.runtime import distributed, stages


def load_collection(config, workdir: pathlib.Path) -> Collection:
    """The collection that a config trains on; see `import_collection` and `for_training`.

    Raises:
        ValueError: also if a split is missing or has nothing to train on or to measure.
    """
    spec = config.collection
    found = for_training(import_collection(config, workdir), spec, seed=config.seed)
    logging.info('%r', found)
    # Before hours of training, not after them.
    usable = {
        spec.train_split: found.labelled,
        spec.eval_split: found.labelled,
        spec.test_split: found.measurable,
    }
    for split, queries in usable.items():
        if not queries(split):
            raise ValueError(
                f'split {split!r} of collection {found.name!r} has no query with a positive (a '
                'grade above 0); add judgements or name another split.'
            )
    return found


def check_source(spec, directory: pathlib.Path) -> None:
    """Checks that a collection can be read, before a workdir is begun with it.

    Args:
        spec: `config.collection`: `source` and `options`.
        directory: Where it is kept, if it has been imported.

    Raises:
        ValueError: if the source or an option is unknown, or an option is missing.
        FileNotFoundError: if a file of the source is missing and was not imported.
    """
    if not (directory / stages.MANIFEST).exists():
        registry.open_source(spec.source, **spec.options.to_dict())


def import_collection(config, workdir: pathlib.Path) -> Collection:
    """The collection that a config names: imported into `workdir/collection` unless it is there.

    A second start reads the source's files no more: by their sizes and times they are known to be
    the same, or else by their contents. Where the source is gone, what was imported is used.

    Args:
        config: Its `collection`: `source`, `options`, `on_error`.
        workdir: Of the run.

    Raises:
        ValueError: if the source is unknown, its data is bad, or a file of it has changed since it
            was imported.
        FileNotFoundError: if a file is missing that was not imported yet. Of several processes
            only the first needs the files.
    """
    directory = workdir / 'collection'
    distributed.from_primary(
        lambda: _import(config.collection, directory),
        'the collection',
        writes=[directory / stages.MANIFEST],
    )
    return open_collection(directory)


def _import(spec, directory: pathlib.Path) -> None:
    options = spec.options.to_dict()
    try:
        source = registry.open_source(spec.source, **options)
    except FileNotFoundError as error:
        if stages.read_manifest(directory) is None:
            raise
        logging.warning('%s Going on with what was imported.', error)
    else:
        stages.stage_of_files(
            directory,
            source.files,
            {'source': spec.source, 'options': options, 'on_error': spec.on_error},
            lambda out: build_collection(source, out, on_error=spec.on_error),
        )
