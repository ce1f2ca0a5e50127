"""Measures memory and time of importing a collection and of opening it.

    python -m benchmarks.collection [PASSAGES]

Generates a collection in BEIR layout with passages as long as MS MARCO's, imports it in one process
and opens it in another. Peak memory is the resident set of each; "own" leaves out pages of files,
which the operating system reclaims when it needs memory.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

_WORDS = 50  # A passage.
_BATCH = 10_000  # Passages that are written at a time.

IMPORT = """
from jdkd.corpus import building
from jdkd.corpus.sources import registry
building.build_collection(registry.open_source(f'beir:{root / "corpus"}'), out)
"""
OPEN = """
from jdkd.corpus import storage
c = storage.open_collection(out)
"""
FIND = """
from jdkd.corpus import storage
c = storage.open_collection(out)
ids = [f'p{i}' for i in range(0, len(c), 10)]
assert (c.id_index.find(ids) == range(0, len(c), 10)).all()
"""
READ = """
from jdkd.corpus import storage
c = storage.open_collection(out)
assert sum(map(len, c.passages)) > len(c)
"""
MEASURED = """
import pathlib, resource, sys, time
import numpy, pyarrow, tqdm, absl.logging
import jdkd.corpus.importing, jdkd.corpus.storage
def status(key):
    lines = open('/proc/self/status').read().splitlines()
    return int(next(l for l in lines if l.startswith(key)).split()[1]) / 1024
root, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]) / 'store'
before, start = status('RssAnon'), time.perf_counter()
{code}
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f'{{seconds:.1f}} {{peak:.0f}} {{status("RssAnon"):.0f}} {{before:.0f}}')
"""


def write(root: pathlib.Path, passages: int) -> None:
    """A collection of random words, with as many queries as MS MARCO's share."""
    rng = np.random.default_rng(0)
    words = np.array([f'word{i}' for i in range(30_000)], object)
    (root / 'qrels').mkdir(parents=True)
    with (root / 'corpus.jsonl').open('w') as f:
        for start in range(0, passages, _BATCH):
            drawn = (rng.pareto(1.0, (_BATCH, _WORDS)) * 100).astype(int) % len(words)
            for i, row in enumerate(words[drawn][: passages - start].tolist(), start):
                f.write(f'{{"_id": "p{i}", "title": "", "text": "{" ".join(row)}"}}\n')
    queries = range(passages // 16)
    with (root / 'queries.jsonl').open('w') as f:
        f.writelines(json.dumps({'_id': f'q{i}', 'text': f'what is {i}'}) + '\n' for i in queries)
    with (root / 'qrels/train.tsv').open('w') as f:
        f.write('query-id\tcorpus-id\tscore\n')
        f.writelines(f'q{i}\tp{16 * i}\t1\n' for i in queries)


def main(passages: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        write(root / 'corpus', passages)
        (root / 'store').mkdir()
        print(f'{passages} passages, {sum(f.stat().st_size for f in root.rglob("*")) / 1e6:.0f} MB')
        print(
            f'{"":22}{"seconds":>10}{"peak MiB":>10}{"own MiB at the end":>20}{"at the start":>14}'
        )
        steps = {'import': IMPORT, 'open': OPEN, 'find every tenth id': FIND, 'read all': READ}
        for name, code in steps.items():
            command = [sys.executable, '-c', MEASURED.format(code=code), directory]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, peak, own, before = done.stdout.split()
            print(f'{name:22}{seconds:>10}{peak:>10}{own:>20}{before:>14}')


if __name__ == '__main__':
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
