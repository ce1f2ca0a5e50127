"""The collection of a run: imported once from its source into `workdir/collection`."""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from jdkd.config import CollectionConfig, Config
from jdkd.corpus import collection as lib
from jdkd.corpus import pseudo_queries, storage
from jdkd.corpus.building import build_collection
from jdkd.corpus.collection import Collection
from jdkd.corpus.pseudo_queries import PseudoQuery
from jdkd.corpus.sources import registry
from jdkd.corpus.sources.base import OnError, Passage, Source
from jdkd.corpus.storage import open_collection
from jdkd.runtime import distributed, stages

PSEUDO_QUERIES = 'pseudo_queries'  # Stage in the workdir.


def load_collection(config: Config, workdir: pathlib.Path, *, kept: bool = False) -> Collection:
    """Imports the collection of a config and prepares its splits; see `prepare_for_training`.

    Pseudo-queries are kept in `workdir/pseudo_queries`. `kept` is as for `import_collection`.

    Raises:
        ValueError: As `import_collection` and `load_pseudo_queries`; also if a split is missing, or
            has nothing to train on or to measure.
    """
    spec = config.collection
    imported = import_collection(config, workdir, kept=kept)
    made = pseudo_queries.load_pseudo_queries(
        imported, spec.pseudo_queries, workdir / PSEUDO_QUERIES, seed=config.seed, kept=kept
    )
    collection = prepare_for_training(imported, spec, made, seed=config.seed)
    logging.info('%r', collection)
    if collection.ids_pair and config.ignore_identical_ids:
        logging.info(
            '%s: queries have the ids of their positives; a passage with the id of a query is '
            'ranked for it as any other',
            collection.name,
        )
    for split in (spec.train_split, spec.eval_split):
        if not collection.queries.get(split):
            raise ValueError(
                f'split {split!r} of collection {collection.name!r} has no query to learn from; '
                'add queries, name another split, or set collection.pseudo_queries.count or file, '
                'and collection.unlabelled=distil.'
            )
    if spec.eval_labels and not collection.labelled(spec.eval_split):
        raise ValueError(
            f'split {spec.eval_split!r} of collection {collection.name!r} has no query with a '
            'positive (a grade above 0) of a passage that exists; correct its judgements, name '
            'another split, or set collection.eval_labels=False.'
        )
    if spec.test_split is not None and not collection.measurable(spec.test_split):
        raise ValueError(
            f'split {spec.test_split!r} of collection {collection.name!r} has no query with a '
            'positive (a grade above 0, of a passage that exists); add judgements, name another '
            'split, or set collection.test_split=None, which tests nothing.'
        )
    return collection


def prepare_for_training(
    collection: Collection, spec: CollectionConfig, made: Sequence[PseudoQuery] = (), *, seed: int
) -> Collection:
    """Holds out D_eval, and keeps the labels and queries to train on.

    Pseudo-queries join the train split after D_eval is held out, which has none of them unless the
    collection has no other train query. Labels that the config has no use for are forgotten first:
    what a run without labels does cannot depend on them, but for `Collection.ids_pair`, whether
    queries have the ids of their positives.
    """
    split, to = spec.train_split, spec.eval_split
    if not spec.eval_labels:
        unused = [to] if spec.label_share else [to, split]
        collection = lib.forget_labels(collection, unused)
    add = functools.partial(
        pseudo_queries.add_pseudo_queries,
        split=split,
        queries=made,
        positive=spec.pseudo_queries.positive,
    )
    are_alone = bool(made) and not collection.queries.get(split)
    if are_alone:
        collection = add(collection)
    collection = lib.hold_out(collection, split, to, fraction=spec.eval_fraction, seed=seed)
    collection = lib.drop_repeated(collection, to, {split, spec.test_split} - {None})
    if not spec.eval_labels:
        collection = lib.forget_labels(collection, [to])
    if not are_alone:
        collection = lib.keep_labels(collection, split, share=spec.label_share, seed=seed)
        collection = add(collection) if made else collection
    return lib.drop_unlabelled(collection, split) if spec.unlabelled == 'skip' else collection


def check_source(spec: CollectionConfig, directory: pathlib.Path) -> None:
    """Checks that a collection can be read, or has been imported into `directory`.

    Raises:
        ValueError: The source or an option is unknown, or an option is missing.
        FileNotFoundError: A file of the source is missing and was not imported.
    """
    if not stages.exists(directory):
        registry.open_source(spec.source, **dict(spec.options))
    file = spec.pseudo_queries.file
    if file and not stages.exists(directory.with_name(PSEUDO_QUERIES)):
        if not pathlib.Path(file).expanduser().is_file():
            raise FileNotFoundError(
                f'collection.pseudo_queries.file={file!r}: there is no such file.'
            )


def import_collection(config: Config, workdir: pathlib.Path, *, kept: bool = False) -> Collection:
    """Opens the collection of a config; first imports it into `workdir/collection` if needed.

    A second start does not read the source's files again: their sizes and times, or else their
    contents, show that they are the same. If the source is gone, what was imported from it is used,
    where it was read with the same options and `on_error`.

    Args:
        kept: Whether what was imported is used, with a warning, where the source's files have
            changed.

    Raises:
        ValueError: The source is unknown, its data is bad, or a file of it has changed since the
            import.
        FileNotFoundError: A file is missing that was not imported yet. With several processes,
            only the first needs the files.
    """
    directory = workdir / 'collection'
    distributed.from_primary(
        lambda: _import(config.collection, directory, kept=kept),
        'the collection',
        writes=[directory / stages.MANIFEST],
    )
    return open_collection(directory)


def open_passages(name: str, /, **options: Any) -> Source:
    """Opens passages alone: those that a run has imported, or as `registry.open_passages`.

    Args:
        name: The workdir of a run, a source, or a file of passages.
        **options: Of the source or the file.

    Raises:
        ValueError: The source or an option is unknown.
        FileNotFoundError: There is nothing of that name.
    """
    directory = pathlib.Path(name).expanduser() / 'collection'
    if not (directory / stages.MANIFEST).is_file():
        return registry.open_passages(name, **options)
    header = stages.read_json(directory / 'collection.json')
    own = storage.open_passages(directory, header['passages'])

    def passages(on_error: OnError) -> Iterator[Passage]:
        for row, columns in enumerate(zip(own.ids, own.titles, own.texts, strict=True)):
            yield f'{directory}: passage {row}', *columns

    return Source(
        header['name'],
        [directory / 'passages.arrow'],
        passages,
        lambda on_error: (),
        lambda on_error: (),
        license=header['license'],
    )


def _import(spec: CollectionConfig, directory: pathlib.Path, *, kept: bool = False) -> None:
    options = dict(spec.options)
    # As a manifest holds them.
    inputs = stages.to_json({'source': spec.source, 'options': options, 'on_error': spec.on_error})
    try:
        source = registry.open_source(spec.source, **options)
    except FileNotFoundError as error:
        manifest = stages.read_manifest(directory)
        if manifest is None or not inputs.items() <= manifest['inputs'].items():
            raise
        logging.warning('%s Using the data imported before.', error)
    else:
        stages.build_stage_from_files(
            directory,
            source.files,
            inputs,
            lambda out: build_collection(source, out, on_error=spec.on_error),
            kept=kept,
        )
