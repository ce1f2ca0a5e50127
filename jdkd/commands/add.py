"""`jdkd add`: more passages for an index."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jdkd.commands.index import report
from jdkd.commands.setup import hold_workdir
from jdkd.indexing import building
from jdkd.indexing.contents import Contents
from jdkd.runtime import distributed


def add(
    directory: pathlib.Path, collection: str, *, on_error: str, options: Mapping[str, Any]
) -> None:
    """Adds passages to an index, or finishes an addition that was begun; see `building.add`."""
    before = Contents.read(directory)  # Nothing is made where there is no index.
    with hold_workdir(directory):
        contents = building.add(directory, collection, on_error=on_error, options=options)
        if contents == before and distributed.is_primary():
            print(f'nothing is new: {directory} holds the passages of {collection}')
        report(directory, contents)
