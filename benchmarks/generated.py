"""A generated collection of MS MARCO's statistics, and tiny random models to run on it.

Words follow Zipf's law, with an exponent at which the vocabulary keeps growing, as in real text;
frequent ones are words of the tokenizer, so that a word is about 1.3 tokens, as there. Passages
have 8 to 200 words, 56 on average, and queries 6: as MS MARCO's, about. A query is made of words of
its positive.
"""

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import tokenizers

from jdkd.models import export, weights
from jdkd.models.config import TransformerConfig
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder

TOKENIZER = 'sentence-transformers/all-MiniLM-L6-v2'
TYPES = 3_000_000  # Different words that may be drawn.
_EXPONENT = 1.05
_KNOWN = 20_000  # Most frequent words that are words of the tokenizer.
_SYLLABLES = [c + v for c in 'bcdfghjklmnprstvz' for v in 'aeiou']
_BLOCK = 4096  # Passages that are drawn at once.
_QUERY_WORDS = 6


class Words:
    """Draws words by their rank."""

    def __init__(self) -> None:
        file = str(pathlib.Path(weights.find_weights(TOKENIZER)) / 'tokenizer.json')
        vocabulary = tokenizers.Tokenizer.from_file(file).get_vocab()
        known = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
        self._known = np.random.default_rng(0).permutation(known)[:_KNOWN].tolist()
        shares = 1 / np.arange(2, TYPES + 2) ** _EXPONENT
        self._up_to = np.cumsum(shares / shares.sum())

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        ranks = np.searchsorted(self._up_to, rng.random(count), side='right')
        return [self._word(rank) for rank in np.minimum(ranks, TYPES - 1).tolist()]

    def _word(self, rank: int) -> str:
        if rank < len(self._known):
            return self._known[rank]
        parts = []
        while rank:
            rank, part = divmod(rank, len(_SYLLABLES))
            parts.append(_SYLLABLES[part])
        return ''.join(parts)


def _passages(words: Words, count: int) -> Iterator[list[str]]:
    for start in range(0, count, _BLOCK):
        rng = np.random.default_rng([1, start])
        lengths = rng.gamma(5, 56 / 5, min(_BLOCK, count - start)).astype(int).clip(8, 200)
        drawn = words.draw(rng, int(lengths.sum()))
        ends = np.cumsum(lengths).tolist()
        yield from (drawn[a:b] for a, b in zip([0, *ends], ends, strict=False))


def write_collection(directory: pathlib.Path, passages: int, queries: dict[str, int]) -> None:
    """Writes MS MARCO's layout: so many passages, and so many queries of each split."""
    directory.mkdir(parents=True)
    rng, total = np.random.default_rng(2), sum(queries.values())
    rows = rng.choice(passages, total, replace=total > passages)
    texts: dict[int, str] = {}
    wanted = set(rows.tolist())
    with (directory / 'collection.tsv').open('w') as f:
        for row, drawn in enumerate(_passages(Words(), passages)):
            f.write(f'{row}\t{" ".join(drawn)}\n')
            if row in wanted:
                picked = rng.choice(len(drawn), min(_QUERY_WORDS, len(drawn)), replace=False)
                texts[row] = ' '.join(drawn[i] for i in picked)
    starts = np.cumsum([0, *queries.values()])
    for split, start, end in zip(queries, starts, starts[1:], strict=False):
        own = range(start, end)
        lines = [f'{query}\t{texts[int(rows[query])]}\n' for query in own]
        (directory / f'queries.{split}.tsv').write_text(''.join(lines))
        qrels = [f'{query}\t0\t{rows[query]}\t1\n' for query in own]
        (directory / f'qrels.{split}.tsv').write_text(''.join(qrels))


def write_models(directory: pathlib.Path) -> dict[str, str]:
    """Writes random models of 2 layers and 32 units; returns the paths of each kind."""
    source = pathlib.Path(weights.find_weights(TOKENIZER))
    size = tokenizers.Tokenizer.from_file(str(source / 'tokenizer.json')).get_vocab_size()
    config = TransformerConfig(
        vocab_size=size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_positions=256,
    )
    row, paths = np.ones((1, 4), np.int32), {}
    models = {
        'dual_encoder': (DualEncoder(config, 'mean', True), [row]),
        'cross_encoder': (CrossEncoder(config, 'linear'), [row, row]),
    }
    for kind, (model, inputs) in models.items():
        paths[kind] = str(directory / kind)
        (directory / kind).mkdir(parents=True)
        params = jax.device_get(model.init(jax.random.key(0), *inputs)['params'])
        export.export_sentence_transformer(
            directory / kind,
            model=model,
            # As initialised it hardly tells one text from another.
            params=jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), params),
            tokenizer_dir=source,
            max_length=256,
            model_card='',
        )
    return paths
