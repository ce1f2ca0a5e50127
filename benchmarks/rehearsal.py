"""Rehearses a recipe at a small size, and tells what its host work takes at full size.

python -m benchmarks.rehearsal --passages=100000 --directory=/large/disk --throughputs=host.json

Runs the whole of Algorithm 1, two rounds, in several processes, on generated text of MS MARCO's
statistics with tiny random models: everything but the accelerators' work is as in the recipe, and
counted by stage: seconds and core-seconds, bytes read and written (without mapped files) and the
peak of anonymous memory. What belongs to devices (encoding, scoring, exact search, training) is
counted apart. Core-seconds grow with the units of `jdkd.planning.host`, so that those of the whole
recipe follow; `--throughputs` writes a file for `plan.throughputs`. With `--smaller`, the
result of a smaller rehearsal, rates are of what came on top of it, without fixed costs, and the
exponents say how each kind of work grew.
"""

import collections
import contextlib
import dataclasses
import fnmatch
import functools
import json
import math
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import generated, measure
from jdkd.algorithm import align, student
from jdkd.commands import setup
from jdkd.commands.train import train
from jdkd.config import Config
from jdkd.planning import corpus_size, disk, host
from jdkd.planning.corpus_size import CorpusSize
from jdkd.retrieval import encode
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.runtime import checkpoint, distributed, stages
from jdkd.runtime import mesh as meshes
from jdkd.systems import fine_tuning
from jdkd.tokens import tokenizer
from jdkd.tokens.tokenizer import Tokenizer

_PASSAGES = flags.DEFINE_integer('passages', 20_000, 'How many.')
_QUERIES = flags.DEFINE_integer('queries', None, "Train queries; as MS MARCO's for the passages.")
_LISTS = flags.DEFINE_float('lists', 0.5, 'Lists of a round for each train query.')
_PROCESSES = flags.DEFINE_integer('processes', 2, 'Of the run.')
_RECIPE = flags.DEFINE_string('recipe', 'mta4dpr:msmarco', 'Whose figures are foretold.')
_CHIP = flags.DEFINE_string('chip', 'v5e', 'Chip whose usual host it runs on.')
_DIRECTORY = flags.DEFINE_string('directory', None, 'Where to write; temporary by default.')
_THROUGHPUTS = flags.DEFINE_string('throughputs', None, 'File to write them to.')
_SMALLER = flags.DEFINE_string('smaller', None, 'Result of a smaller rehearsal.')
_RESULT = flags.DEFINE_string('result', 'rehearsal', 'Name of the result; empty to write none.')
# Of one of the run's processes, which the first one starts:
_FIRST = flags.DEFINE_string('first', None, 'host:port.')
_NUMBER = flags.DEFINE_integer('number', None, 'Number of the process.')

_DEVICES, _OTHER = 'devices', 'other'  # Kinds of work that are not of the host, or of no stage.
_PARAMETERS = 2_000_000  # Of the state whose checkpoints are timed.


@dataclasses.dataclass
class Usage:
    """What a kind of work used."""

    seconds: float = 0.0
    core_seconds: float = 0.0
    read: float = 0  # Bytes.
    written: float = 0
    peak: float = 0  # Bytes of anonymous memory while it ran.

    def add(self, other: 'Usage', *, side_by_side: bool) -> None:
        """Adds what came after, or what another process used meanwhile."""
        self.seconds = max(self.seconds, other.seconds) if side_by_side else (
            self.seconds + other.seconds
        )  # fmt: skip
        self.core_seconds += other.core_seconds
        self.read += other.read
        self.written += other.written
        self.peak = max(self.peak, other.peak)


class Meter:
    """Counts what the process uses under the kind of work that it is at."""

    def __init__(self) -> None:
        self.kinds: dict[str, Usage] = collections.defaultdict(Usage)
        self._kind, self._last = _OTHER, self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def within(self, kind: str) -> Iterator[None]:
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def wrap(self, function: Any, kind: Any) -> Any:
        """The function, at a kind of work, or at that which `kind` makes of its arguments."""

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with self.within(str(kind(*args) if callable(kind) else kind)):
                return function(*args, **kwargs)

        return wrapped

    def _switch(self, kind: str) -> str:
        now, before = self._now(), self._kind
        used = [b - a for a, b in zip(self._last, now, strict=True)]
        self.kinds[before].add(Usage(*used), side_by_side=False)
        self._kind, self._last = kind, now
        return before

    def _now(self) -> tuple[float, float, float, float]:
        io = dict(
            line.split(': ')
            for line in pathlib.Path('/proc/self/io').read_text().split('\n')
            if line
        )
        return time.monotonic(), time.process_time(), int(io['rchar']), int(io['wchar'])

    def _watch(self) -> None:
        while True:
            usage = self.kinds[self._kind]
            usage.peak = max(usage.peak, measure.anonymous())
            time.sleep(0.05)


