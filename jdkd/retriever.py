"""Loads a dual-encoder and searches texts with it, in a notebook or a program."""

import dataclasses
import os
import pathlib
import typing
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from jax.sharding import Mesh

from jdkd.config import EncoderSpec
from jdkd.models import dual_encoder, pretrained, weights
from jdkd.retrieval import encode
from jdkd.retrieval.exact import ExactIndex
from jdkd.run import STUDENT
from jdkd.runtime import mesh as meshes
from jdkd.runtime.messages import shown
from jdkd.systems.encoders import Encoder, read_encoder

Kind = Literal['query', 'passage']
Passage = str | tuple[str, str]  # A text, or title and text.
_CHUNK = 65_536  # Texts that are tokenised at once, to bound memory.


@dataclasses.dataclass(frozen=True)
class Hit:
    """A passage that a search returns.

    Attributes:
        row: Its position among the indexed passages.
        score: Inner product of its embedding with the query's.
        passage: The passage, as it was indexed.
    """

    row: int
    score: float
    passage: Passage


@dataclasses.dataclass(eq=False)
class Retriever:
    """A dual-encoder that embeds, scores and searches texts; `load` makes one.

    Prompts are added before queries and passages, and both are cut to the lengths, that the
    checkpoint states.

    Attributes:
        encoder: Flax module, parameters, tokenizer and what the checkpoint says of them.
        mesh: Devices that compute.

    >>> retriever = jdkd.load(directory)
    >>> retriever.index(['the red cat', 'a dog sleeps', 'birds sing'])
    Retriever(3 passages)
    >>> hits = retriever.search('red cat', k=2)
    >>> [hit.row for hit in hits], hits[0].passage
    ([0, 1], 'the red cat')
    >>> retriever.encode(['red cat'], kind='query').shape
    (1, 8)
    """

    encoder: Encoder
    mesh: Mesh
    _passages: Sequence[Passage] = ()
    _index: ExactIndex | None = None

    def __repr__(self) -> str:
        return f'Retriever({len(self._passages)} passages)'

    def encode(self, texts: Sequence[Passage], *, kind: Kind = 'passage') -> np.ndarray:
        """Embeds texts: `[n, dim]` float32.

        Args:
            texts: Queries, or passages: texts, or pairs of a title and a text.
            kind: 'query' or 'passage', which decides the prompt and, of untied towers, the tower.

        Raises:
            TypeError: if `texts` is a single string, or one of them is no text.
            ValueError: if there are none, or `kind` is neither.
        """
        if isinstance(texts, str):
            raise TypeError(f'encode takes a list of texts; give [{texts!r}].')
        if kind not in typing.get_args(Kind):
            raise ValueError(f"kind={kind!r} is not supported; use 'query' or 'passage'.")
        if not len(texts):
            raise ValueError('there is nothing to encode; give at least one text.')
        for i, text in enumerate(texts):
            _check_text(text, kind, f'texts[{i}]')
        encoder = self.encoder
        params = dual_encoder.tower(encoder.params, kind)
        embeddings = []
        for start in range(0, len(texts), _CHUNK):
            tokens = encoder.encode(texts[start : start + _CHUNK], kind)
            embeddings.append(
                encode.embed(encoder.model, params, tokens, mesh=self.mesh, desc='encode')
            )
        return np.concatenate(embeddings)

    def score(self, query: str, passages: Sequence[Passage]) -> np.ndarray:
        """Scores passages for a query: `[n]` float32, higher is more relevant."""
        return self.encode(passages) @ self.encode([query], kind='query')[0]

    def index(self, passages: Sequence[Passage]) -> Self:
        """Embeds the passages that `search` searches; replaces those indexed before.

        Raises:
            ValueError: if there are none.
        """
        if not len(passages):
            raise ValueError('there is nothing to index; give at least one passage.')
        self._index = ExactIndex(self.encode(passages), self.mesh)
        self._passages = list(passages)  # Whatever becomes of the caller's.
        return self

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """Finds the k best passages for a query by exact search, or all if fewer are indexed.

        The best comes first; of equal scores, the one indexed first.

        Raises:
            ValueError: if nothing is indexed, or k is not positive.
        """
        if self._index is None:
            raise ValueError('there is nothing to search; call index(passages) first.')
        if k < 1:
            raise ValueError(f'k={k} must be at least 1.')
        ranking = self._index.search(self.encode([query], kind='query'), k)
        return [
            Hit(int(row), float(score), self._passages[int(row)])
            for row, score in zip(ranking.passages[0], ranking.scores[0], strict=True)
        ]


def _check_text(text: Any, kind: Kind, name: str) -> None:
    """Raises a TypeError unless a query is a text, and a passage a text or a pair of texts."""
    pair = text if isinstance(text, tuple | list) and kind == 'passage' else (text, '')
    if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        what = 'a text' if kind == 'query' else 'a text or a pair of title and text'
        raise TypeError(f'{name} must be {what}, found {shown(text)}.')


def find_student(source: str | os.PathLike[str]) -> str:
    """The student's directory if `source` is a run's workdir or an index, or else `source`.

    Raises:
        FileNotFoundError: if the run has no student yet.
    """
    path = pathlib.Path(source).expanduser()
    is_index = (path / 'index.json').is_file()
    if not is_index and not (path / 'metrics.jsonl').is_file():
        return os.fspath(source)
    if not (path / STUDENT / 'modules.json').is_file():
        raise FileNotFoundError(
            f'{path} is {"an index" if is_index else "a run"} without {STUDENT}/; bring it to its '
            'end, or give the directory of a checkpoint.'
        )
    return str(path / STUDENT)


def load(source: str | os.PathLike[str], *, revision: str | None = None) -> Retriever:
    """Loads a dual-encoder: a run's student, a sentence-transformers directory or a hub name.

    Pooling, normalisation, projection, towers, prompts and length are the checkpoint's; one without
    sentence-transformers files takes the mean of its tokens.

    Args:
        source: A directory, the workdir of a run, or the name of a model on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: if there is no such directory or model, or a file of it is missing.
        ValueError: if the model is a cross-encoder, or of a kind that jdkd does not have.
    """
    mesh = meshes.make_mesh()
    directory = weights.find_weights(find_student(source), revision)
    sketch, *query = pretrained.read_architectures(directory)
    if sketch.is_cross_encoder:
        raise ValueError(f'{source} is a cross-encoder, which has no embeddings; load a retriever.')
    spec = EncoderSpec(
        weights=str(directory),
        query_length=(query or [sketch])[0].query_length,
        passage_length=sketch.passage_length,
    )
    return Retriever(read_encoder(spec, mesh), mesh)
