"""Estimates how many bytes a run writes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jdkd.config import Config
from jdkd.corpus.lengths import SAMPLE, TOKENS_PER_WORD, count_words
from jdkd.lists import candidates
from jdkd.models.dual_encoder import embedding_width
from jdkd.planning import corpus_size
from jdkd.planning.corpus_size import CorpusSize
from jdkd.retrieval import approximate, vectors
from jdkd.run import Run
from jdkd.systems import loading, roles

_BM25_TERMS_PER_WORD = 0.55  # The average of English text.


def estimate_run(run: Run) -> dict[str, int]:
    """Approximate bytes that a run writes, by kind; reads a sample of its passages."""
    words, config = count_words(run.passages, SAMPLE), run.config.replace(rounds=run.num_rounds)
    return estimate(config, corpus_size.of_run(run), words, sketch_models(config))


def sketch_models(config: Config) -> dict[str, tuple[Any, Any]]:
    """The module and parameter shapes of every encoder of a run, by its config field."""
    return {field: loading.sketch_model(spec) for field, spec in roles.encoders(config).items()}


def estimate(
    config: Config,
    size: CorpusSize,
    words: np.ndarray,
    models: Mapping[str, tuple[Any, Any]],
) -> dict[str, int]:
    """Approximate bytes that a run of a config holds at the most, by kind.

    Numbers of texts, parameters and lists are exact; tokens are guessed from `words`, the word
    counts of a sample of passages. `models` come from `sketch_models`.
    """
    encoders = roles.encoders(config)
    params = {field: count_parameters(shapes) for field, (_, shapes) in models.items()}
    lengths = [length for _, length, *_ in token_stores(config)]
    tokens = [np.minimum(TOKENS_PER_WORD * words + 2, n).mean() for n in lengths]
    passages, queries, measured = size.passages, size.queries, size.held_out + size.test
    embeddings = {f: 1 for f, spec in encoders.items() if spec.kind == 'dual_encoder'}
    embeddings['student'] = _students_at_once(config)
    dims = sum(count * embedding_width(models[field][0]) for field, count in embeddings.items())
    cut = sum(embedding_width(models[f'systems.{n}'][0]) for n, _ in roles.cut_targets(config))
    item = vectors.bytes_per_vector(1, config.index.store)
    scann = (1 + (passages >= approximate.TREE_FROM)) * passages * dims // 4
    codes = scann if 'scann' in (config.index.kind, config.index.mining) else 0
    retrievers = {f'systems.{name}' for name in roles.retrievers(config)}
    rankings = sum(embeddings.values()) + len(retrievers - set(encoders))
    discarded = count_students(config) - embeddings['student']
    trainings = config.rounds * (1 + config.twin) + bool(config.align.epochs)
    trained = [trainings * params['student'], params['student']]
    trained += [params[f'systems.{name}'] for name in roles.trained(config)]
    pairs = config.rounds * queries * config.candidates.scored if config.candidates.hardest else 0
    lists = config.rounds * count_lists(config, size)
    sizes = {
        'tokens': sum(passages * (2 * mean + 8) for mean in tokens),
        'embeddings': ((passages + queries) * dims + passages * cut) * item,
        'indexes': codes + 8 * passages * _BM25_TERMS_PER_WORD * words.mean(),
        'rankings': 8 * (rankings * queries + discarded * measured) * config.depth,
        'candidates, scores and datasets': lists * _list_bytes(config, words)
        + 4 * pairs * (1 + len(config.teacher.members)),
        # Parameters and AdamW's two moments; one more copy during replacement; the export.
        'checkpoints': 12 * sum(trained) + 4 * params['student'],
    }
    return {kind: int(size) for kind, size in sizes.items()}


def transient(config: Config, size: CorpusSize, words: np.ndarray) -> dict[str, int]:
    """Approximate bytes of parts that stand beside what is made of them, until a stage ends.

    Stages follow one another: the disk needs the largest beside `estimate`.
    """
    postings = size.passages * _BM25_TERMS_PER_WORD * words.mean()
    longest = max(length for _, length, *_ in token_stores(config))
    tokens = np.minimum(TOKENS_PER_WORD * words + 2, longest).mean()
    sizes = {
        'tokens': size.passages * (2 * tokens + 4),
        # Counted terms, and the index before bm25s saves it.
        'BM25': (8 + 8) * postings,
        'rankings': 8 * size.train * config.depth,
    }
    return {kind: int(value) for kind, value in sizes.items()}


def token_stores(config: Config) -> set[tuple[str, int, str | None, str | None]]:
    """What decides the token stores of passages: specs that agree in it share one."""
    cut = (spec for _, spec in roles.cut_targets(config))
    return {
        (s.weights, s.passage_length, s.passage_prefix, s.passage_format)
        for s in (*roles.encoders(config).values(), *cut)
    }


def count_parameters(shapes: Any) -> int:
    """Parameters of a tree of arrays or shapes."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def count_lists(config: Config, size: CorpusSize) -> int:
    """Candidate lists of a round, of D_train and D_eval."""
    return sum(candidates.count_lists(config, size.held_out).values())


def count_students(config: Config) -> int:
    """Students that embed the collection: before round 0, aligned, after each round, and twins."""
    return 1 + bool(config.align.epochs) + config.rounds * (1 + config.twin)


def _students_at_once(config: Config) -> int:
    """Students whose embeddings there are at the same time, at the most."""
    if config.keep_students:
        return count_students(config)
    first = 2 + bool(config.align.epochs)  # Before round 0, aligned, after it.
    # One enters the last round, one leaves it; the best so far, and the pool, may be earlier ones.
    last = 3 + min(config.rounds - 2, len(config.assistants)) if config.rounds > 1 else 1
    return max(first, last, 1 + 2 * config.twin)


def slice_bytes(config: Config, words: np.ndarray) -> float:
    """Bytes of the slices that describe the dark examples of a list; see `SlicedTexts`."""
    masked = float(np.mean(config.dark.mask) * np.mean(words))
    return 12 * (3 * config.dark.reinforced + (2 * masked + 1) * config.dark.noisy)


def _list_bytes(config: Config, words: np.ndarray) -> float:
    """Bytes of a list, in arrays and again in a record."""
    originals = 1 + config.candidates.hard_negatives
    dark = config.dark.reinforced + config.dark.noisy
    scores = 4 * (originals + dark) * (1 + len(config.assistants))
    ids = 4 * originals + 2 * dark * config.train_passage_length + slice_bytes(config, words)
    record = scores + 8 * originals + 4 * dark * config.train_passage_length
    return scores + ids + record
