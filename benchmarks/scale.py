"""Measures seconds and memory of token store, embeddings and BM25 of a generated corpus.

python -m benchmarks.scale --weights sentence-transformers/all-MiniLM-L6-v2 --passages 1000000

Texts are drawn while they are read, words by Zipf's law, and so take no memory. The encoder is tiny
and random. Memory is anonymous (RssAnon), without memory-mapped files, sampled every 20 ms.
"""

import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import measure
from jdkd.models import weights
from jdkd.models.config import TransformerConfig
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import bm25, encode, vectors
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.tokens.tokenizer import load_tokenizer

_WEIGHTS = flags.DEFINE_string(
    'weights', 'sentence-transformers/all-MiniLM-L6-v2', 'Whose tokenizer; a directory or a name.'
)
_PASSAGES = flags.DEFINE_integer('passages', 1_000_000, 'How many.')
_DIRECTORY = flags.DEFINE_string('directory', None, 'Where to write; temporary by default.')
_BLOCK = 4096
_SYLLABLES = [c + v for c in 'bcdfghjklmnprstvz' for v in 'aeiou']


class Corpus:
    """Passages of 15 to 60 words, made when they are read."""

    def __init__(self, size: int, vocabulary: int = 300_000):
        rng = np.random.default_rng(0)
        parts = rng.choice(_SYLLABLES, (vocabulary, 4))
        lengths = rng.integers(1, 5, vocabulary)
        self.words = np.array(
            [''.join(row[:n]) for row, n in zip(parts, lengths, strict=True)], object
        )
        share = 1 / (np.arange(vocabulary) + 3.0)
        self.up_to, self.size = np.cumsum(share / share.sum()), size

    def __len__(self) -> int:
        return self.size

    def _block(self, i: int) -> list[str]:
        rng = np.random.default_rng([1, i])
        lengths = rng.integers(15, 61, _BLOCK)
        at = np.searchsorted(self.up_to, rng.random(lengths.sum()), side='right')
        words = self.words[np.minimum(at, len(self.words) - 1)]
        return [' '.join(x) for x in np.split(words, np.cumsum(lengths)[:-1])]

    def __getitem__(self, rows: slice) -> list[str]:
        start, stop, _ = rows.indices(self.size)
        found = []
        for i in range(start // _BLOCK, -(-stop // _BLOCK)):
            first = i * _BLOCK
            found += self._block(i)[max(start - first, 0) : stop - first]
        return found


def main(_):
    # All that is asked for are its length and slices.
    corpus = cast(Sequence[str], Corpus(_PASSAGES.value))
    result: dict[str, Any] = {'passages': _PASSAGES.value, 'memory': 'RssAnon'}
    start = time.perf_counter()
    for i in range(0, min(len(corpus), 65_536), _BLOCK):
        corpus[i : i + _BLOCK]
    share = (time.perf_counter() - start) * len(corpus) / min(len(corpus), 65_536)
    result['generating_the_texts_once_seconds'] = round(share, 1)
    with tempfile.TemporaryDirectory(dir=_DIRECTORY.value) as temporary:
        root = pathlib.Path(temporary)
        _dense(root, corpus, result)
        _bm25(root, corpus, result)
    measure.write('scale', result)


def _dense(root: pathlib.Path, corpus: Sequence[str], result: dict) -> None:
    tokenizer = load_tokenizer(weights.find_weights(_WEIGHTS.value))
    with measure.peak(result, 'tokenise'):
        stages.build_stage(
            root / 'tokens',
            {},
            lambda out: tokenizer.write_store(out, corpus, 144, desc='tokenise'),
            resumable=True,
        )
    store = tokenizer.load_store(root / 'tokens', 144)
    result['tokenise']['tokens'] = int(store.offsets[-1])
    config = TransformerConfig(
        vocab_size=tokenizer.fast.get_vocab_size(),
        hidden_size=32,
        num_layers=1,
        num_heads=1,
        intermediate_size=32,
    )
    model, mesh = DualEncoder(config), meshes.make_mesh()
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))['params']
    params = jax.device_put(params, meshes.replicated(mesh))
    with measure.peak(result, 'encode'):
        stages.build_stage(
            root / 'embeddings',
            {},
            lambda out: encode.write_embeddings(
                out, model, params, store, store='float32', mesh=mesh, desc='encode'
            ),
            resumable=True,
        )
    result['encode']['shape'] = vectors.load(root / 'embeddings').shape


def _bm25(root: pathlib.Path, corpus: Sequence[str], result: dict) -> None:
    parameters = {'k1': 0.9, 'b': 0.4, 'language': 'english'}
    with measure.peak(result, 'bm25_build'):
        stages.build_stage(
            root / 'bm25',
            {},
            lambda out: bm25.build(out, corpus, **parameters),
            resumable=True,
        )
    with measure.peak(result, 'bm25_load'):
        model = bm25.load(root / 'bm25', **parameters)
    # As many words as questions have.
    queries = [' '.join(text.split()[:8]) for text in corpus[:200]]
    with measure.peak(result, 'bm25_search'):
        model.search(queries, 100)
    terms = model.query_terms(queries)
    lists = np.random.default_rng(0).integers(0, len(corpus), (len(queries), 24))
    with measure.peak(result, 'bm25_score_lists'):
        model.passage_scores(terms, lists)
    result['bm25_search']['queries'] = result['bm25_score_lists']['lists'] = len(queries)
    files = sum(p.stat().st_size for p in (root / 'bm25').rglob('*') if p.is_file())
    result['bm25_build'] |= {
        'terms': len(model.idf),
        'postings': len(model.retriever.scores['data']),
        'mib_on_disk': round(files / 2**20),
    }


if __name__ == '__main__':
    app.run(main)
