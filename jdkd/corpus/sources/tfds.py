"""Collections in TFDS datasets (https://www.tensorflow.org/datasets), read without TensorFlow."""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jdkd.corpus.sources import base, records
from jdkd.corpus.sources.base import OnError


def open_source(
    dataset: str,
    *,
    queries: Mapping[str, str],
    passages: str | None = None,
    qrels: Mapping[str, str] | None = None,
    fields: Mapping[str, str | None] | None = None,
    data_dir: str | None = None,
    name: str | None = None,
    license: str | None = None,
) -> base.Source:
    """A TFDS dataset; `jdkd.corpus.sources.records` says which of its splits are needed.

    It is prepared as array_record, which TFDS reads without TensorFlow, unless it is there.

    Args:
        dataset: Name, such as `squad` or `squad/v1.1:3.0.0`, or a directory that TFDS wrote.
        queries: {split: TFDS split}.
        passages: TFDS split.
        qrels: {split: TFDS split}.
        fields: What `records.FIELDS` names otherwise.
        data_dir: Where TFDS keeps its datasets.
        name: What reports call the collection; `dataset` by default.
        license: The terms of the texts.

    Raises:
        ValueError: TFDS has no such dataset or split, or has it in another format, or the options
            do not say what is relevant.
    """
    builder = _builder(dataset, data_dir)
    qrels = qrels or {}
    for split in (passages, *queries.values(), *qrels.values()):
        if split is not None and split not in builder.info.splits:
            raise ValueError(
                f"TFDS' '{dataset}' has no split '{split}'; it has "
                f'{", ".join(builder.info.splits)}.'
            )
    used = dict.fromkeys(s for s in (passages, *queries.values(), *qrels.values()) if s)
    files = (file for split in used for file in builder.info.splits[split].filepaths)
    table = functools.partial(functools.partial, _read, builder)
    return records.make_source(
        name or builder.info.full_name,
        [pathlib.Path(file) for file in files],
        table(passages) if passages else None,
        {split: table(theirs) for split, theirs in queries.items()},
        {split: table(theirs) for split, theirs in qrels.items()},
        fields,
        license,
    )


def _builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    if pathlib.Path(dataset).expanduser().is_dir():
        builder = tfds.builder_from_directory(str(pathlib.Path(dataset).expanduser()))
    else:
        try:
            builder = tfds.builder(dataset, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise ValueError(f"TFDS has no dataset '{dataset}' ({error}).") from None
        builder.download_and_prepare(file_format='array_record')
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"TFDS' '{dataset}' is kept as {builder.info.file_format.value}, which needs "
            'TensorFlow; prepare it with file_format=array_record in another data_dir.'
        )
    return builder


def _read(
    builder: tfds.core.DatasetBuilder, split: str, fault: OnError
) -> Iterator[tuple[str, dict]]:
    data = builder.as_data_source(split)
    for i in range(len(data)):
        where = f'tfds:{builder.info.full_name}, {split} {i}'
        try:
            record = _plain(data[i])
        except UnicodeDecodeError:
            fault('not UTF-8', f'{where}: not UTF-8; prepare the dataset from UTF-8 texts.')
        else:
            yield where, record


def _plain(value: Any) -> Any:
    """Strings, numbers, lists and dicts out of bytes and arrays."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value
