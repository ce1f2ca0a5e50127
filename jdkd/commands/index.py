"""`jdkd index`: an index of passages, made with a student alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jdkd.commands.setup import hold_workdir
from jdkd.indexing import building
from jdkd.indexing.contents import Contents
from jdkd.indexing.index import open_index
from jdkd.retrieval import vectors
from jdkd.runtime import distributed


def index(
    directory: pathlib.Path,
    student: str,
    collection: str,
    *,
    store: str,
    on_error: str,
    options: Mapping[str, Any],
) -> None:
    """Makes an index, or finishes one that was begun; see `building.create`."""
    building.check_new(directory)  # Before a file that says who holds it lies there.
    with hold_workdir(directory):
        contents = building.create(
            directory, student, collection, store=store, on_error=on_error, options=options
        )
        report(directory, contents)


def report(directory: pathlib.Path, contents: Contents) -> None:
    """Prints what an index holds, and how to search it."""
    width = open_index(directory).vectors.shape[1]
    if distributed.is_primary():
        size = contents.passages * vectors.bytes_per_vector(width, contents.store)
        print(
            f'{directory}: {contents.passages:,} passages in {width} dimensions, {contents.store} '
            f'({size / 1e6:,.1f} MB)\nto search it: jdkd search {directory} "your question"'
        )