def kind_of(workdir: pathlib.Path, directory: pathlib.Path, *_) -> str:
    """The kind of work that builds a stage."""
    stage = str(directory.relative_to(workdir))
    for kind, work in host.WORK.items():
        if any(fnmatch.fnmatch(stage, pattern) for pattern in work.stages):
            return kind
    return _DEVICES if fnmatch.fnmatch(stage, '*/train') or stage == 'align' else _OTHER


def run_process(home: pathlib.Path) -> None:
    """Runs one process of the rehearsal and writes what it used."""
    index = _NUMBER.value
    distributed.start(_FIRST.value, _PROCESSES.value, index)
    meter, workdir = Meter(), home / 'run'
    stages.build_stage = meter.wrap(stages.build_stage, 'checksums')
    stages._build = meter.wrap(stages._build, functools.partial(kind_of, workdir))
    encode.map_rows = meter.wrap(encode.map_rows, _DEVICES)
    ExactIndex.search = meter.wrap(ExactIndex.search, _DEVICES)
    Ranking.write = meter.wrap(Ranking.write, 'write rankings')
    Ranking.join_files = meter.wrap(Ranking.join_files, 'write rankings')
    # Within other stages too; these use all cores. Words are found from their ids on one.
    tokenizer._encode = meter.wrap(tokenizer._encode, 'tokenise')
    Tokenizer.words = meter.wrap(Tokenizer.words, 'tokenise')
    tokenizer.find_words = meter.wrap(tokenizer.find_words, 'draw lists')
    for module in (align, student, fine_tuning):
        vars(module)['train_loop'] = meter.wrap(module.train_loop, _DEVICES)
    started = time.monotonic()
    with meter.within(_OTHER):
        train(read_config(home), workdir)
    kinds = {kind: dataclasses.asdict(usage) for kind, usage in meter.kinds.items()}
    used = {'seconds': time.monotonic() - started, 'kinds': kinds}
    stages.write_json(home / f'used-{index}.json', used)


def read_config(home: pathlib.Path) -> Config:
    """The recipe on the generated collection, with tiny models."""
    c: Any = setup.read_config(_RECIPE.value)
    sizes = json.loads((home / 'sizes.json').read_text())
    c.collection.source = f'msmarco:{home / "collection"}'
    c.collection.options = {}
    for entry in (*c.systems.values(), c.student):
        if 'weights' in entry:
            kind = entry.kind if 'kind' in entry else 'dual_encoder'
            entry.update(weights=str(home / kind), revision=None, dtype='float32')
    c.student.layers = ()
    c.index.mining, c.rows.shared = 'exact', 0
    c.batch_size, c.rounds = 32, 2
    c.steps_per_round = max(round(_LISTS.value * sizes['train'] / c.batch_size), 2)
    c.candidates.eval_lists = min(c.candidates.eval_lists, sizes['dev'])
    c.optimizer.warmup_steps, c.checkpoint_every = 1, 1000
    return setup.resolve_training(c)


def time_checkpoints(directory: pathlib.Path) -> float:
    """Core-seconds a byte of a train state that is saved."""

    class Iterator:
        def get_state(self):
            return {}

    state = {'x': jax.random.normal(jax.random.key(0), (_PARAMETERS,), jnp.float32)}
    with checkpoint.Checkpoints(directory) as checkpoints:
        started = time.process_time()
        for step in range(3):
            checkpoints.save(step, state, Iterator())
            checkpoints.wait()
        return (time.process_time() - started) / (3 * 4 * _PARAMETERS)


