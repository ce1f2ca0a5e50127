"""Cross-encoders as systems: they score lists, but cannot search."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.retrieval import encode
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries
from jdkd.systems.encoders import Encoder
from jdkd.systems.system import ListScorer, System
from jdkd.tokens.store import TokenStore


@dataclasses.dataclass(frozen=True)
class CrossEncoderSystem(System):
    """A cross-encoder, which reads a query together with a passage."""

    encoder: Encoder

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        raise ValueError(
            f"system '{self.name}' is a cross-encoder and cannot search a collection; use it in "
            'teacher.members, not in assistants.'
        )

    def list_scorer(self, queries: Queries) -> ListScorer:
        query_tokens = self.encoder.query_tokens(self.run, queries)
        passage_tokens = self.encoder.passage_tokens(self.run)
        ids = self.run.collection.passage_ids

        def score_lists(lists: Lists) -> np.ndarray:
            query_names = [f"query '{queries.ids[int(row)]}'" for row in lists.query]
            num_originals, num_dark = lists.passages.shape[1], lists.num_dark

            def original(pair):
                i, j = divmod(pair, num_originals)
                return f"{query_names[i]} with passage '{ids[int(lists.passages[i, j])]}'"

            def example(pair):
                return f'{query_names[pair // num_dark]} with dark example {pair % num_dark}'

            query, passages = lists.query, lists.passages
            scores = [self._score_pairs(query_tokens, query, passage_tokens, passages, original)]
            if num_dark:
                dark = np.arange(len(lists) * num_dark).reshape(len(lists), -1)
                tokens = self.encoder.dark_tokens(self.run, lists)
                scores.append(self._score_pairs(query_tokens, query, tokens, dark, example))
            return np.concatenate(scores, axis=1)

        return score_lists

    def score(self, question: str, passages: np.ndarray) -> np.ndarray:
        query_tokens, row = self.encoder.encode_queries([question]), np.zeros(1, np.int32)
        passage_tokens = self.encoder.passage_tokens(self.run)
        return self._score_pairs(query_tokens, row, passage_tokens, passages[None])[0]

    def _score_pairs(
        self,
        queries: TokenStore,
        query_rows: np.ndarray,
        passages: TokenStore,
        passage_rows: np.ndarray,
        name: Callable[[int], str] = 'pair {}'.format,
    ) -> np.ndarray:
        """Logits `[M, N]` of queries `[M]` with passages `[M, N]`, rows of their token stores."""
        return encode.score_pairs(
            self.encoder.model,
            self.encoder.params,
            queries,
            np.repeat(query_rows, passage_rows.shape[1]),
            passages,
            passage_rows.ravel(),
            separators=self.encoder.separators,
            mesh=self.run.mesh,
            desc=f'{self.name}: pairs',
            name=name,
        ).reshape(passage_rows.shape)
