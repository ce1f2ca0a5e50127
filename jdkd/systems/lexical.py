"""BM25 as a system: it searches, and scores any text with the collection's statistics."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.retrieval import bm25
from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.words import VERSION
from jdkd.run import Queries, Run
from jdkd.systems.ranking import keep_ranking
from jdkd.systems.system import BatchScorer, ListScorer, System


@dataclasses.dataclass(frozen=True)
class BM25System(System):
    may_saturate: ClassVar[bool] = False  # It scores 0 wherever query and passage share no term.

    model: bm25.BM25

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        def search(part, depth):
            return self.model.search(queries.texts[part], depth)

        return keep_ranking(self, queries, lambda: (search, None))

    def list_scorer(self, queries: Queries) -> ListScorer:
        def score_lists(lists: Lists) -> np.ndarray:
            rows, num_dark = lists.query.tolist(), lists.num_dark
            texts: list = [queries.texts[row] for row in rows]
            terms: Any = self.model.query_terms(texts)
            originals = self.model.passage_scores(terms, lists.passages)
            if not num_dark:
                return originals
            terms = terms[np.repeat(np.arange(terms.shape[0]), num_dark)]
            dark = self.model.text_scores(terms, lists.dark_texts(self.run.passages))
            return np.concatenate([originals, dark.reshape(-1, num_dark)], axis=1)

        return score_lists

    def batch_scorer(self, queries: Queries) -> BatchScorer:
        terms = self.model.query_terms(queries.texts)
        return lambda rows, passages: self.model.passage_scores(terms[rows], passages)

    def search(self, question: str, depth: int) -> Ranking:
        return self.model.search([question], depth)

    def score(self, question: str, passages: np.ndarray) -> np.ndarray:
        terms = self.model.query_terms([question])
        return self.model.passage_scores(terms, passages)[0]


def load(run: Run, name: str, spec) -> BM25System:
    """BM25 over the run's collection; its index is the stage `systems/<name>/index`."""
    parameters = {'k1': spec.k1, 'b': spec.b, 'language': spec.language}
    path = f'systems/{name}/index'
    manifest = run.stage(
        path,
        {'collection': run.collection.fingerprint, 'words': VERSION, **parameters},
        lambda out: bm25.build(out, run.passages, **parameters),
        resumable=True,
    )
    model = bm25.load(run.workdir / path, **parameters)
    return BM25System(name, manifest['digest'], spec.scale, run, model)
