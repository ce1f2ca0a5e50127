"""Measures a train step on a CPU with small pages and with huge ones (`jdkd.runtime.huge_pages`).

python -m benchmarks.huge_pages --weights sentence-transformers/all-MiniLM-L6-v2

Both sides run in turns, each in a process of its own, on the same batches. Ratios are of medians of
wall seconds and of CPU seconds; the latter hardly depend on what else the machine does.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

import jax
from absl import app, flags

from benchmarks import measure, train_step
from jdkd.models import weights
from jdkd.runtime import huge_pages
from jdkd.runtime import mesh as meshes

_WORKER = flags.DEFINE_bool('worker', False, 'Takes a step for each line of standard input.')
_BATCHES = 4


def work() -> None:
    batches = train_step.train_batches(_BATCHES)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    path = weights.find_weights(train_step.WEIGHTS.value)
    step, _ = train_step.prepared(path, batches, mesh)
    for i, _ in enumerate(sys.stdin):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        step(i % _BATCHES)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(seconds, cpu, after.ru_maxrss / 2**20, flush=True)


def main(_):
    if _WORKER.value:
        work()
        return
    sides = {}
    for name, setting in (('small', 0), ('huge', 1)):
        env = os.environ | {huge_pages.VARIABLE: f'{huge_pages.SETTING}={setting}'}
        command = [sys.executable, '-m', 'benchmarks.huge_pages', *sys.argv[1:], '--worker']
        pipe = subprocess.PIPE
        sides[name] = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
    figures = {name: [] for name in sides}
    for turn in range(train_step.TURNS.value + 1):
        for name, side in sides.items():
            print(file=side.stdin, flush=True)
            found = [float(x) for x in side.stdout.readline().split()]
            if turn:  # The first step compiles.
                figures[name].append(found)
    for side in sides.values():
        side.stdin.close()
        side.wait()
    columns = ('seconds', 'cpu_seconds', 'peak_gib')
    result = {}
    for name, rows in figures.items():
        medians = map(statistics.median, zip(*rows, strict=True))
        result[name] = dict(zip(columns, medians, strict=True))
    small, huge = result['small'], result['huge']
    result['ratio'] = {c: huge[c] / small[c] for c in columns}
    for name, values in result.items():
        print(name, {c: round(v, 3) for c, v in values.items()})
    measure.write('huge_pages', result)


if __name__ == '__main__':
    app.run(main)
