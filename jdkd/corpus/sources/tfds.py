"""Collections in TFDS datasets (https://www.tensorflow.org/datasets), read without TensorFlow."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jdkd.corpus.sources import base, records
from jdkd.corpus.sources.base import OnError
from jdkd.runtime import tfds_features
from jdkd.runtime.messages import brief


def open_source(
    dataset: str,
    *,
    queries: Mapping[str, str],
    passages: str | None = None,
    qrels: Mapping[str, str] | None = None,
    fields: Mapping[str, str | None] | None = None,
    data_dir: str | None = None,
) -> base.Source:
    """Opens a TFDS dataset; `jdkd.corpus.sources.records` says which of its splits are needed.

    Unless it exists, prepares it as array_record, which TFDS reads without TensorFlow.

    Args:
        dataset: Name, such as `squad` or `squad/v1.1:3.0.0`, or a directory that TFDS wrote.
        queries, qrels: {split: TFDS split}.
        passages: TFDS split.
        fields: Fields that differ from `records.FIELDS`, by role.
        data_dir: Where TFDS keeps its datasets.

    Raises:
        ValueError: TFDS lacks the dataset or a split, or has it in another format, or the options
            do not say what is relevant.
    """
    builder = _make_builder(dataset, data_dir)

    def find_files(split: str) -> Iterator[pathlib.Path]:
        splits = builder.info.splits
        if split not in splits:
            raise ValueError(
                f"TFDS' '{dataset}' has no split '{split}'; it has {brief(', '.join(splits))}."
            )
        return map(pathlib.Path, splits[split].filepaths)

    def read(split: str, on_error: OnError) -> Iterator[tuple[str, dict]]:
        data = builder.as_data_source(split)
        for i in range(len(data)):
            where = f'tfds:{builder.info.full_name}, {split} {i}'
            try:
                record = _to_plain(data[i])
            except UnicodeDecodeError:
                on_error('not UTF-8', f'{where}: not UTF-8; prepare the dataset from UTF-8 texts.')
            else:
                yield where, record

    full_name = builder.info.full_name
    return records.make_source(full_name, find_files, read, passages, queries, qrels, fields)


def _make_builder(dataset: str, data_dir: str | None) -> Any:
    with tfds_features.only_own(f'tfds:{dataset}'):
        builder = _open_builder(dataset, data_dir)
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"TFDS' '{dataset}' is kept as {builder.info.file_format.value}, which needs "
            'TensorFlow; prepare it with file_format=array_record in another data_dir.'
        )
    return builder


def _open_builder(dataset: str, data_dir: str | None) -> Any:
    directory = pathlib.Path(dataset).expanduser()
    if directory.is_dir():
        try:
            return tfds.builder_from_directory(str(directory))
        except tfds_features.ForeignClassError:
            raise
        except Exception as error:  # Files that are broken in other ways raise other errors.
            raise ValueError(
                f'{directory} is no dataset that TFDS can read ({brief(error)}); prepare it again.'
            ) from error
    # NAME:VERSION is a dataset of TFDS.
    if re.match(r'[\w-]+:(?![\d*])', dataset):
        raise ValueError(
            f"TFDS' {dataset!r} is in a namespace, whose datasets bring code of their own, which "
            'jdkd never runs; prepare it with TFDS and give its directory.'
        )
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except tfds_features.ForeignClassError:
        raise
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(f"TFDS has no dataset '{dataset}' ({brief(error)}).") from None
    builder.download_and_prepare(file_format='array_record')
    return builder


def _to_plain(value: Any) -> Any:
    """Converts bytes and arrays to strings, numbers, lists and dicts."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_to_plain(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value
