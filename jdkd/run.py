"""What every stage of a run is given: its config, workdir, mesh and collection."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.runtime import stages


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries of a split, in the collection's order.

    Attributes:
        split: Its name.
        ids: Query ids.
        texts: Query texts.
        positives: Rows of each query's positive passages; none of an unlabelled one.
        best: Of these, those of the query's highest grade. A list's positive is one of them; the
            others are only never a negative.
    """

    split: str
    ids: Sequence[str]
    texts: Sequence[str]
    positives: Sequence[np.ndarray]
    best: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def is_labelled(self) -> np.ndarray:
        """`[Q]` bool, whether a query has a positive."""
        return np.array([len(rows) > 0 for rows in self.positives], bool)


@dataclasses.dataclass(frozen=True)
class Run:
    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    mesh: Mesh
    collection: Collection

    @functools.cached_property
    def train(self) -> Queries:
        """All of the split: unlabelled ones that are not wanted are left out on the way here."""
        split = self.config.collection.train_split
        return self._queries(split, list(self.collection.queries[split]))

    @functools.cached_property
    def held_out(self) -> Queries:
        """The held-out queries of D_eval."""
        split = self.config.collection.eval_split
        return self._queries(split, self.collection.labelled(split))

    @functools.cached_property
    def test(self) -> Queries:
        """Those with a positive or an answer."""
        split = self.config.collection.test_split
        return self._queries(split, self.collection.measurable(split))

    @property
    def passages(self) -> Passages:
        """Every passage as a str: a sequence that may be larger than memory."""
        return self.collection.passages

    @functools.cached_property
    def max_relevant(self) -> int:
        """Most text groups that are judged relevant for one query; the shape of batches."""
        group = self.collection.group
        queries = [*self.train.positives, *self.held_out.positives]
        return max(len(np.unique(group[rows])) for rows in queries)

    def stage(self, path: str, inputs, build, *, resumable: bool = False) -> dict:
        """A stage of this run's workdir; see `stages.build_stage`."""
        return stages.build_stage(self.workdir / path, inputs, build, resumable=resumable)

    def read_manifest(self, path: str) -> dict | None:
        """The manifest of a finished stage, None if it is not there."""
        return stages.read_manifest(self.workdir / path)

    def _queries(self, split: str, ids: Sequence[str]) -> Queries:
        qrels = self.collection.qrels.get(split, {})
        positives = [
            {passage: grade for passage, grade in qrels.get(i, {}).items() if grade > 0}
            for i in ids
        ]
        found = self.collection.id_index.find(list(itertools.chain.from_iterable(positives)))
        rows = np.split(found, np.cumsum([len(grades) for grades in positives]))[:-1]
        best = [
            own[np.fromiter(grades.values(), int) == max(grades.values(), default=0)]
            for own, grades in zip(rows, positives, strict=True)
        ]
        return Queries(
            split=split,
            ids=ids,
            texts=[self.collection.queries[split][i] for i in ids],
            positives=rows,
            best=best,
        )


STUDENT = 'student'
