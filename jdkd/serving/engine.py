"""Embeds and searches texts in few compiled shapes, so that serving never waits for a compiler."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jdkd.models import dual_encoder
from jdkd.retrieval import encode
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.retriever import Kind, Retriever
from jdkd.runtime import mesh as meshes

SIZES = (1, 4, 8, 16, 32)  # Texts of a batch; smaller batches repeat a text.
DEPTHS = (10, 100)  # Passages of a search; the largest is the most that can be asked for.
_SHORTEST = 16  # Tokens; rows are padded to this times a power of two.
_WARM = 64  # Tokens up to which queries are compiled for at the start; longer ones when they come.


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """A student and its passages on the devices; may be called from one thread.

    Attributes:
        retriever: The student.
        passages: Embeddings to search.
    """

    retriever: Retriever
    passages: ExactIndex

    def encode(self, texts: Sequence[str], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings `[n, dim]` float32 of texts, and the `[n]` number of tokens of each.

        Raises:
            FloatingPointError: if an embedding is not finite.
        """
        parts = [
            self._encode(texts[start : start + SIZES[-1]], kind)
            for start in range(0, len(texts), SIZES[-1])
        ]
        embeddings, tokens = map(np.concatenate, zip(*parts, strict=True))
        if not np.isfinite(embeddings).all():
            raise FloatingPointError(f'the embedding of a {kind} is not finite.')
        return embeddings, tokens

    def search(self, queries: np.ndarray, k: int) -> Ranking:
        """The k best passages, at most `DEPTHS[-1]`, of embedded queries `[n, dim]`."""
        depth = next(d for d in DEPTHS if d >= k)
        parts = []
        for start in range(0, len(queries), SIZES[-1]):
            part = queries[start : start + SIZES[-1]]
            found = self.passages.search(part[_padded(len(part))], depth)
            parts.append(found.of(slice(len(part))))
        ranking = Ranking.join(parts)
        return Ranking(ranking.passages[:, :k], ranking.scores[:, :k])

    def warm_up(self) -> None:
        """Compiles what searches need."""
        longest = self.retriever.encoder.spec.query_length
        buckets = {_bucket(length, longest) for length in (*range(1, _WARM + 1, 8), _WARM)}
        for size in SIZES:
            queries = np.zeros((size, self.passages.width), np.float32)
            for depth in DEPTHS:
                self.search(queries, depth)
            for bucket in buckets:
                self.encode(size * ['a ' * (bucket - 2)], 'query')

    def _encode(self, texts: Sequence[str], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
        retriever, encoder = self.retriever, self.retriever.encoder
        tokens = encoder.encode(texts, kind)
        mesh = retriever.mesh.local_mesh
        # Each device has as many rows.
        rows = np.resize(_padded(len(texts)), _ceil(len(_padded(len(texts))), mesh.shape['data']))
        bucket = _bucket(int(tokens.lengths.max()), tokens.length)
        batch = {'tokens': tokens.rows(rows, bucket).astype(np.int32)}
        embedded = encode.apply_batch(
            encoder.model,
            mesh.abstract_mesh,
            dual_encoder.tower(encoder.params, kind),
            **meshes.to_device(batch, meshes.batch_sharding(mesh)),
        )
        return np.asarray(embedded, np.float32)[: len(texts)], tokens.lengths


def _padded(count: int) -> np.ndarray:
    """Numbers of texts, repeated up to one of `SIZES`."""
    return np.resize(np.arange(count), next(size for size in SIZES if size >= count))


def _bucket(length: int, longest: int) -> int:
    """Tokens that rows of up to `length` are padded to."""
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), longest)


def _ceil(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
