"""Scores made elsewhere as a system."""

import dataclasses
import pathlib

import numpy as np

from jdkd import diagnostics
from jdkd.corpus.sources import base
from jdkd.lists.candidates import Lists
from jdkd.retrieval import trec
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import stages
from jdkd.systems.ranking import ranked
from jdkd.systems.system import ListScorer, Scorer


@dataclasses.dataclass(frozen=True)
class ImportedScores:
    """Scores made elsewhere, read from a file (an LLM ranker, another system's run).

    Attributes:
        path: The file; `jdkd.retrieval.trec` says which there are.
        scores: What it holds.
        missing: Score of a pair that the file lacks; None makes that an error.
    """

    name: str
    digest: str
    scale: float | None
    run: Run
    path: pathlib.Path
    scores: trec.Scores
    missing: float | None

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        return ranked(self.run, self.name, queries, lambda depth: (self._best(queries, depth), {}))

    def _best(self, queries: Queries, depth: int) -> Ranking:
        rows = np.full((len(queries), depth), -1, np.int32)
        values = np.full((len(queries), depth), -np.inf, np.float32)
        for i, query_id in enumerate(queries.ids):
            theirs, scores = self.scores.of(query_id)
            best = np.argsort(-scores, kind='stable')[:depth]  # Ties keep the collection's order.
            rows[i, : len(best)], values[i, : len(best)] = theirs[best], scores[best]
        return Ranking(rows, values)

    def scorer(self, queries: Queries) -> Scorer:
        raise ValueError(
            f"system '{self.name}' has imported scores: it scores lists, not whole batches."
        )

    def list_scorer(self, queries: Queries) -> ListScorer:
        return lambda lists: self._score(queries, lists)

    def _score(self, queries: Queries, lists: Lists) -> np.ndarray:
        if lists.dark.shape[1]:
            raise ValueError(
                f"system '{self.name}' has imported scores and cannot score dark examples."
            )
        found = self._look_up(queries, lists)
        missing = np.isnan(found)
        if missing.any() and self.missing is None:
            i, j = np.argwhere(missing)[0]
            passage = self.run.collection.passage_ids[lists.passages[i, j]]
            raise ValueError(
                f"{self.path} has no score for query '{queries.ids[lists.query[i]]}' and passage "
                f"'{passage}', and has scores for {1 - missing.mean():.1%} of the pairs; add the "
                f'rest, or set systems.{self.name}.missing to the score of pairs that it lacks.'
            )
        if missing.any():
            found[missing] = self.missing
        return found.astype(np.float32)

    def coverage(self, queries: Queries, lists: Lists) -> float:
        """Share of the pairs of candidate lists that the file has a score for."""
        return float(1 - np.isnan(self._look_up(queries, lists)).mean())

    def _look_up(self, queries: Queries, lists: Lists) -> np.ndarray:
        pairs = zip(lists.query, lists.passages, strict=True)
        return np.stack([self.scores.look_up(queries.ids[q], rows) for q, rows in pairs])


def load(run: Run, name: str, spec) -> ImportedScores:
    """The scores of `spec.path`, read once into `systems/<name>/scores`.

    Raises:
        ValueError: if the file is bad, is of another collection, or has changed since it was read.
        FileNotFoundError: if it is missing and was not read yet.
    """
    path = pathlib.Path(spec.path)

    def build(out: pathlib.Path) -> dict:
        skipped = {}
        scores = trec.read(path, run.collection, base.make_on_error(spec.on_error, skipped))
        base.log_skipped(str(path), skipped)
        scores.save(out)
        return {
            'skipped': skipped,
            'queries': len(scores.queries),
            'pairs': len(scores.rows),
            'constant_share': diagnostics.constant_share(scores.values, scores.starts),
            'saturated_share': diagnostics.saturated_share(scores.values),
        }

    where = f'systems/{name}/scores'
    inputs = {'collection': run.collection.fingerprint, 'on_error': spec.on_error}
    manifest = stages.build_stage_from_files(run.workdir / where, [path], inputs, build)
    diagnostics.log(diagnostics.flatness_warnings(str(path), manifest['result']))
    digest = stages.digest([manifest['digest'], spec.missing])
    scores = trec.load(run.workdir / where)
    return ImportedScores(name, digest, spec.scale, run, path, scores, spec.missing)
