"""Scores made elsewhere as a system."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from jdkd import diagnostics
from jdkd.corpus.sources import base
from jdkd.lists.candidates import Lists
from jdkd.retrieval import trec
from jdkd.retrieval.ranking import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import stages
from jdkd.systems.ranking import checked_ranking
from jdkd.systems.system import ListScorer, System


@dataclasses.dataclass(frozen=True)
class ImportedScores(System):
    """Scores read from a file: of an LLM ranker, or another system's run file."""

    path: pathlib.Path  # `jdkd.retrieval.trec` lists the formats.
    scores: trec.Scores
    missing: float | None  # Score of a pair that the file lacks; None makes that an error.

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        def search(part, depth):
            return self._best(queries.ids[part], depth)

        return checked_ranking(self.run, self.name, queries, search), {}

    def _best(self, query_ids: Sequence[str], depth: int) -> Ranking:
        """The best of each query as trec_eval sorts the file: ties by falling passage id."""
        rows = np.full((len(query_ids), depth), -1, np.int32)
        values = np.full(rows.shape, -np.inf, np.float32)
        for i, query_id in enumerate(query_ids):
            passages, scores = self.scores.of(query_id)
            scores = scores.astype(np.float32)
            best = np.argsort(-scores, kind='stable')
            if (np.diff(scores[best]) == 0).any():
                ids = self.run.collection.passage_ids.take(passages)
                best = np.array(sorted(best, key=lambda j: (scores[j], ids[j]), reverse=True))
            best = best[:depth]
            rows[i, : len(best)], values[i, : len(best)] = passages[best], scores[best]
        return Ranking(rows, values)

    def list_scorer(self, queries: Queries) -> ListScorer:
        return lambda lists: self._score_lists(queries, lists)

    def _score_lists(self, queries: Queries, lists: Lists) -> np.ndarray:
        if lists.num_dark:
            raise ValueError(
                f"system '{self.name}' has imported scores and cannot score dark examples."
            )
        scores = self._look_up(queries, lists)
        is_missing = np.isnan(scores)
        if not is_missing.any():
            return scores.astype(np.float32)
        if self.missing is None:
            i, j = np.argwhere(is_missing)[0]
            passage = self.run.collection.passage_ids[int(lists.passages[i, j])]
            query = queries.ids[int(lists.query[i])]
            raise ValueError(
                f"{self.path} has no score for query '{query}' and passage "
                f"'{passage}', and has scores for {1 - is_missing.mean():.1%} of the pairs; add "
                f'the rest, or set systems.{self.name}.missing to the score of pairs that it lacks.'
            )
        share = is_missing.mean()
        logging.info('%s: %.1f%% of the pairs get missing=%g', self.name, 100 * share, self.missing)
        return np.where(is_missing, self.missing, scores).astype(np.float32)

    def _look_up(self, queries: Queries, lists: Lists) -> np.ndarray:
        scores = np.full(lists.passages.shape, np.nan)
        for own, query, rows in zip(scores, lists.query, lists.passages, strict=True):
            own[:] = self.scores.look_up(queries.ids[int(query)], rows)
        return scores

    @property
    def is_partial(self) -> bool:
        return self.missing is None

    def covers(self, queries: Queries, lists: Lists) -> np.ndarray:
        there = lists.passages >= 0
        return there & ~np.isnan(self._look_up(queries, lists)) if self.is_partial else there

    def score(self, question: str, passages: np.ndarray) -> np.ndarray:
        raise ValueError(f"system '{self.name}' has imported scores: none for a new question.")


def load(run: Run, name: str, spec) -> ImportedScores:
    """Reads the scores of `spec.path` once, into `systems/<name>/scores`.

    Raises:
        ValueError: if the file is bad, is of another collection, or has changed since it was read.
        FileNotFoundError: if it is missing and was not read yet.
    """
    path = pathlib.Path(spec.path).expanduser()

    def build(out: pathlib.Path) -> dict:
        skipped = {}
        on_error = base.make_on_error(spec.on_error, skipped)
        scores = trec.read(path, run.collection, on_error, format=spec.format)
        base.log_skipped(str(path), skipped)
        scores.save(out)
        return {
            'skipped': skipped,
            'queries': len(scores.queries),
            'pairs': len(scores.rows),
            'constant_share': diagnostics.constant_share(scores.values, scores.starts),
            'saturated_share': diagnostics.saturated_share(scores.values),
        }

    directory = run.workdir / f'systems/{name}/scores'
    inputs = {'collection': run.collection.fingerprint, 'on_error': spec.on_error}
    if spec.format:
        inputs['format'] = spec.format
    manifest = stages.build_stage_from_files(directory, [path], inputs, build)
    diagnostics.log(diagnostics.flatness_warnings(str(path), manifest['result']))
    digest = stages.digest([manifest['digest'], spec.missing])
    return ImportedScores(name, digest, spec.scale, run, path, trec.load(directory), spec.missing)
