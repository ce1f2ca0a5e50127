"""Fields by themselves: ranges of numbers, choices, schedules."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import Stemmer

from jdkd.corpus.sources import registry
from jdkd.distillation import assistants, schedules
from jdkd.models.config import REMAT
from jdkd.models.dual_encoder import POOLINGS
from jdkd.retrieval import index, measures, vectors
from jdkd.systems.build import KINDS
from jdkd.systems.roles import used
from jdkd.validation.errors import catch

_RANGES: dict[str, Callable[[float], bool]] = {
    'at least 0': lambda x: x >= 0,
    'at least 1': lambda x: x >= 1,
    'at least 3': lambda x: x >= 3,
    'above 0': lambda x: x > 0,
    'finite': lambda x: True,
    'within 0 and 1': lambda x: 0 <= x <= 1,
    'above 0 and at most 1': lambda x: 0 < x <= 1,
    'above 0 and below 1': lambda x: 0 < x < 1,
    'at least 0 and below 1': lambda x: 0 <= x < 1,
    '-1 (all that mesh.model leaves) or at least 1': lambda x: x == -1 or x >= 1,
}
_TRAINING = {
    'learning_rate': 'above 0',
    'warmup_steps': 'at least 0',
    'weight_decay': 'at least 0',
    'clip_norm': 'above 0',
    'accumulate': 'at least 1',
}
# Of the indexes and rankings; configs/eval.py has them too.
RETRIEVAL = {
    'seed': 'at least 0',
    'depth': 'at least 1',
    'index.reorder': 'at least 1',
    'index.leaves': 'above 0 and at most 1',
    'mesh.data': '-1 (all that mesh.model leaves) or at least 1',
    'mesh.model': 'at least 1',
}
_RUN = {
    **RETRIEVAL,
    'collection.eval_fraction': 'above 0 and below 1',
    'collection.label_share': 'above 0 and at most 1',
    'candidates.hard_negatives': 'at least 1',
    'candidates.stand_ins': 'at least 1',
    'candidates.labelled': 'within 0 and 1',
    'candidates.depth': 'at least 1',
    'candidates.eval_lists': 'at least 1',
    'dark.reinforced': 'at least 0',
    'dark.noisy': 'at least 0',
    'rounds': 'at least 1',
    'steps_per_round': 'at least 1',
    'batch_size': 'at least 1',
    'train_passage_length': 'at least 3',
    'rows.lengths': 'at least 1',
    'rows.shared': 'at least 0',
    'rows.texts': 'at least 1',
    'rows.chunks': 'at least 1',
    'rows.parts': 'at least 0',
    'plan.passages': 'at least 1',
    'plan.train_queries': 'at least 1',
    'plan.test_queries': 'at least 1',
    'plan.passage_tokens': 'at least 3',
    'plan.query_tokens': 'at least 3',
    'replay': 'within 0 and 1',
    'log_every': 'at least 1',
    'checkpoint_every': 'at least 1',
    **{f'optimizer.{name}': kind for name, kind in _TRAINING.items()},
}
_BM25 = {'k1': 'at least 0', 'b': 'within 0 and 1', 'scale': 'above 0'}
_SCORES = {'missing': 'finite', 'scale': 'above 0'}
# Lengths count [CLS] and [SEP].
ENCODER = {
    'query_length': 'at least 3',
    'passage_length': 'at least 3',
    'hidden_size': 'at least 1',
    'label': 'at least 0',
    'scale': 'above 0',
    'dropout': 'at least 0 and below 1',
    'train.steps': 'at least 0',
    'train.batch_size': 'at least 1',
    'train.hard_negatives': 'at least 1',
    'train.depth': 'at least 1',
    'train.scale': 'above 0',
    **{f'train.{name}': kind for name, kind in _TRAINING.items()},
}
_OPTIONS = {
    'selection.fusion': assistants.FUSIONS,
    'selection.distance': ('kl', 'footrule', 'rbo'),
    'selection.per': ('batch', 'query'),
    'self_paced.weighting': ('hard', 'linear'),
    'loss.distance': ('kl', 'margin_mse'),
    'candidates.false_negatives': ('mask', 'keep'),
    'collection.on_error': ('stop', 'skip'),
    'collection.unlabelled': ('distil', 'skip'),
    'index.store': vectors.STORES,
}
ENCODER_OPTIONS = {
    'pooling': (None, *POOLINGS),
    'head': (None, 'linear', 'cosine'),
    'dtype': ('float32', 'bfloat16'),
    'remat': REMAT,
}


def errors(config: ml_collections.FrozenConfigDict) -> Iterator[str]:
    """What is wrong with single fields of a run's config."""
    yield from out_of_range(config, _RUN)
    yield from no_options(config, _OPTIONS)
    yield from catch(registry.parse_name, config.collection.source)
    yield from measure_errors(config)
    if config.compare not in config.measures:
        yield f"compare='{config.compare}' is not among measures={config.measures}; add it."
    for name in schedules.WEIGHTS:
        yield from catch(lambda n: schedules.check(f'loss.{n}', config.loss[n], low=0), name)
    for name in schedules.TEMPERATURES:
        yield from catch(lambda n: schedules.check(f'loss.{n}', config.loss[n], low=1e-3), name)
    share = config.self_paced.share
    yield from catch(lambda: schedules.check('self_paced.share', share, low=1e-3, high=1))
    for name in ('splice', 'mask'):
        yield from _share_errors(f'dark.{name}', config.dark[name])
    yield from index_errors(config)
    entries = {f'systems.{name}': config.systems.get(name) for name in used(config)}
    for field, entry in {**entries, 'student': config.student}.items():
        if entry is not None:
            yield from spec_errors(field, entry)


