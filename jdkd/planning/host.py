"""Plans the work of hosts: all of a run that no accelerator computes.

Each kind of work takes so many core-seconds a unit, such as an imported word. RATES are those of
one machine; `python -m benchmarks.rehearsal` measures yours, in a run on generated text, and writes
a file that `plan.throughputs` names.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jdkd.config import Config
from jdkd.models.dual_encoder import embedding_width
from jdkd.planning import disk
from jdkd.planning.corpus_size import CorpusSize
from jdkd.retrieval import approximate, bm25, vectors
from jdkd.runtime.mesh import Device
from jdkd.systems import roles

_HASHERS = 8  # Threads that compute checksums; see `runtime.files`.


@dataclasses.dataclass(frozen=True)
class Work:
    """A kind of work.

    Attributes:
        unit: What is counted.
        shared: By whom: `one` core of process 0, its `hashers`, a core of each of the `processes`,
            BM25's `searchers`, ScaNN's `builders`, or all `cores`.
        stages: Patterns (`fnmatch`) of the stages that are made of it, to measure it by.
        rate: Core-seconds a unit; see `MEASURED_ON`.
    """

    unit: str
    shared: str
    stages: Sequence[str]
    rate: float


# By benchmarks.rehearsal: what 20,000 passages and 6,000 train queries take beyond 3,000 and 600;
# except what a small run cannot show: ScaNN's (benchmarks.recall, 250,000 embeddings of real
# text), BM25's search (at 8.8 million passages), and bytes that are written and hashed (files of
# 100 MB, rankings of 16,384 queries).
MEASURED_ON = 'a core of an AMD EPYC'
# In the order of a run; the first pattern that fits a stage counts.
WORK = {
    'import': Work('words', 'one', ['collection', 'pseudo_queries'], 2.3e-7),
    'tokenise': Work('words', 'cores', ['tokens/*'], 2.8e-6),
    'index with BM25': Work('words', 'one', ['systems/bm25/index'], 3.1e-6),
    'search with BM25': Work('queries x passages', 'searchers', ['systems/bm25/ranking-*'], 5.3e-9),
    'write embeddings': Work('bytes', 'processes', ['systems/*/embeddings-*'], 1.2e-9),
    'index with ScaNN': Work('dimensions', 'builders', ['systems/*/index'], 1.4e-6),
    'search with ScaNN': Work('queries x dimensions', 'cores', ['systems/*/ranking-*'], 7e-12),
    'write rankings': Work('bytes', 'one', [], 4.2e-9),
    'mine': Work('passages', 'processes', ['rounds/*/runs'], 1.1e-7),
    'draw lists': Work('candidates', 'processes', ['rounds/*/candidates'], 1.2e-5),
    'read lists': Work(
        'candidates',
        'processes',
        ['rounds/*/scores', 'rounds/00/fitted', 'systems/*/reranking-*'],
        2.4e-6,
    ),
    'write records': Work('candidates', 'one', ['rounds/*/dataset'], 4.7e-6),
    'measure': Work('passages', 'one', ['rounds/*/eval', 'rounds/00/teacher_eval', 'test'], 5.8e-6),
    'find hard queries': Work('queries', 'one', ['rounds/*/hard_queries'], 6.6e-6),
    'checksums': Work('bytes', 'hashers', [], 6.4e-10),
    'save checkpoints': Work('bytes', 'one', [], 7.3e-9),
}
# Cores (two hyperthreads each) of a usual host: docs.cloud.google.com/tpu/docs (ct4p-hightpu-4t,
# ct5lp-hightpu-4t, ct5p-hightpu-4t, ct6e-standard-4t) and docs.cloud.google.com/compute/docs/gpus
# (a3-highgpu-8g, a3-ultragpu-8g, a2-ultragpu-8g, g2-standard-96).
CORES = {
    'v4': 120, 'v5e': 56, 'v5p': 104, 'v6e': 90, 'h100': 104, 'h200': 112, 'a100': 48, 'l4': 48
}  # fmt: skip


def count(
    config: Config, size: CorpusSize, models: Mapping[str, tuple[Any, Any]], platform: str
) -> dict[str, float]:
    """Units of each kind of work of a run.

    `models` come from `disk.sketch_models`; `platform` is the devices', such as cpu.
    """
    encoders, words = roles.encoders(config), float(size.passage_words().mean())
    sets = {f: 1 for f, spec in encoders.items() if spec.kind == 'dual_encoder'}
    sets['student'] = disk.count_students(config)
    dims = size.passages * sum(n * embedding_width(models[f][0]) for f, n in sets.items())
    names = set(roles.retrievers(config))
    lexical = sum(config.systems[name].kind == 'bm25' for name in set(roles.rankers(config)))
    measured, lists = size.held_out + size.test, disk.count_lists(config, size)
    dark = config.dark.reinforced + config.dark.noisy
    candidates = config.rounds * lists * (1 + config.candidates.hard_negatives + dark)
    scorers = {*config.teacher.members, *config.assistants}
    depth = min(config.depth, size.passages)
    measures = config.index.kind == 'scann'
    mines = bool(config.rounds) and approximate.for_mining(config.index, platform).kind == 'scann'
    # As in `workload`: each dense system ranks the train queries once, the student every round.
    widths = {f: embedding_width(models[f][0]) for f in roles.dense_rankers(config)}
    ranked_dims = sum(widths.values()) + (config.rounds - 1) * widths['student']
    queries_by_dims = measures * measured * dims
    queries_by_dims += mines * size.train * size.passages * ranked_dims
    # Student, its start and the first stage beside the pool; the teacher in the final test.
    ranked = (config.rounds * size.held_out + size.test) * (len(config.assistants) + 3) * depth
    # Dark examples by each encoder that scores them and by the student, which also reads the
    # passages that they are made of.
    sources = 1 + min(config.dark.reinforced, config.candidates.hard_negatives)
    readers = 1 + sum(f'systems.{name}' in encoders for name in scorers)
    texts_of_list = dark * readers + bool(dark) * sources
    tokenised = len(disk.token_stores(config)) * size.passages
    tokenised += config.rounds * lists * texts_of_list
    params = disk.count_parameters(models['student'][1])
    saves = config.rounds * -(-config.steps_per_round // config.checkpoint_every)
    stored = disk.estimate(config, size, size.passage_words(), models)
    return {
        'import': size.passages * words,
        'tokenise': tokenised * words,
        'index with BM25': lexical * size.passages * words,
        'search with BM25': lexical * size.queries * size.passages,
        'write embeddings': dims * vectors.bytes_per_vector(1, config.index.store),
        'index with ScaNN': (measures or mines) * dims,
        'search with ScaNN': queries_by_dims,
        'write rankings': stored['rankings'],
        'mine': config.rounds
        * (size.train + size.held_out)
        * (len(names) + 1)
        * config.candidates.depth,
        'draw lists': candidates,
        'read lists': candidates * len(scorers) + measured * depth * len(config.teacher.members),
        'write records': candidates,
        'measure': ranked,
        'find hard queries': max(config.rounds - 1, 0) * size.train,
        'checksums': sum(stored.values()),
        'save checkpoints': 12 * params * saves,
    }


def plan(
    config: Config,
    size: CorpusSize,
    models: Mapping[str, tuple[Any, Any]],
    topology: str,
    devices: Sequence[Device],
) -> dict[str, Any]:
    """Hours of each kind of work, which follow one another.

    Returns:
        `hosts`, `cores` of each, `measured_on`, what the rates are of, and `work`, a list of
        `name`, `unit`, `units`, `core_seconds`, by how many cores it is `shared`, and `hours`.

    Raises:
        FileNotFoundError, ValueError: if `plan.throughputs` is missing or no such file.
    """
    rates, measured_on = read_rates(config.plan.throughputs)
    hosts = len({device.process_index for device in devices})
    cores = config.plan.cores or CORES.get(topology.partition(':')[0]) or os.cpu_count() or 1
    rows = []
    for name, units in count(config, size, models, devices[0].platform).items():
        work, seconds = WORK[name], units * rates[name]
        shared = shares(hosts, cores, size.passages)[work.shared]
        rows.append(
            {
                'name': name,
                'unit': work.unit,
                'units': units,
                'core_seconds': seconds,
                'shared': shared,
                'hours': seconds / shared / 3600,
            }
        )
    return {'hosts': hosts, 'cores': cores, 'measured_on': measured_on, 'work': rows}


def shares(hosts: int, cores: int, passages: int) -> dict[str, int]:
    """By how many cores the kinds of `Work.shared` are shared."""
    return {
        'one': 1,
        'hashers': min(_HASHERS, cores),
        'processes': hosts,
        'builders': hosts * min(approximate.BUILDERS, cores),
        'searchers': hosts * bm25.search_threads(passages, cores),
        'cores': hosts * cores,
    }


def read_rates(path: str | None) -> tuple[dict[str, float], str]:
    """Core-seconds a unit of each kind of work, and what they were measured on.

    Those of `WORK` without a path, and where the file has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none that `benchmarks.rehearsal` writes.
    """
    rates = {name: work.rate for name, work in WORK.items()}
    if path is None:
        return rates, MEASURED_ON
    remedy = 'write it with `python -m benchmarks.rehearsal --throughputs=FILE`'
    try:
        content = json.loads(pathlib.Path(path).expanduser().read_text(encoding='utf-8'))
        own = {name: float(rate) for name, rate in content['core_seconds'].items()}
        measured_on = str(content['machine'])
    except FileNotFoundError:
        raise FileNotFoundError(f'plan.throughputs={path!r}: no such file; {remedy}.') from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'plan.throughputs={path!r} holds no throughputs; {remedy}.') from None
    if unknown := own.keys() - rates.keys():
        raise ValueError(f'plan.throughputs={path!r} has unknown work {sorted(unknown)}; {remedy}.')
    return rates | own, measured_on
