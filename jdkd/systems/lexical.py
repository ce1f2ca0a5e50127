"""BM25 as a system: it searches, and scores any text with the collection's statistics."""

import dataclasses

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.retrieval import bm25
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.systems.ranking import keep_ranking
from jdkd.systems.system import ListScorer, Scorer


@dataclasses.dataclass(frozen=True)
class BM25System:
    name: str
    digest: str
    scale: float | None
    run: Run
    model: bm25.BM25

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        return keep_ranking(
            self, queries, lambda depth: (self.model.search(queries.texts, depth), {})
        )

    def list_scorer(self, queries: Queries) -> ListScorer:
        all_terms = self.model.query_terms(queries.texts)

        def score(lists: Lists) -> np.ndarray:
            terms, num_dark = all_terms[lists.query], lists.dark.shape[1]
            scores = self.model.list_scores(terms, lists.passages)
            if not num_dark:
                return scores
            terms = terms[np.repeat(np.arange(terms.shape[0]), num_dark)]
            found = self.model.text_scores(terms, lists.tokenizer.decode(lists.flat_dark()))
            return np.concatenate([scores, found.reshape(-1, num_dark)], axis=1)

        return score

    def scorer(self, queries: Queries) -> Scorer:
        terms = self.model.query_terms(queries.texts)
        return lambda rows, passages: self.model.all_scores(terms[rows], passages)
