"""D_train and D_eval as TFDS array_record datasets, written and read without TensorFlow."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jdkd.runtime import tfds_features

Features = Mapping[str, np.ndarray]  # {feature: `[M, ...]` array} of M lists.


class CandidateLists(tfds.core.GeneratorBasedBuilder):
    """A dataset of candidate lists, whose features are given in parts."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, *, splits: Mapping[str, Iterable[Features]], **kwargs):
        parts = {split: iter(features) for split, features in splits.items()}
        name, first = next(iter(parts.items()))
        self._first = next(first)
        self._parts = parts | {name: itertools.chain([self._first], first)}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            name: tfds.features.Tensor(shape=a.shape[1:], dtype=a.dtype.type)
            for name, a in self._first.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description='Candidate lists.',
            features=tfds.features.FeaturesDict(features),
            # Files keep the order of the lists; the loader shuffles.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(parts) for split, parts in self._parts.items()}

    def _generate_examples(self, parts: Iterable[Features]) -> Iterator:
        lists = (Arrays(features) for features in parts)
        yield from enumerate(part[i] for part in lists for i in range(len(part)))


def write(directory: pathlib.Path, splits: Mapping[str, Iterable[Features]]) -> None:
    """Writes the lists of each split, given in parts, to `directory`/candidate_lists/1.0.0.

    Every part has the same features. One part of a split is held at a time.
    """
    tfds.disable_progress_bar()
    builder = CandidateLists(splits=splits, data_dir=str(directory), file_format='array_record')
    builder.download_and_prepare()


def read(directory: pathlib.Path, split: str) -> Sequence[Mapping[str, np.ndarray]]:
    """Opens a split for random access: `source[i]` is {feature: array}."""
    path = str(directory / 'candidate_lists' / '1.0.0')
    with tfds_features.only_own(path):  # A workdir may come from somebody else.
        builder: Any = tfds.builder_from_directory(path)
    return builder.as_data_source(split=split)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Records in memory."""

    features: Mapping[str, np.ndarray]  # `[M, ...]` arrays by name, one row a record.

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {name: values[i] for name, values in self.features.items()}


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the records of a source."""

    source: Sequence[Mapping[str, np.ndarray]]
    numbers: np.ndarray  # Of the records.

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Mapping[str, np.ndarray]:
        return self.source[int(self.numbers[i])]


@dataclasses.dataclass(frozen=True)
class WithFeatures:
    """Records with features from memory beside their own."""

    source: Sequence[Mapping[str, np.ndarray]]
    features: Mapping[str, np.ndarray]  # `[M, ...]` arrays by name, one row a record.

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {**self.source[i], **{name: values[i] for name, values in self.features.items()}}
