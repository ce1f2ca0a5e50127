"""A run: the config, workdir, mesh and collection that its stages share."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jdkd.config import Config
from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.runtime import stages


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """Passages that rankers chose as the positives of unlabelled train queries."""

    queries: np.ndarray  # `[L]` int32 rows of the train split.
    passages: np.ndarray  # `[L]` int32 rows of the collection.
    digest: str  # Of the stage that chose them.


@dataclasses.dataclass(frozen=True)
class Queries:
    """Queries of a split, in the collection's order."""

    split: str
    ids: Sequence[str]
    texts: Sequence[str]
    positives: Sequence[np.ndarray]  # Rows of each query's that exist; an unlabelled one has none.
    # Those with the query's highest grade. The positive of a list is one of them; other positives
    # are only kept out of the negatives.
    best: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def is_labelled(self) -> np.ndarray:
        """`[Q]` bool, whether a query has a positive."""
        return np.array([len(rows) > 0 for rows in self.positives], bool)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training or evaluation run in its workdir."""

    config: Config
    workdir: pathlib.Path  # Absolute.
    mesh: Mesh  # Devices of all processes.
    collection: Collection
    pseudo_labels: PseudoLabels | None = None
    asked: Config | None = None  # As it was given, before lengths and steps were fitted.

    @functools.cached_property
    def train(self) -> Queries:
        """Train queries; unlabelled ones only as far as the config keeps them."""
        split = self.config.collection.train_split
        return self._queries(split, list(self.collection.queries[split]))

    @property
    def train_with_pseudo_labels(self) -> Queries:
        """The train queries, of which pseudo-labels are positives too."""
        if self.pseudo_labels is None:
            return self.train
        positives, best = list(self.train.positives), list(self.train.best)
        chosen = self.pseudo_labels
        for row, passage in zip(chosen.queries, chosen.passages, strict=True):
            positives[row] = best[row] = np.array([passage], np.int32)
        return dataclasses.replace(self.train, positives=positives, best=best)

    @functools.cached_property
    def held_out(self) -> Queries:
        """Queries of D_eval, held out of training.

        Its lists are those of the labelled ones. Where none is, of all its queries, and passages
        stand in for positives.
        """
        split = self.config.collection.eval_split
        if self.collection.labelled(split):
            return self._queries(split, self.collection.measurable(split))
        return self._queries(split, list(self.collection.queries[split]))

    @functools.cached_property
    def eval_has_labels(self) -> bool:
        """Whether some query of D_eval has a positive."""
        return bool(self.held_out.is_labelled.any())

    @property
    def eval_rows(self) -> np.ndarray:
        """Rows of the queries of D_eval that have lists: the labelled ones; all if none is."""
        return np.flatnonzero(self.held_out.is_labelled | (not self.eval_has_labels))

    @functools.cached_property
    def eval_judges(self) -> bool:
        """Whether D_eval tells which student is better (ours).

        Not if jdkd made all its queries of words of passages and none has a label: whoever matches
        words looks best there.
        """
        made, spec = self.collection.made, self.config.collection.pseudo_queries
        return self.eval_has_labels or bool(spec.file) or not made.issuperset(self.held_out.ids)

    @property
    def num_rounds(self) -> int:
        """Rounds to train: none where a student is aligned and D_eval cannot tell a better one.

        The run then ends with the aligned student. With `final='last'` all rounds are trained.
        """
        config = self.config
        is_open = self.eval_judges or config.final == 'last' or not config.align.epochs
        return config.rounds if is_open else 0

    @functools.cached_property
    def test(self) -> Queries:
        """Test queries with a judgement or an answer; none if the config names no test split."""
        split = self.config.collection.test_split
        if split is None:
            return Queries('', [], [], [], [])
        return self._queries(split, self.collection.measurable(split))

    def require_test(self) -> Queries:
        """The test queries; raises a ValueError if there are none."""
        if not len(self.test):
            raise ValueError(
                f'{self.workdir} has no test queries (collection.test_split=None), so that nothing '
                'can be measured on them; name a split with judgements.'
            )
        return self.test

    @property
    def passages(self) -> Passages:
        """Texts of all passages, a sequence that may be larger than memory."""
        return self.collection.passages

    @functools.cached_property
    def max_relevant(self) -> int:
        """The largest number of text groups relevant for one query, which shapes batches.

        At least 1, for the passage that stands in where no query has a label.
        """
        group = self.collection.group
        queries = [*self.train.positives, *self.held_out.positives]
        return max(1, *(len(np.unique(group[rows])) for rows in queries))

    def stage(self, path: str, inputs, build, **options) -> dict:
        """A stage of this run's workdir; see `stages.build_stage`."""
        return stages.build_stage(self.workdir / path, inputs, build, **options)

    def read_manifest(self, path: str) -> dict | None:
        """The manifest of a finished stage; None if it is not finished."""
        return stages.read_manifest(self.workdir / path)

    def require_manifest(self, path: str) -> dict:
        """The manifest of a stage that must be finished.

        Raises:
            FileNotFoundError: if it is not.
        """
        manifest = self.read_manifest(path)
        if manifest is None:
            raise FileNotFoundError(
                f'{self.workdir} has no finished {path}; run jdkd train with this --workdir to its '
                'end first.'
            )
        return manifest

    def _queries(self, split: str, ids: Sequence[str]) -> Queries:
        positives = [self.collection.positives(split, i) for i in ids]
        flat = self.collection.id_index.find(list(itertools.chain.from_iterable(positives)))
        rows = np.split(flat, np.cumsum([len(grades) for grades in positives]))[:-1]
        best = [
            own[np.fromiter(grades.values(), int) == max(grades.values(), default=0)]
            for own, grades in zip(rows, positives, strict=True)
        ]
        texts = [self.collection.queries[split][i] for i in ids]
        return Queries(split, ids, texts, positives=rows, best=best)


STUDENT = 'student'
TWIN = 'twin'
ALIGNMENT = f'{STUDENT}_align'  # The series of metrics of the student's alignment.
