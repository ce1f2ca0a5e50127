"""Systems whose scores are a table, over a collection of a few passages."""

import dataclasses

import numpy as np

from jdkd.corpus.collection import Collection
from jdkd.corpus.passages import Passages
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Run
from jdkd.systems.system import System


@dataclasses.dataclass(frozen=True)
class Table(System):
    """The same scores `[Q, P]` for the queries of every split."""

    scores: np.ndarray

    def rank(self, queries):
        scores = self.scores[: len(queries)].astype(np.float32)
        order = np.argsort(-scores, axis=1, kind='stable')[:, : self.run.config.depth]
        return Ranking(order.astype(np.int32), np.take_along_axis(scores, order, axis=1)), {}

    def list_scorer(self, queries):
        return lambda lists: self.scores[lists.query[:, None], lists.passages].astype(np.float32)


class Partial(Table):
    """Has scores where they are no NaN."""

    is_partial = True

    def covers(self, queries, lists):
        return np.isfinite(self.scores[lists.query[:, None], lists.passages])


def make_system(run, name, scores) -> Table:
    return Table(name, name, 1.0, run, np.asarray(scores))


def make_run(workdir, config, num_passages, positives) -> Run:
    """A run whose queries have one positive each: {split: [row of each query's]}."""
    ids = [f'p{i}' for i in range(num_passages)]
    passages = Passages.from_columns(ids, [''] * num_passages, [f'text {i}' for i in ids])
    queries = {s: {f'{s}{i}': f'{s} {i}' for i in range(len(r))} for s, r in positives.items()}
    qrels = {
        s: {f'{s}{i}': {ids[row]: 1} for i, row in enumerate(rows)} for s, rows in positives.items()
    }
    return Run(config, workdir, None, Collection('tables', passages, queries, qrels))
