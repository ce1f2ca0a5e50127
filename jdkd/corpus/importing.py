"""The collection of a run: imported once from its source into `workdir/collection`."""

import pathlib

from absl import logging

from jdkd.config import CollectionConfig, Config
from jdkd.corpus.building import build_collection
from jdkd.corpus.collection import Collection, prepare_for_training
from jdkd.corpus.sources import registry
from jdkd.corpus.storage import open_collection
from jdkd.runtime import distributed, stages


def load_collection(config: Config, workdir: pathlib.Path) -> Collection:
    """Imports the collection of a config and prepares its splits; see `prepare_for_training`.

    Raises:
        ValueError: As `import_collection`; also if a split is missing, or has nothing to train on
            or to measure.
    """
    spec = config.collection
    imported = import_collection(config, workdir)
    collection = prepare_for_training(imported, spec, seed=config.seed)
    logging.info('%r', collection)
    usable = [
        (spec.train_split, collection.labelled),
        (spec.eval_split, collection.labelled),
        (spec.test_split, collection.measurable),
    ]
    for split, queries in usable:
        if not queries(split):
            raise ValueError(
                f'split {split!r} of collection {collection.name!r} has no query with a positive '
                '(a grade above 0, of a passage that exists); add judgements or name another split.'
            )
    return collection


def check_source(spec: CollectionConfig, directory: pathlib.Path) -> None:
    """Checks that a collection can be read, or has been imported into `directory`.

    Raises:
        ValueError: The source or an option is unknown, or an option is missing.
        FileNotFoundError: A file of the source is missing and was not imported.
    """
    if not (directory / stages.MANIFEST).exists():
        registry.open_source(spec.source, **dict(spec.options))


def import_collection(config: Config, workdir: pathlib.Path) -> Collection:
    """Opens the collection of a config; first imports it into `workdir/collection` if needed.

    A second start does not read the source's files again: their sizes and times, or else their
    contents, show that they are the same. If the source is gone, the imported data is used.

    Raises:
        ValueError: The source is unknown, its data is bad, or a file of it has changed since the
            import.
        FileNotFoundError: A file is missing that was not imported yet. With several processes,
            only the first needs the files.
    """
    directory = workdir / 'collection'
    distributed.from_primary(
        lambda: _import(config.collection, directory),
        'the collection',
        writes=[directory / stages.MANIFEST],
    )
    return open_collection(directory)


def _import(spec: CollectionConfig, directory: pathlib.Path) -> None:
    options = dict(spec.options)
    try:
        source = registry.open_source(spec.source, **options)
    except FileNotFoundError as error:
        if stages.read_manifest(directory) is None:
            raise
        logging.warning('%s Using the data imported before.', error)
    else:
        stages.build_stage_from_files(
            directory,
            source.files,
            {'source': spec.source, 'options': options, 'on_error': spec.on_error},
            lambda out: build_collection(source, out, on_error=spec.on_error),
        )