def rehearse(home: pathlib.Path) -> tuple[dict[str, Usage], float]:
    """Runs all processes; returns what each kind of work used, and seconds in all."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        coordinator = f'127.0.0.1:{free.getsockname()[1]}'
    command = [sys.executable, '-m', 'benchmarks.rehearsal', *sys.argv[1:]]
    command += [f'--directory={home.parent}', f'--first={coordinator}']
    processes = [subprocess.Popen([*command, f'--number={i}']) for i in range(_PROCESSES.value)]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f'processes of the rehearsal ended with {codes}.')
    used, seconds = {}, 0.0
    for i in range(_PROCESSES.value):
        content = json.loads((home / f'used-{i}.json').read_text())
        seconds = max(seconds, content['seconds'])
        for kind, usage in content['kinds'].items():
            used.setdefault(kind, Usage()).add(Usage(**usage), side_by_side=True)
    return used, seconds


def size_of(sizes: dict[str, int]) -> CorpusSize:
    return CorpusSize(
        sizes['passages'],
        sizes['train'],
        sizes['dev'],
        sizes['test'],
        passage_tokens=75.0,
        query_tokens=9.0,
        labels=(sizes['train'], 0),
    )


def main(_):
    with contextlib.ExitStack() as stack:
        parent = _DIRECTORY.value or stack.enter_context(tempfile.TemporaryDirectory())
        home = pathlib.Path(parent).absolute() / 'rehearsal'
        if _NUMBER.value is not None:
            run_process(home)
            return
        if home.exists() and not (home / 'sizes.json').is_file():
            raise app.UsageError(f'{home} holds no rehearsal; give another --directory.')
        shutil.rmtree(home, ignore_errors=True)
        passages = _PASSAGES.value
        train_queries = _QUERIES.value or round(passages * 502_939 / 8_841_823)
        share = train_queries / 502_939
        queries = {
            'train': train_queries,
            'dev': max(round(share * 4281), 64),
            'test': max(round(share * 6980), 64),
        }
        sizes = {'passages': passages, **queries}
        home.mkdir(parents=True)
        stages.write_json(home / 'sizes.json', sizes)
        generated.write_collection(home / 'collection', passages, queries)
        generated.write_models(home)
        used, seconds = rehearse(home)
        result = summarise(home, sizes, used)
        result |= {'seconds': round(seconds, 1), 'processes': _PROCESSES.value}
        if _RESULT.value:
            measure.write(_RESULT.value, result)
    if _THROUGHPUTS.value:
        kinds = result['work'].items()
        rates = {kind: row['rate'] for kind, row in kinds if row.get('rate') is not None}
        machine = f'{measure.cpu()}, {os.cpu_count()} cores'
        stages.write_json(
            pathlib.Path(_THROUGHPUTS.value), {'machine': machine, 'core_seconds': rates}
        )
    print_table(result)


def summarise(home: pathlib.Path, sizes: dict[str, int], used: dict[str, Usage]) -> dict[str, Any]:
    """The figures of each kind of work, here and at full size."""
    config = read_config(home)
    models = disk.sketch_models(config)
    units = host.count(config, size_of(sizes), models, 'cpu')
    smaller = json.loads(pathlib.Path(_SMALLER.value).read_text()) if _SMALLER.value else None
    before = smaller['work'] if smaller else {}
    rates = {
        kind: rate(used[kind].core_seconds, count, before.get(kind, {}))
        for kind, count in units.items()
        if count and kind in used
    }
    rates['save checkpoints'] = time_checkpoints(home / 'checkpoints')
    full = setup.resolve_training(setup.read_config(_RECIPE.value))
    full_size = corpus_size.measure(full, None, meshes.make_mesh())
    full_units = host.count(full, full_size, disk.sketch_models(full), 'tpu')
    cores = host.CORES[_CHIP.value]
    rows = {}
    for kind in (*host.WORK, _DEVICES, _OTHER):
        usage = used.get(kind, Usage())
        rows[kind] = {
            'seconds': round(usage.seconds, 2),
            'core_seconds': round(usage.core_seconds, 2),
            'peak_mib': round(usage.peak / 2**20),
            'read_mib': round(usage.read / 2**20, 1),
            'written_mib': round(usage.written / 2**20, 1),
        }
        if kind in rates:
            shared = host.shares(1, cores, full_size.passages)[host.WORK[kind].shared]
            rows[kind] |= {
                'units': units[kind],
                'rate': rates[kind],
                'full_hours': full_units[kind] * rates[kind] / shared / 3600,
                'planned_hours': full_units[kind] * host.WORK[kind].rate / shared / 3600,
                'planned_core_seconds': round(units[kind] * host.WORK[kind].rate, 2),
            }
    if smaller:
        add_exponents(rows, before, sizes['passages'] / smaller['sizes']['passages'])
    files = [p for p in (home / 'run').rglob('*') if p.is_file()]
    planned = disk.estimate(config, size_of(sizes), size_of(sizes).passage_words(), models)
    return {
        'sizes': sizes,
        'work': rows,
        'full_host_hours': sum(row.get('full_hours', 0) for row in rows.values()),
        'disk_mib': round(sum(p.stat().st_size for p in files) / 2**20),
        'planned_disk_mib': round(sum(planned.values()) / 2**20),
    }


def rate(core_seconds: float, units: float, before: dict[str, Any]) -> float:
    """Core-seconds a unit: of what came on top of a smaller rehearsal, so without fixed costs."""
    more = units - before.get('units', units)
    if more > 0 and core_seconds > before['core_seconds']:
        return (core_seconds - before['core_seconds']) / more
    return core_seconds / units


def add_exponents(rows: dict[str, Any], before: dict[str, Any], growth: float) -> None:
    """Adds the exponent with which the core-seconds of each kind of work grew."""
    for kind, row in rows.items():
        old = before.get(kind, {}).get('core_seconds', 0)
        if old and row['core_seconds']:
            exponent = math.log(row['core_seconds'] / old) / math.log(growth)
            row['exponent'] = round(exponent, 2)


def print_table(result: dict[str, Any]) -> None:
    names = (
        'core_seconds',
        'planned_core_seconds',
        'exponent',
        'peak_mib',
        'read_mib',
        'written_mib',
        'full_hours',
        'planned_hours',
    )
    print('| work | ' + ' | '.join(name.replace('_', ' ') for name in names) + ' |')
    print('|' + ' --- |' * (1 + len(names)))
    for kind, row in result['work'].items():
        cells = [f'{row[name]:.3g}' if row.get(name) is not None else '' for name in names]
        print(f'| {kind} | ' + ' | '.join(cells) + ' |')
    print(f'host hours at full size: {result["full_host_hours"]:.2f}')


if __name__ == '__main__':
    app.run(main)
