"""About how much a run will write, beside the room that its disk has."""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from jdkd.run import Run
from jdkd.systems import loading, roles

_SAMPLE = 1000  # Passages whose words are counted.
# What English text has on an average: tokens a word, and terms that BM25 keeps of them.
TOKENS, _TERMS = 1.35, 0.55
_TREE_FROM = 20_000  # Passages from which ScaNN writes twice as much; see `index.build`.


@dataclasses.dataclass(frozen=True)
class Texts:
    """How much text a run has.

    Attributes:
        passages: Of the collection.
        queries: Of all splits that the run uses.
        words: Of some passages, evenly chosen.
    """

    passages: int
    queries: int
    words: np.ndarray


def faults(run: Run) -> Iterator[str]:
    """A disk too small for the run; one that has begun is not asked."""
    if any((run.workdir / name).exists() for name in ('tokens', 'systems', 'rounds')):
        return
    parts = needed(run)
    total, free = sum(parts.values()), shutil.disk_usage(run.workdir).free
    if total > free:
        shown = ', '.join(f'{name} {_size(size)}' for name, size in parts.items())
        yield (
            f'the run will write about {_size(total)} ({shown}), but the disk of {run.workdir} has '
            f'{_size(free)} free; free some, choose another --workdir, or set '
            'index.store=bfloat16, fewer rounds or a smaller depth.'
        )


def needed(run: Run) -> dict[str, int]:
    """Bytes that a run will write, about, by what they are; see `estimate`.

    Only words are counted in a sample.
    """
    passages = len(run.collection)
    sample = np.linspace(0, passages - 1, min(passages, _SAMPLE)).astype(int)
    words = np.array([len(run.passages[int(i)].split()) for i in sample])
    queries = len(run.train) + len(run.held_out) + len(run.test)
    return estimate(run.config, Texts(passages, queries, words), sketches(run.config))


def sketches(config: ml_collections.FrozenConfigDict) -> dict[str, tuple[Any, Any]]:
    """Module and shapes of the parameters of every encoder of a run, by its field."""
    encoders = roles.encoders(config)
    return {field: loading.sketch_model(entry) for field, entry in encoders.items()}


def width(model: Any) -> int:
    """Dimensions of an encoder's embeddings."""
    projection = getattr(model, 'projection', None)
    return model.transformer.hidden_size if projection is None else projection.out_dim


def estimate(
    config: ml_collections.FrozenConfigDict, texts: Texts, models: Mapping[str, tuple[Any, Any]]
) -> dict[str, int]:
    """Bytes that a run of a config over so much text writes, about, by what they are.

    Numbers of texts, parameters and lists are known, tokens guessed from words.

    Args:
        config: Of the run.
        texts: Of the run.
        models: From `sketches`.
    """
    passages, queries, words = texts.passages, texts.queries, texts.words
    encoders = roles.encoders(config)
    params = {
        field: sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        for field, (_, shapes) in models.items()
    }

    def tokens(length):
        return passages * (2 * np.minimum(TOKENS * words + 2, length).mean() + 8)

    # Entries of one tokenizer and length share a store.
    stores = {
        (e.weights, e.passage_length, e.passage_prefix): tokens(e.passage_length)
        for e in encoders.values()
    }
    # The student is embedded before the first round and after each.
    retrieved = {f: 1 for f, e in encoders.items() if e.kind == 'dual_encoder'}
    retrieved['student'] = config.rounds + 1
    dims = sum(count * width(models[field][0]) for field, count in retrieved.items())
    item = 2 if config.index.store == 'bfloat16' else 4
    codes = 0
    if config.index.kind == 'scann':
        codes = (1 + (passages >= _TREE_FROM)) * passages * dims // 4
    rankers = sum(retrieved.values()) + len(set(roles.retrievers(config)) - set(encoders))
    trained = [config.rounds * params['student'], params['student']]
    trained += [params[f'systems.{name}'] for name in roles.trained(config)]
    found = {
        'tokens': sum(stores.values()),
        'embeddings': (passages + queries) * dims * item,
        'indexes': codes + 8 * passages * _TERMS * words.mean(),
        'rankings': 8 * rankers * queries * config.depth,
        'candidates, scores and datasets': config.rounds * _lists(config),
        # AdamW's two moments beside the parameters; one more while it is replaced; the export.
        'checkpoints': 12 * sum(trained) + 4 * params['student'],
    }
    return {name: int(size) for name, size in found.items()}


def _lists(config: ml_collections.FrozenConfigDict) -> int:
    """Bytes of the lists of a round: as arrays, and once more as records."""
    originals = 1 + config.candidates.hard_negatives
    dark = config.dark.reinforced + config.dark.noisy
    scores = 4 * (originals + dark) * (1 + len(config.assistants))
    ids = 4 * originals + 2 * dark * config.train_passage_length
    record = scores + 8 * originals + 4 * dark * config.train_passage_length
    lists = config.steps_per_round * config.batch_size + config.candidates.eval_lists
    return lists * (scores + ids + record)


def _size(size: int) -> str:
    if size >= 2**30:
        return f'{size / 2**30:.1f} GiB'
    return f'{size / 2**20:.1f} MiB'
