"""BM25 as a system: it searches, and scores any text with the collection's statistics."""

import dataclasses

import numpy as np

from jdkd.data.candidates import Lists
from jdkd.retrieval import bm25
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.systems import base

_CHUNK = 4096  # Lists scored at once, to bound memory.


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
        all_terms = self.model.query_terms(queries.texts)
        (size, num_originals), num_dark = lists.passages.shape, lists.dark.shape[1]
        scores = np.empty((size, num_originals + num_dark), np.float32)
        for start in range(0, size, _CHUNK):
            part = slice(start, start + _CHUNK)
            terms = all_terms[lists.query[part]]
            scores[part, :num_originals] = self.model.list_scores(terms, lists.passages[part])
            if num_dark:
                dark = lists.dark[part].reshape(-1, lists.dark.shape[-1])
                terms = terms[np.repeat(np.arange(terms.shape[0]), num_dark)]
                found = self.model.text_scores(terms, lists.tokenizer.decode(dark))
                scores[part, num_originals:] = found.reshape(-1, num_dark)
        return scores

    def scorer(self, queries: Queries) -> base.Scorer:
        terms = self.model.query_terms(queries.texts)
        return lambda rows, passages: self.model.all_scores(terms[rows], passages)
