"""What Algorithm 1 asks of a system, and what all systems share."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from jdkd.data.candidates import Lists
from jdkd.retrieval import evaluate, index
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run

# (rows of queries [B], rows of passages [C]) -> raw scores [B, C] float32.
Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]


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

    def score(self, queries: Queries, lists: Lists) -> np.ndarray:
        """`[M, N_o + N_d]` float32 raw scores of originals and dark examples."""
        ...

    def scorer(self, queries: Queries) -> Scorer:
        """Scores every query of a batch against every passage of it, cheaply, while training.

        Raises:
            ValueError: if the system cannot; `jdkd.runtime.config.validate` says so beforehand.
        """
        ...


def measure(run: Run, ranking: Ranking, queries: Queries) -> dict[str, float]:
    """The config's measures of a ranking, as fractions."""
    found = evaluate.to_run(ranking, queries.ids, run.collection.passage_ids)
    qrels = run.collection.qrels.get(queries.split, {})
    qrels = {i: qrels[i] for i in queries.ids if i in qrels}  # Some may have answers alone.
    return evaluate.measure(found, qrels, run.config.measures)


def keep_ranking(
    system: 'System',
    queries: Queries,
    search: Callable[[], tuple[Ranking, dict[str, float]]],
) -> tuple[Ranking, dict[str, float]]:
    """A system's ranking of a split, kept as a stage."""
    run = system.run
    path = f'systems/{system.name}/ranking-{queries.split}'

    def build(out):
        ranking, facts = search()
        ranking.save(out, 'ranking')
        return facts

    manifest = run.stage(
        path,
        {
            'system': system.digest,
            'collection': run.collection.fingerprint,
            'depth': run.config.depth,
            'index': run.config.index.to_dict(),
        },
        build,
    )
    return index.load_ranking(run.workdir / path, 'ranking'), manifest['result']
