"""Estimates how many bytes a run writes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jdkd.config import Config
from jdkd.corpus.lengths import SAMPLE, TOKENS_PER_WORD, count_words
from jdkd.models.dual_encoder import embedding_width
from jdkd.retrieval import vectors
from jdkd.run import Run
from jdkd.systems import loading, roles

_BM25_TERMS_PER_WORD = 0.55  # The average of English text.
_TREE_FROM = 20_000  # Passages from which ScaNN writes twice as much; see `index.build`.


def estimate_run(run: Run) -> dict[str, int]:
    """Approximate bytes that a run writes, by kind; reads a sample of its passages."""
    queries = len(run.train) + len(run.held_out) + len(run.test)
    words = count_words(run.passages, SAMPLE)
    return estimate(run.config, len(run.passages), queries, words, sketch_models(run.config))


def sketch_models(config: Config) -> dict[str, tuple[Any, Any]]:
    """The module and parameter shapes of every encoder of a run, by its config field."""
    return {field: loading.sketch_model(spec) for field, spec in roles.encoders(config).items()}


def estimate(
    config: Config,
    passages: int,
    queries: int,
    words: np.ndarray,
    models: Mapping[str, tuple[Any, Any]],
) -> dict[str, int]:
    """Approximate bytes that a run of a config writes, by kind.

    Numbers of texts, parameters and lists are exact; tokens are guessed from `words`, the word
    counts of a sample of passages. `models` come from `sketch_models`.
    """
    encoders = roles.encoders(config)
    params = {
        field: sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        for field, (_, shapes) in models.items()
    }
    # Specs with the same tokenizer and length share a token store.
    stores = [
        (s.weights, s.passage_length, s.passage_prefix, s.passage_format) for s in encoders.values()
    ]
    tokens = [np.minimum(TOKENS_PER_WORD * words + 2, n).mean() for _, n, *_ in {*stores}]
    # The student is embedded before the first round, once aligned, and after each; so is its twin
    # at the end.
    embeddings = {f: 1 for f, spec in encoders.items() if spec.kind == 'dual_encoder'}
    embeddings['student'] = config.rounds + 1 + bool(config.align.epochs) + config.twin
    dims = sum(count * embedding_width(models[field][0]) for field, count in embeddings.items())
    item = vectors.bytes_per_vector(1, config.index.store)
    scann = (1 + (passages >= _TREE_FROM)) * passages * dims // 4
    codes = scann if config.index.kind == 'scann' else 0
    rankings = sum(embeddings.values()) + len(set(roles.retrievers(config)) - set(encoders))
    trainings = config.rounds * (1 + config.twin) + bool(config.align.epochs)
    trained = [trainings * params['student'], params['student']]
    trained += [params[f'systems.{name}'] for name in roles.trained(config)]
    pairs = config.rounds * queries * config.candidates.scored if config.candidates.hardest else 0
    sizes = {
        'tokens': sum(passages * (2 * mean + 8) for mean in tokens),
        'embeddings': (passages + queries) * dims * item,
        'indexes': codes + 8 * passages * _BM25_TERMS_PER_WORD * words.mean(),
        'rankings': 8 * rankings * queries * config.depth,
        'candidates, scores and datasets': config.rounds * _list_bytes(config, words)
        + 4 * pairs * (1 + len(config.teacher.members)),
        # Parameters and AdamW's two moments; one more copy during replacement; the export.
        'checkpoints': 12 * sum(trained) + 4 * params['student'],
    }
    return {kind: int(size) for kind, size in sizes.items()}


def slice_bytes(config: Config, words: np.ndarray) -> float:
    """Bytes of the slices that describe the dark examples of a list; see `SlicedTexts`."""
    masked = float(np.mean(config.dark.mask) * np.mean(words))
    return 12 * (3 * config.dark.reinforced + (2 * masked + 1) * config.dark.noisy)


def _list_bytes(config: Config, words: np.ndarray) -> float:
    """Bytes of the lists of a round, as arrays and again as records."""
    originals = 1 + config.candidates.hard_negatives
    dark = config.dark.reinforced + config.dark.noisy
    scores = 4 * (originals + dark) * (1 + len(config.assistants))
    ids = 4 * originals + 2 * dark * config.train_passage_length + slice_bytes(config, words)
    record = scores + 8 * originals + 4 * dark * config.train_passage_length
    lists = config.steps_per_round * config.batch_size + config.candidates.eval_lists
    return lists * (scores + ids + record)
