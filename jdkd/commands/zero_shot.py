"""`jdkd eval --config eval`: measures a checkpoint and BM25 over several collections, as BEIR does.

Thakur et al., BEIR (NeurIPS 2021). Each collection is a run of its own in the workdir, with two
systems, so its token stores, embeddings and rankings are stages as in training.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import ml_collections
import numpy as np
from absl import logging

from jdkd import config as configs
from jdkd.algorithm.teacher import Teacher, rerank
from jdkd.commands.setup import hold_workdir, open_run
from jdkd.config import CollectionConfig, Config, EncoderSpec, EvalConfig, schema
from jdkd.corpus import importing
from jdkd.corpus.sources import registry
from jdkd.models import pretrained, weights
from jdkd.models.families import FAMILIES
from jdkd.report import tables
from jdkd.retrieval import measures as evaluation
from jdkd.retrieval import significance
from jdkd.retrieval.measures import Measurements
from jdkd.run import Run
from jdkd.runtime import distributed, stages
from jdkd.runtime.messages import shown
from jdkd.systems import measuring
from jdkd.systems.build import build
from jdkd.systems.ranking import measure_inputs, own_passages
from jdkd.validation import checkpoints, fields, resources
from jdkd.validation.errors import catch, raise_all

MODEL, FIRST, OTHER = 'model', 'bm25', 'other'
_LONGEST = 512  # Tokens; what BEIR's models read, also where a checkpoint takes more.


def validate(config: EvalConfig, workdir: pathlib.Path) -> None:
    """Checks a resolved config before any work; reads no weights, and the workdir need not exist.

    Raises:
        ValueError: naming all errors, each with its remedy.
    """
    raise_all(schema.type_errors(config))
    raise_all(_errors(config, workdir))


def _errors(config: EvalConfig, workdir: pathlib.Path) -> Iterator[str]:
    for field, example in (('model', 'DIR'), ('collections', 'beir:PATH,python_docs')):
        if not getattr(config, field):
            yield f'{field} is not set; say for example --config.{field}={example}.'
    yield from schema.errors(config)
    yield from fields.measure_errors(config)
    yield from fields.index_errors(config)
    yield from fields.spec_errors(f'systems.{FIRST}', config.systems[FIRST])
    yield from resources.mesh_errors(config)
    known = names(config.collections)
    for name in config.options:
        if known and name not in known:
            yield (
                f'options names {shown(name)}, which is none of the collections ('
                f'{", ".join(known)}); correct the name.'
            )
    for source, name in zip(config.collections, known, strict=True):
        imported = workdir / name / 'collection'
        yield from catch(importing.check_source, _collection(config, source, name), imported)
    if config.model:
        spec = EncoderSpec(**{**vars(config.encoder), 'weights': config.model})
        yield from checkpoints.errors({'model': spec}, store=config.index.store, fetch=False)


def names(collections: Sequence[str]) -> list[str]:
    """Names collections in reports and directories by the ends of their sources, made unique."""
    unique: list[str] = []
    for source in collections:
        kind, _, name = source.partition(':')
        if f'{kind}:PATH' in registry.SOURCES:
            name = pathlib.Path(name).expanduser().resolve().name
        name = re.sub(r'[^\w.-]|^\.+', '_', name or source)
        numbered = (f'{name}-{i}' for i in itertools.count(2))
        unique.append(next(n for n in itertools.chain([name], numbered) if n not in unique))
    return unique


def run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, against: str | None, *, update: bool
) -> None:
    """Checks a config, as configs/eval.py makes it, and evaluates it; see `evaluate`.

    `update` says whether measurements of another config may be replaced.
    """
    resolved = configs.resolve(config)
    assert isinstance(resolved, EvalConfig)
    validate(resolved, workdir)
    with hold_workdir(workdir, resolved, update=update):
        evaluate(resolved, workdir, against)


def evaluate(config: EvalConfig, workdir: pathlib.Path, against: str | None = None) -> dict:
    """Measures `config.model` and BM25 on each collection; writes report.json.

    Stages that are already in the workdir are read, so a killed evaluation resumes. Returns the
    report.

    Args:
        workdir: Held by the caller; each collection has a directory in it.
        against: Workdir of another model's evaluation, or a TREC run file if there is one
            collection, to compare with.

    Raises:
        FileNotFoundError: if a collection or the other measurements are missing.
        ValueError: if a collection has none of the splits, the checkpoint cannot be used, or one
            run file is given for several collections.
    """
    if against and len(config.collections) > 1 and pathlib.Path(against).is_file():
        raise ValueError(
            f'--against={against} is one run file, and there are {len(config.collections)} '
            'collections; give the workdir of another evaluation of them, or one collection.'
        )
    workdir, spec = workdir.absolute(), model_spec(config)
    measured, collections = {}, names(config.collections)
    theirs = [_their_run_file(against, name) if against else None for name in collections]
    pairs = zip(config.collections, collections, strict=True)
    runs = [_open(config, spec, source, workdir / name) for source, name in pairs]
    raise_all(
        f'{name}: {error}'
        for name, run in zip(collections, runs, strict=True)
        for error in resources.measure_errors(run, run.test.split)
    )
    others = [
        measuring.measure_file(run, path, run.test) if path else None
        for run, path in zip(runs, theirs, strict=True)
    ]
    for name, run, other in zip(collections, runs, others, strict=True):
        measured[name] = _measure(run, other)
        logging.info('%s\n%s', name, tables.table(tables.percents(measured[name]['test'])))
    systems = (FIRST, OTHER, MODEL) if against else (FIRST, MODEL)
    tests = {s: {name: m['test'][s] for name, m in measured.items()} for s in systems}
    average = {
        system: {m: float(np.mean([v[m] for v in test.values()])) for m in config.measures}
        for system, test in tests.items()
    }
    report = {
        'test': tests.pop(MODEL),
        **tests,
        'average': average,
        'significance': {name: m['significance'] for name, m in measured.items()},
        'collections': {name: m['collection'] for name, m in measured.items()},
        'checkpoint': stages.to_json(spec),
        'against': against,
        'config_sha256': configs.digest(config),
        'wall_seconds': stages.read_seconds(workdir),
    }
    if not distributed.is_primary():
        return report
    stages.write_json(workdir / 'report.json', report)
    print('\n\n'.join(table(measured, average, measure) for measure in config.measures))
    return report


def model_spec(config: EvalConfig) -> EncoderSpec:
    """The spec of the model, with kind and lengths as its checkpoint says."""
    encoder = config.encoder
    directory = weights.find_weights(config.model, encoder.revision)
    source, *query = pretrained.read_architectures(directory)
    kind = encoder.kind or source.kind
    query_length = min((query or [source])[0].query_length, _LONGEST)
    passage_length = min(source.passage_length, _LONGEST)
    if kind == 'cross_encoder':
        longest = min(source.max_length, _LONGEST)
        query_length = encoder.query_length or longest // 4
        # Both count their own special tokens, of which a pair keeps fewer.
        passage_length = longest - query_length + 2 - FAMILIES[source.config.family].separators
    defaults = {'kind': kind, 'query_length': query_length, 'passage_length': passage_length}
    defaults = {key: value for key, value in defaults.items() if getattr(encoder, key) is None}
    return EncoderSpec(**{**vars(encoder), **defaults, 'weights': config.model})


def table(measured: Mapping[str, Mapping], average: Mapping[str, Mapping], measure: str) -> str:
    """Text table of one measure over all collections, times 100.

    `measured` is {collection: its `test`, `significance` and `collection`}, and `average` {system:
    {measure: value}}.
    """
    rows = {}
    for name, results in measured.items():
        facts = results['collection']
        cells = tables.percents({name: {s: v[measure] for s, v in results['test'].items()}})[name]
        less = {f'less {s}': v[measure] for s, v in results['significance'].items()}
        about = {key: str(facts[key]) for key in ('split', 'queries', 'passages')}
        rows[name] = about | cells | tables.differences({name: less})[name]
    if len(rows) > 1:
        rows |= tables.percents({'average': {s: v[measure] for s, v in average.items()}})
    return tables.table(rows, measure)


def _collection(config, source: str, name: str) -> CollectionConfig:
    """The section `collection` of a training run's config."""
    options = config.options.get(name, {})
    return CollectionConfig(source=source, options=options, on_error=config.on_error)


