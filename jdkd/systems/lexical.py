"""BM25 as a system: it searches, and scores any text with the collection's statistics."""

import dataclasses

import numpy as np

from jdkd.data.candidates import Lists
from jdkd.retrieval import bm25
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.systems import base


@dataclasses.dataclass(frozen=True)
class BM25System:
    name: str
    digest: str
    scale: float | None
    run: Run
    model: bm25.BM25

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        return base.keep_ranking(
            self, queries, lambda depth: (self.model.search(queries.texts, depth), {})
        )

    def score(self, queries: Queries, lists: Lists) -> np.ndarray:
        terms = self.model.query_terms(queries.texts)
        rows = np.repeat(lists.query, lists.passages.shape[1])
        originals = bm25.pair_scores(terms, rows, self.model.weights, lists.passages.ravel())
        scores = [originals.reshape(lists.passages.shape)]
        num_dark = lists.dark.shape[1]
        if num_dark:
            # New text, weighed with the collection's statistics.
            texts = lists.tokenizer.decode(lists.flat_dark())
            weights = self.model.text_weights(texts)
            rows = np.repeat(lists.query, num_dark)
            dark = bm25.pair_scores(terms, rows, weights, np.arange(len(rows)))
            scores.append(dark.reshape(-1, num_dark))
        return np.concatenate(scores, axis=1)

    def scorer(self, queries: Queries) -> base.Scorer:
        terms, weights = self.model.query_terms(queries.texts), self.model.weights
        return lambda rows, passages: (terms[rows] @ weights[passages].T).toarray()
