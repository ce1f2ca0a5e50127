"""Scores made elsewhere as a system."""

import dataclasses
import pathlib

import numpy as np

from jdkd.data.candidates import Lists
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.systems import base


@dataclasses.dataclass(frozen=True)
class ImportedScores:
    """Scores made elsewhere, read from a TREC run file (an LLM ranker, another system's run).

    Attributes:
        scores: {query id: {passage row: score}}.
        missing: Score of a pair that the file lacks; None makes that an error.
    """

    name: str
    digest: str
    scale: float | None
    run: Run
    path: pathlib.Path
    scores: dict[str, dict[int, float]]
    missing: float | None

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        depth = min(self.run.config.depth, len(self.run.collection))
        rows = np.full((len(queries), depth), -1, np.int32)
        values = np.full((len(queries), depth), -np.inf, np.float32)
        for i, query_id in enumerate(queries.ids):
            best = sorted(self.scores.get(query_id, {}).items(), key=lambda x: (-x[1], x[0]))
            for j, (row, value) in enumerate(best[:depth]):
                rows[i, j], values[i, j] = row, value
        return Ranking(rows, values), {}

    def scorer(self, queries: Queries) -> base.Scorer:
        raise ValueError(
            f"system '{self.name}' has imported scores: it scores lists, not whole batches."
        )

    def score(self, queries: Queries, lists: Lists) -> np.ndarray:
        if lists.dark.shape[1]:
            raise ValueError(
                f"system '{self.name}' has imported scores and cannot score dark examples."
            )
        out = np.empty(lists.passages.shape, np.float32)
        for i, query in enumerate(lists.query):
            known = self.scores.get(queries.ids[query], {})
            for j, row in enumerate(lists.passages[i]):
                value = known.get(int(row), self.missing)
                if value is None:
                    raise ValueError(
                        f"{self.path} has no score for query '{queries.ids[query]}' and passage "
                        f"'{self.run.collection.passage_ids[row]}'; add it, or set "
                        f'systems.{self.name}.missing to the score of pairs that are not there.'
                    )
                out[i, j] = value
        return out
