"""What all systems are: retrievers and re-rankers, with one interface."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run

# (rows of queries [B], rows of passages [C]) -> raw scores [B, C] float32.
BatchScorer = Callable[[np.ndarray, np.ndarray], np.ndarray]
# lists -> raw scores [M, N_o + N_d] float32.
ListScorer = Callable[[Lists], np.ndarray]
# (rows of queries, depth) -> ranking of that many passages for each of these queries.
Search = Callable[[slice, int], Ranking]


@dataclasses.dataclass(frozen=True)
class System:
    """A retriever or a re-ranker.

    Attributes:
        name: Its name in the config and the report.
        digest: Changes with everything that decides its scores.
        scale: Logits per unit of score; None to fit it to the labels.
        may_saturate: Whether many scores at an end of their range mean that information was lost.
    """

    may_saturate: ClassVar[bool] = True

    name: str
    digest: str
    scale: float | None
    run: Run

    @property
    def reads_index(self) -> bool:
        """Whether the config's `index` decides its rankings."""
        return False

    @property
    def is_partial(self) -> bool:
        """Whether it has scores for some pairs alone; see `covers`."""
        return False

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        """Ranks the collection for each query; also gives facts such as the index' recall.

        Raises:
            ValueError: if the system cannot search a collection.
        """
        raise NotImplementedError

    def list_scorer(self, queries: Queries) -> ListScorer:
        """Scores candidate lists of a split's queries: originals, then dark examples.

        Builds the stages that it reads, so a single process may call the scorer.
        """
        raise NotImplementedError

    def batch_scorer(self, queries: Queries) -> BatchScorer:
        """Scores every query of a batch against every passage of it, cheaply, while training.

        Raises:
            ValueError: if the system cannot; `jdkd.validation` reports that beforehand.
        """
        raise ValueError(f"system '{self.name}' scores lists, not whole batches.")

    def covers(self, queries: Queries, lists: Lists) -> np.ndarray:
        """Marks the originals of lists that it has scores for, `[M, N_o]` bool; never row -1."""
        return lists.passages >= 0

    def search(self, question: str, depth: int) -> Ranking:
        """Ranks the collection, `[1, depth]`, exactly for a question in no split; keeps nothing.

        Raises:
            ValueError: if the system cannot search, or only for queries that it has scores for.
        """
        raise ValueError(f"system '{self.name}' cannot search for a new question.")

    def score(self, question: str, passages: np.ndarray) -> np.ndarray:
        """Raw scores `[n]` float32 of a question that is in no split with rows `[n]` of passages.

        Raises:
            ValueError: if the system has imported scores.
        """
        raise NotImplementedError


def unique(systems: Iterable[System]) -> list[System]:
    """Each of some systems once, by name, in their order."""
    return list({system.name: system for system in systems}.values())
