"""Measures encoding speed beside SentenceTransformer.encode, in turns on the same passages.

python -m benchmarks.encode --weights sentence-transformers/all-MiniLM-L6-v2 \
    --corpus squad/corpus.jsonl --passages 1024 --length 144

Needs torch and sentence-transformers beside jdkd. Both sides read texts and return embeddings in
memory: tokenising is timed too. Ratios are of medians, since machines are noisy.
"""

import itertools
import json
import statistics
import time

import jax
import numpy as np
import sentence_transformers
import torch
from absl import app, flags

from benchmarks import measure
from jdkd.models import pretrained, weights
from jdkd.models.dual_encoder import DualEncoder
from jdkd.retrieval import encode
from jdkd.runtime import mesh as meshes
from jdkd.tokens.tokenizer import load_tokenizer

_WEIGHTS = flags.DEFINE_string(
    'weights', 'sentence-transformers/all-MiniLM-L6-v2', 'Directory, or name on the hub.'
)
_CORPUS = flags.DEFINE_string(
    'corpus', None, 'File of passages: JSON lines with title and text, as in BEIR.', required=True
)
_PASSAGES = flags.DEFINE_integer('passages', 1024, 'How many, from the beginning of the file.')
_LENGTH = flags.DEFINE_integer('length', 144, 'Tokens, special ones included.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 32, "SentenceTransformer's, in passages.")
_TURNS = flags.DEFINE_integer('turns', 5, 'Timed turns of each side.')


def passages() -> list[str]:
    with open(_CORPUS.value, encoding='utf-8') as f:
        lines = map(json.loads, itertools.islice(f, _PASSAGES.value))
        return [f'{line.get("title", "")} {line["text"]}'.strip() for line in lines]


def ours(path):
    source = pretrained.read_pretrained(path)
    model = DualEncoder(source.config, source.pooling or 'mean', source.normalize)
    mesh = meshes.make_mesh()
    params = jax.device_put({'transformer': source.params}, meshes.replicated(mesh))
    tokenizer = load_tokenizer(source.tokenizer_dir)

    def run(texts):
        store = tokenizer.encode(texts, _LENGTH.value)
        return encode.embed(model, params, store, mesh=mesh, desc='jdkd'), store

    return run


def theirs(path):
    device = 'cuda' if torch.cuda.is_available() and jax.default_backend() == 'gpu' else 'cpu'
    model = sentence_transformers.SentenceTransformer(str(path), device=device)
    model.max_seq_length = _LENGTH.value
    return lambda texts: model.encode(
        texts, batch_size=_BATCH_SIZE.value, show_progress_bar=False, convert_to_numpy=True
    )


def main(_):
    path, texts = weights.find_weights(_WEIGHTS.value), passages()
    sides = {'jdkd': ours(path), 'sentence_transformers': theirs(path)}
    seconds = {name: [] for name in sides}
    found = {}
    for turn in range(_TURNS.value + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            found[name] = run(texts)
            if turn:  # The first ones compile and warm up.
                seconds[name].append(time.perf_counter() - start)
        print({name: round(s[-1], 2) for name, s in seconds.items() if s}, flush=True)
    vectors, store = found['jdkd']
    number = int(store.lengths.sum())
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    measure.write(
        'encode',
        {
            'passages': len(texts),
            'tokens': number,
            'length': _LENGTH.value,
            'largest_difference': float(np.abs(vectors - found['sentence_transformers']).max()),
            'versions': {
                'jax': jax.__version__,
                'torch': torch.__version__,
                'sentence_transformers': sentence_transformers.__version__,
            },
            'sides': {
                name: {
                    'passages_per_second': round(len(texts) / s, 1),
                    'real_tokens_per_second': round(number / s),
                    'seconds': [round(x, 2) for x in seconds[name]],
                }
                for name, s in medians.items()
            },
            'speed_ratio': round(medians['sentence_transformers'] / medians['jdkd'], 3),
        },
    )


if __name__ == '__main__':
    app.run(main)
