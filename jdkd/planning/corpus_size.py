"""Counts the passages and queries of a run and estimates their lengths."""

import dataclasses
import pathlib
import tempfile

import numpy as np
from jax.sharding import Mesh

from jdkd.config import Config
from jdkd.corpus import importing
from jdkd.corpus.lengths import TOKENS_PER_WORD, count_words
from jdkd.run import Run

SAMPLE = 4096  # Texts whose lengths stand for all.


@dataclasses.dataclass(frozen=True)
class CorpusSize:
    """Numbers of texts, and mean lengths in tokens with special ones, None if unknown."""

    passages: int
    train: int  # Train queries, without those of D_eval.
    held_out: int  # Queries of D_eval.
    test: int
    passage_tokens: float | None
    query_tokens: float | None
    # Train queries with a label, and those without one that may get a pseudo-label.
    labels: tuple[int, int]
    unlabelled: int = 0  # Queries of train and D_eval without a positive.
    rounds: int | None = None  # To train; None: all of the config's.

    @property
    def queries(self) -> int:
        return self.train + self.held_out + self.test

    def passage_lengths(self, shape: tuple[int, ...], longest: int) -> np.ndarray:
        """Token counts of passages, cut at `longest`; all `longest` if the mean is unknown."""
        return _lengths(shape, self.passage_tokens, longest)

    def query_lengths(self, shape: tuple[int, ...], longest: int) -> np.ndarray:
        """Token counts of queries, cut at `longest`; all `longest` if the mean is unknown."""
        return _lengths(shape, self.query_tokens, longest)

    def passage_words(self) -> np.ndarray:
        """`[SAMPLE]` word counts of passages, for `disk.estimate`."""
        return (self.passage_sample() - 2) / TOKENS_PER_WORD

    def passage_sample(self) -> np.ndarray:
        """`[SAMPLE]` token counts of passages."""
        return self.passage_lengths((SAMPLE,), 512)

    def query_sample(self) -> np.ndarray:
        """`[SAMPLE]` token counts of train queries; none if the mean is unknown."""
        if self.query_tokens is None:
            return np.zeros(0)
        return self.query_lengths((SAMPLE,), 512)


def draw_lengths(
    rng: np.random.Generator, shape: tuple[int, ...], mean: float, longest: int
) -> np.ndarray:
    """Draws token counts from a gamma distribution that resembles MS MARCO's passages (ours)."""
    return rng.gamma(5, mean / 5, shape).astype(np.int64).clip(min(8, longest), longest)


def measure(config: Config, workdir: pathlib.Path | None, mesh: Mesh) -> CorpusSize:
    """The size of a workdir's imported collection; else of `config.plan`, or of one read now.

    Raises:
        ValueError: if the collection cannot be read, or `config.plan` has queries alone, or
            passages alone.
        FileNotFoundError: if there is no collection.
    """
    made = config.collection.pseudo_queries
    parts = ['collection', importing.PSEUDO_QUERIES][: 2 if made.count or made.file else 1]
    if workdir is not None and all((workdir / part).is_dir() for part in parts):
        return _measure_imported(config, workdir, mesh)
    plan = config.plan
    if plan.passages is None and (plan.train_queries or plan.test_queries):
        raise ValueError('plan.train_queries and plan.test_queries need plan.passages; set it too.')
    if plan.passages is not None:
        queries, made = plan.train_queries or 0, config.collection.pseudo_queries.count
        if not queries + made:
            raise ValueError('plan.passages needs plan.train_queries; set it too.')
        # D_eval has no pseudo-query unless there is no other.
        held_out = round(config.collection.eval_fraction * (queries or made))
        counts = plan.passages, queries + made - held_out, held_out, plan.test_queries or 0
        own = max(counts[1] - made, 0)
        judged = round(config.collection.label_share * own)
        labelled = judged + (counts[1] - own) * config.collection.pseudo_queries.positive
        unlabelled = counts[1] - labelled + (0 if config.collection.eval_labels else held_out)
        tokens, labels = (plan.passage_tokens, plan.query_tokens), (labelled, own - judged)
        return CorpusSize(*counts, *tokens, labels, unlabelled)
    with tempfile.TemporaryDirectory() as scratch:
        return _measure_imported(config, pathlib.Path(scratch), mesh)


def of_run(run: Run) -> CorpusSize:
    """The size of a run's collection, with the config's mean lengths or those of a sample."""
    plan, split = run.config.plan, run.config.collection.train_split

    def mean_tokens(texts):
        return TOKENS_PER_WORD * float(np.mean(count_words(texts, SAMPLE))) + 2

    return CorpusSize(
        passages=len(run.passages),
        train=len(run.train),
        held_out=len(run.held_out),
        test=len(run.test),
        passage_tokens=plan.passage_tokens or mean_tokens(run.passages),
        query_tokens=plan.query_tokens or mean_tokens(run.train.texts),
        labels=(len(run.collection.labelled(split)), len(run.collection.unlabelled(split))),
        unlabelled=sum(int((~q.is_labelled).sum()) for q in (run.train, run.held_out)),
        rounds=run.num_rounds,
    )


def _measure_imported(config: Config, workdir: pathlib.Path, mesh: Mesh) -> CorpusSize:
    return of_run(Run(config, workdir, mesh, importing.load_collection(config, workdir)))


def _lengths(shape: tuple[int, ...], mean: float | None, longest: int) -> np.ndarray:
    if mean is None:
        return np.full(shape, longest)
    return draw_lengths(np.random.default_rng(0), shape, mean, longest)
