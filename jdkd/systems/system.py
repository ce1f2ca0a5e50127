"""What Algorithm 1 asks of a system, and what all systems share."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries

# (rows of queries [B], rows of passages [C]) -> raw scores [B, C] float32.
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
# lists -> raw scores [M, N_o + N_d] float32.
ListScorer = Callable[[Lists], np.ndarray]
# depth -> that many passages a query, and facts such as the index' recall.
Search = Callable[[int], tuple[Ranking, dict[str, float]]]


class System(Protocol):
    """What Algorithm 1 needs of a retriever or a scorer.

    Attributes:
        name: As in the config and the report.
        digest: Of all that decides its scores.
        scale: Logits per unit of score; None to fit it to the labels.
    """

    name: str
    digest: str
    scale: float | None

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        """The collection ranked for each query, and facts such as the index' recall."""
        ...

    def list_scorer(self, queries: Queries) -> ListScorer:
        """Scores candidate lists of a split's queries: originals, then dark examples.

        The stages that it reads are built here: what is returned can be called by one process.
        """
        ...

    def scorer(self, queries: Queries) -> Scorer:
        """Scores every query of a batch against every passage of it, cheaply, while training.

        Raises:
            ValueError: if the system cannot; `jdkd.validation` says so beforehand.
        """
        ...
