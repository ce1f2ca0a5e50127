"""Measures ScaNN beside exact search on generated vectors: recall, speed, build time and memory.

python -m benchmarks.index --passages 8000,100000,1000000

Vectors are drawn from a mixture of Gaussians, with clusters of very different sizes and a
covariance of falling spectrum, as embeddings have, and normalised; queries are passages with noise.
They are written as the embeddings of a run are, and read memory-mapped. Memory is anonymous
(RssAnon), without the pages of memory-mapped files, sampled every 20 ms.
"""

import pathlib
import tempfile
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import measure
from jdkd.config import IndexConfig
from jdkd.config.fields import STORES
from jdkd.retrieval import approximate, vectors
from jdkd.retrieval.exact import ExactIndex
from jdkd.runtime import stages
from jdkd.runtime.parts import write_parts

_PASSAGES = flags.DEFINE_list('passages', ['8000', '100000', '1000000'], 'How many, by size.')
_DIM = flags.DEFINE_integer('dim', 384, 'Of vectors.')
_QUERIES = flags.DEFINE_integer('queries', 2000, 'Timed.')
_SAMPLE = flags.DEFINE_integer('sample', 256, 'Queries of exact search.')
_STORE = flags.DEFINE_enum('store', 'float32', STORES, 'Of vectors on disk.')
_SHARD = flags.DEFINE_integer('shard', None, 'Passages of one index; by default as configured.')
_REORDER = flags.DEFINE_integer('reorder', None, 'Candidates scored; by default as configured.')
_LEAVES = flags.DEFINE_float('leaves', None, 'Share of leaves searched; by default as configured.')
_DIRECTORY = flags.DEFINE_string('directory', None, 'Where to write; temporary by default.')
_NAME = flags.DEFINE_string('name', 'index', 'Of the file of results.')
_CLUSTERS = 2000
_LATENT = 64
_DEPTH = 100


class Mixture:
    """Vectors of a mixture of Gaussians, by number."""

    def __init__(self, dim: int):
        rng = np.random.default_rng(0)
        self.centres = rng.normal(size=(_CLUSTERS, dim)).astype(np.float32) / np.sqrt(dim)
        share = 1 / (np.arange(_CLUSTERS) + 10.0)
        self.up_to = np.cumsum(share / share.sum())
        basis = rng.normal(size=(_LATENT, dim)) / np.sqrt(dim)
        spectrum = (np.arange(_LATENT) + 1.0) ** -0.5
        self.basis = (basis * (spectrum / np.linalg.norm(spectrum))[:, None]).astype(np.float32)

    def passages(self, part: int, size: int) -> np.ndarray:
        rng = np.random.default_rng([1, part])
        cluster = np.searchsorted(self.up_to, rng.random(size)).clip(max=_CLUSTERS - 1)
        return self._normalised(rng, self.centres[cluster], 1.2)

    def queries(self, passages: np.ndarray) -> np.ndarray:
        return self._normalised(np.random.default_rng(2), passages, 0.7)

    def _normalised(self, rng, centres: np.ndarray, noise: float) -> np.ndarray:
        x = rng.standard_normal((len(centres), _LATENT), np.float32) @ self.basis
        x = centres + noise * x
        return x / np.linalg.norm(x, axis=1, keepdims=True)


def run(root: pathlib.Path, size: int, config) -> dict:
    mixture = Mixture(_DIM.value)
    result: dict[str, Any] = {'passages': size}
    count = -(-size // vectors.FILE_ROWS)

    def write(i, file):
        part = mixture.passages(i, min(vectors.FILE_ROWS, size - i * vectors.FILE_ROWS))
        vectors.save(file, part, _STORE.value)

    inputs = {'size': size, 'dim': _DIM.value, 'store': _STORE.value}
    stages.build_stage(
        root / f'vectors-{size}',
        inputs,
        lambda out: write_parts(out, vectors.FILE_NAME, count, write) and None,
        resumable=True,
    )
    passages = vectors.load(root / f'vectors-{size}')
    rng = np.random.default_rng(3)
    queries = mixture.queries(passages[rng.integers(0, size, _QUERIES.value)])
    with measure.peak(result, 'build'):
        stages.build_stage(
            root / f'index-{size}',
            {**inputs, **config.to_dict()},
            lambda out: approximate.build(out, passages, config),
            resumable=True,
        )
    files = [p.stat().st_size for p in (root / f'index-{size}').rglob('*') if p.is_file()]
    approximate.search(queries[:8], passages, _DEPTH, config, root / f'index-{size}')
    with measure.peak(result, 'search'):
        found = approximate.search(queries, passages, _DEPTH, config, root / f'index-{size}')
    sample = queries[: _SAMPLE.value]
    index = ExactIndex(passages)
    index.search(sample, _DEPTH)  # Compiles.
    with measure.peak(result, 'exact'):
        exact = index.search(sample, _DEPTH)
    result['build']['mib_on_disk'] = round(sum(files) / 2**20)
    for name, number in (('search', len(queries)), ('exact', len(sample))):
        result[name]['queries_per_second'] = round(number / result[name]['seconds'], 1)
    result['recall_at_100'] = round(found.of(slice(len(sample))).recall(exact), 4)
    print(result, flush=True)
    return result


def main(_):
    chosen = {'shard': _SHARD.value, 'reorder': _REORDER.value, 'leaves': _LEAVES.value}
    config = IndexConfig(**{key: value for key, value in chosen.items() if value is not None})
    found = {'dim': _DIM.value, 'store': _STORE.value, 'index': config.to_dict(), 'sizes': []}
    with tempfile.TemporaryDirectory(dir=_DIRECTORY.value) as temporary:
        for size in map(int, _PASSAGES.value):
            found['sizes'].append(run(pathlib.Path(temporary), size, config))
            measure.write(_NAME.value, {'memory': 'RssAnon', **found})


if __name__ == '__main__':
    app.run(main)
