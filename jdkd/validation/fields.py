"""Checks each config field by itself: ranges, options, schedules, names of measures."""

import math
import urllib.parse
from collections.abc import Iterator
from typing import Any

import Stemmer

from jdkd.config import (
    BM25Spec,
    CollectionConfig,
    Config,
    EncoderSpec,
    EvalConfig,
    LLMSpec,
    ScoresSpec,
    SystemSpec,
    schema,
)
from jdkd.config.method import PSEUDO_QUERIES
from jdkd.corpus.sources import registry
from jdkd.distillation import schedules
from jdkd.retrieval import approximate, measures, run_formats
from jdkd.runtime.messages import brief
from jdkd.systems.loading import check_format
from jdkd.systems.roles import used
from jdkd.validation.errors import catch


def errors(config: Config) -> Iterator[str]:
    """Errors in single fields of a run's config."""
    yield from schema.errors(config)
    yield from catch(registry.parse_name, config.collection.source)
    yield from _pseudo_query_errors(config.collection)
    yield from measure_errors(config)
    if config.compare not in config.measures:
        yield f"compare='{config.compare}' is not among measures={config.measures}; add it."
    lowest = dict.fromkeys(schedules.WEIGHTS, 0.0) | dict.fromkeys(schedules.TEMPERATURES, 1e-3)
    for name, low in lowest.items():
        yield from catch(schedules.check, f'loss.{name}', getattr(config.loss, name), low=low)
    for name in ('share', 'cap'):
        found = getattr(config.self_paced, name)
        yield from catch(schedules.check, f'self_paced.{name}', found, low=1e-3, high=1)
    yield from _share_errors('dark.splice', config.dark.splice)
    yield from _share_errors('dark.mask', config.dark.mask)
    yield from index_errors(config)
    for name in used(config):
        if name in config.systems:
            yield from spec_errors(f'systems.{name}', config.systems[name])


def measure_errors(config: Config | EvalConfig) -> Iterator[str]:
    """Errors in `measures`."""
    if not config.measures:
        yield 'measures is empty; name at least one, for example nDCG@10.'
    for measure in config.measures:
        yield from catch(measures.check_names, [measure])
        yield from catch(measures.check_depth, measure, config.depth)


def index_errors(config: Config | EvalConfig) -> Iterator[str]:
    """Errors in `index` beyond ranges."""
    yield from catch(approximate.check_config, config.index)
    if math.isnan(config.index.threshold):
        yield f'index.threshold={config.index.threshold} is no number.'


def spec_errors(field: str, spec: SystemSpec) -> Iterator[str]:
    """Errors in single fields of `systems.<name>`."""
    yield from schema.errors(spec, f'{field}.')
    if isinstance(spec, EncoderSpec):
        yield from catch(check_format, spec, prefix=field)
    if isinstance(spec, BM25Spec) and spec.language not in Stemmer.algorithms():
        known = ', '.join(Stemmer.algorithms())
        yield f"{field}.language is '{spec.language}'; use one of {known}."
    if isinstance(spec, LLMSpec):
        yield from _llm_errors(field, spec)
    if isinstance(spec, ScoresSpec) and spec.format not in (None, run_formats.JSON):
        yield from catch(run_formats.named, spec.format, prefix=f'{field}.format')


def _llm_errors(field: str, spec: LLMSpec) -> Iterator[str]:
    """Errors in the fields of a language model."""
    try:
        url = urllib.parse.urlsplit(spec.base_url)
        valid = url.scheme in ('http', 'https') and bool(url.hostname) and url.port != 0
    except ValueError:
        url, valid = urllib.parse.urlsplit(''), False
    if not valid or url.query or url.fragment:
        yield (
            f"{field}.base_url='{brief(spec.base_url)}' is no address of an API; give one such as "
            'http://localhost:8000/v1.'
        )
    elif url.username is not None or url.password is not None:
        yield (
            f'{field}.base_url holds a password, which config.json and logs would show; put the '
            f'key into an environment variable and name that in {field}.api_key_variable.'
        )
    if not spec.model:
        yield f"{field}.model is not set; give the model's name as the server knows it."
    templates = {'prompt': (spec.prompt, ('query', 'passage'))}
    if spec.listwise.window:
        templates = {'listwise.prompt': (spec.listwise.prompt, ('query', 'passages'))}
    for name, (template, needed) in templates.items():
        for key in needed:
            if f'{{{key}}}' not in template:
                yield f'{field}.{name} has no {{{key}}}; say where the prompt holds it.'
    words = [word.strip().casefold() for word in (spec.yes, spec.no)]
    if words[0] == words[1] or not all(words):
        yield f"{field}.yes='{brief(spec.yes)}' and no='{brief(spec.no)}' must be different words."
    if spec.listwise.window == 1:
        yield f'{field}.listwise.window=1 ranks nothing; raise it, or set 0 to judge each passage.'
    for key in ('model', 'messages', 'prompt', 'stream', 'n'):
        if key in spec.extra:
            yield f'{field}.extra may not hold {key}, which jdkd decides; take it out.'


def _pseudo_query_errors(collection: CollectionConfig) -> Iterator[str]:
    """Errors in `collection.pseudo_queries`."""
    spec, field = collection.pseudo_queries, 'collection.pseudo_queries'
    for kind in spec.kinds:
        if kind not in PSEUDO_QUERIES:
            yield f"{field}.kinds names '{brief(kind)}'; use some of {', '.join(PSEUDO_QUERIES)}."
    if spec.count and not spec.kinds:
        yield f'{field}.kinds is empty; name some of {", ".join(PSEUDO_QUERIES)}.'
    if (spec.count or spec.file) and collection.unlabelled == 'skip' and not spec.positive:
        yield (
            f'{field} are unlabelled, and collection.unlabelled=skip leaves them out; set it to '
            f'distil, or {field}.positive=true.'
        )


def _share_errors(field: str, shares: Any) -> Iterator[str]:
    try:
        low, high = shares
        valid = 0 <= low <= high <= 1
    except (TypeError, ValueError):
        valid = False
    if not valid:
        yield f'{field}={shares} must be two shares (low, high) within 0 and 1.'
