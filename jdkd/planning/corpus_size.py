"""How many texts a run has, and how long they are."""

import dataclasses
import pathlib
import tempfile

import ml_collections
import numpy as np

from jdkd.corpus import importing
from jdkd.corpus.collection import Collection
from jdkd.planning import disk
from jdkd.run import Run

SAMPLE = 4096  # Texts whose lengths stand for all.


@dataclasses.dataclass(frozen=True)
class Texts:
    """Numbers of texts and lengths, in tokens with special ones.

    Attributes:
        passages: Of the collection.
        train: Train queries, without those of D_eval.
        held_out: Queries of D_eval.
        test: Test queries.
        passage_tokens: Mean; None where it is not known.
        query_tokens: Mean; None where it is not known.
    """

    passages: int
    train: int
    held_out: int
    test: int
    passage_tokens: float | None
    query_tokens: float | None

    @property
    def queries(self) -> int:
        return self.train + self.held_out + self.test

    def passage_lengths(self, shape: tuple[int, ...], longest: int) -> np.ndarray:
        """Lengths of passages, cut to the longest; all that long where the mean is not known."""
        return _lengths(shape, self.passage_tokens, longest)

    def query_lengths(self, shape: tuple[int, ...], longest: int) -> np.ndarray:
        """The same of queries."""
        return _lengths(shape, self.query_tokens, longest)

    def on_disk(self) -> disk.Texts:
        """What the estimate of the disk takes."""
        lengths = self.passage_lengths((SAMPLE,), 512)
        return disk.Texts(self.passages, self.queries, (lengths - 2) / disk.TOKENS)


def _lengths(shape: tuple[int, ...], mean: float | None, longest: int) -> np.ndarray:
    if mean is None:
        return np.full(shape, longest)
    return draw_lengths(np.random.default_rng(0), shape, mean, longest)


def draw_lengths(
    rng: np.random.Generator, shape: tuple[int, ...], mean: float, longest: int
) -> np.ndarray:
    """Tokens of texts, spread as MS MARCO's passages are: a gamma distribution, cut off (ours)."""
    return rng.gamma(5, mean / 5, shape).astype(np.int64).clip(min(8, longest), longest)


def of(config: ml_collections.FrozenConfigDict, workdir: pathlib.Path | None) -> Texts:
    """Of the collection that was imported; else what `config.plan` says, or of one read now.

    Args:
        config: Of the run.
        workdir: Where it may have been imported; None for nowhere.

    Raises:
        ValueError: if the collection cannot be read, or `config.plan` tells queries alone.
        FileNotFoundError: if it is not there.
    """
    if workdir is not None and (workdir / 'collection').is_dir():
        return _count(config, workdir, importing.load_collection(config, workdir))
    told = config.plan
    if told.passages is None and (told.train_queries or told.test_queries):
        raise ValueError('plan.train_queries and plan.test_queries need plan.passages; set it too.')
    if told.passages is not None:
        test = told.test_queries or 0
        total = told.train_queries or 0
        held_out = round(config.collection.eval_fraction * total)
        return Texts(
            told.passages,
            total - held_out,
            held_out,
            test,
            told.passage_tokens,
            told.query_tokens,
        )
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        return _count(config, scratch, importing.load_collection(config, scratch))


def _count(config, workdir: pathlib.Path, collection: Collection) -> Texts:
    run = Run(config, workdir, None, collection)

    def mean(texts):
        sample = np.linspace(0, len(texts) - 1, min(len(texts), SAMPLE)).astype(int)
        return disk.TOKENS * float(np.mean([len(texts[int(i)].split()) for i in sample])) + 2

    told = config.plan
    return Texts(
        len(collection),
        len(run.train),
        len(run.held_out),
        len(run.test),
        told.passage_tokens or mean(run.passages),
        told.query_tokens or mean(run.train.texts),
    )