def measure_errors(config: ml_collections.FrozenConfigDict) -> Iterator[str]:
    """What is wrong with `measures`."""
    if not config.measures:
        yield 'measures is empty; name at least one, for example nDCG@10.'
    for measure in config.measures:
        yield from catch(measures.check, [measure])


def index_errors(config: ml_collections.FrozenConfigDict) -> Iterator[str]:
    """What is wrong with `index` beyond ranges."""
    yield from catch(index.check, config.index)
    if math.isnan(config.index.threshold):
        yield f'index.threshold={config.index.threshold} is no number.'


def out_of_range(owner: Any, ranges: dict[str, str], prefix: str = '') -> Iterator[str]:
    """Fields whose numbers are out of range; None passes, where a field may be left open.

    Args:
        owner: Of the fields.
        ranges: {field: a key of `_RANGES`}.
        prefix: Put before the field's name.
    """
    for field, kind in ranges.items():
        value = _get(owner, field)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or (is_number and math.isfinite(value) and _RANGES[kind](value)):
            continue
        yield f'{prefix}{field}={value} must be {kind}.'


def no_options(owner: Any, options: dict[str, Any], prefix: str = '') -> Iterator[str]:
    """Fields that are none of their options."""
    for field, choices in options.items():
        value = _get(owner, field)
        if value not in choices:
            known = ', '.join(str(c) for c in choices if c is not None)
            yield f"{prefix}{field} is '{value}'; use one of {known}."


def spec_errors(field: str, entry: ml_collections.FrozenConfigDict) -> Iterator[str]:
    """What is wrong with single fields of `systems.<name>` or `student`."""
    prefix = f'{field}.'
    match entry.kind:
        case 'bm25':
            yield from out_of_range(entry, _BM25, prefix)
            if entry.language not in Stemmer.algorithms():
                known = ', '.join(Stemmer.algorithms())
                yield f"{field}.language is '{entry.language}'; use one of {known}."
        case 'scores':
            yield from out_of_range(entry, _SCORES, prefix)
            yield from no_options(entry, {'on_error': ('stop', 'skip')}, prefix)
        case 'dual_encoder' | 'cross_encoder':
            yield from out_of_range(entry, ENCODER, prefix)
            yield from no_options(entry, ENCODER_OPTIONS, prefix)
        case _:
            yield f"{field}.kind is '{entry.kind}'; use one of {', '.join(KINDS)}."


def _get(owner: Any, field: str) -> Any:
    for key in field.split('.'):
        owner = owner[key]
    return owner


def _share_errors(field: str, shares: Any) -> Iterator[str]:
    try:
        low, high = shares
        good = 0 <= low <= high <= 1
    except (TypeError, ValueError):
        good = False
    if not good:
        yield f'{field}={shares} must be two shares (low, high) within 0 and 1.'
