"""What every stage of a run is given: its config, workdir, mesh and collection."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh

from jdkd.data.collection import Collection
from jdkd.runtime import stages


@dataclasses.dataclass(frozen=True)
class Queries:
    """Labelled queries of a split, in the collection's order.

    Attributes:
        split: Its name.
        ids: Query ids.
        texts: Query texts.
        positives: Rows of each query's positive passages.
    """

    split: str
    ids: Sequence[str]
    texts: Sequence[str]
    positives: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Run:
    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    collection: Collection

    @functools.cached_property
    def train(self) -> Queries:
        return self._queries(self.config.collection.train_split)

    @functools.cached_property
    def eval(self) -> Queries:
        """The held-out queries of D_eval."""
        return self._queries(self.config.collection.eval_split)

    @functools.cached_property
    def test(self) -> Queries:
        return self._queries(self.config.collection.test_split)

    @functools.cached_property
    def passages(self) -> list[str]:
        return [self.collection.passage(i) for i in range(len(self.collection))]

    @functools.cached_property
    def max_relevant(self) -> int:
        """Most text groups that are judged relevant for one query; the shape of batches."""
        group = self.collection.group
        queries = [*self.train.positives, *self.eval.positives]
        return max(len(np.unique(group[rows])) for rows in queries)

    def stage(self, path: str, inputs, build, *, resumable: bool = False) -> dict:
        """A stage of this run's workdir; see `stages.stage`."""
        return stages.stage(self.workdir / path, inputs, build, resumable=resumable)

    def read_manifest(self, path: str) -> dict | None:
        """The manifest of a finished stage, None if it is not there."""
        return stages.read_manifest(self.workdir / path)

    def _queries(self, split: str) -> Queries:
        ids = self.collection.labelled(split)
        qrels, row = self.collection.qrels[split], self.collection.row
        return Queries(
            split=split,
            ids=ids,
            texts=[self.collection.queries[split][i] for i in ids],
            positives=[
                np.array([row[p] for p, grade in qrels[i].items() if grade > 0], np.int32)
                for i in ids
            ],
        )