def _open(config: EvalConfig, spec: EncoderSpec, source: str, workdir: pathlib.Path) -> Run:
    """Opens the run of one collection; its test split is the first of `config.splits` it has."""
    shared = ('measures', 'depth', 'ignore_identical_ids', 'index', 'mesh', 'seed')
    run_config = Config(
        collection=_collection(config, source, workdir.name),
        systems={**config.systems, MODEL: spec},
        **{field: getattr(config, field) for field in shared},
    )
    run = open_run(run_config, workdir, importing.import_collection)
    splits = [s for s in run.collection.queries if run.collection.measurable(s)]
    split = next((s for s in config.splits if s in splits), None)
    if split is None:
        raise ValueError(
            f'{source} has judged queries in {", ".join(splits) or "no split"}, but splits='
            f'{",".join(config.splits)} says what is measured; name one that it has.'
        )
    collection = run_config.collection.replace(test_split=split)
    return dataclasses.replace(run, config=run_config.replace(collection=collection))


def _measure(run: Run, other: Measurements | None) -> dict:
    """Measures both systems on one collection, and tests the model's differences from others."""
    first, model = build(run, FIRST), build(run, MODEL)
    rankings = {FIRST: first.rank(run.test)[0]}
    if run.config.systems[MODEL].kind == 'cross_encoder':
        reranked = rerank(run, MODEL, Teacher.alone(model), first, run.test)
        assert reranked is not None  # A cross-encoder scores any pair.
        rankings[MODEL] = reranked
    else:
        rankings[MODEL] = model.rank(run.test)[0]

    def build_stage(out):
        measured = measuring.measure_all(run, rankings, run.test, out)
        return {name: results.means for name, results in measured.items()}

    means = run.stage('test', measure_inputs(run, (first, model), run.test), build_stage)['result']
    test = {name: {m: values[m] for m in run.config.measures} for name, values in means.items()}
    for name, file in ((FIRST, 'bm25.trec'), (MODEL, 'run.trec')):
        measuring.write_run_file(run.workdir / file, run, rankings[name], run.test, name)
    ours, theirs = (evaluation.load(run.workdir / 'test', n) for n in (MODEL, FIRST))
    differences = {FIRST: significance.paired_tests(ours, theirs)}
    if other:
        test[OTHER] = other.means
        differences[OTHER] = significance.paired_tests(ours, other.per_query)
    return {
        'test': test,
        'significance': differences,
        'collection': {
            'source': run.config.collection.source,
            'split': run.test.split,
            'passages': len(run.collection),
            'queries': len(run.test),
            'identical_ids': int((own_passages(run, run.test) >= 0).sum()),
            'sha256': run.collection.fingerprint,
        },
    }


def _their_run_file(against: str, name: str) -> pathlib.Path:
    """The run file of a collection in another evaluation, or `against` itself if it is one."""
    path = pathlib.Path(against)
    path = path if path.is_file() else path / name / 'run.trec'
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is not there; --against takes the workdir of another evaluation of the same '
            'collections, or a run file.'
        )
    return path
