"""Dual-encoders as systems: they embed, search and score lists."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from jdkd.config import IndexConfig
from jdkd.lists.candidates import Lists
from jdkd.models import dual_encoder
from jdkd.retrieval import approximate, encode, vectors
from jdkd.retrieval.exact import ExactIndex
from jdkd.retrieval.ranking import Ranking
from jdkd.retrieval.vectors import Vectors
from jdkd.run import Queries
from jdkd.runtime import distributed, stages
from jdkd.systems.encoders import Encoder
from jdkd.systems.ranking import keep_ranking
from jdkd.systems.system import BatchScorer, ListScorer, System
from jdkd.tokens.store import TokenStore


@dataclasses.dataclass(frozen=True)
class DualEncoderSystem(System):
    """A dual-encoder, whose embeddings of the collection are kept in the workdir."""

    encoder: Encoder

    @property
    def reads_index(self) -> bool:
        return True

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        config, recall = self.run.config.index, None
        if queries.split == self.run.config.collection.train_split:
            recall = config.recall
            config = approximate.for_mining(config, self.run.mesh.devices.flat[0].platform)

        def open_search():
            passages, vectors = self.passages, self.queries(queries)
            exact = ExactIndex(passages, self.run.mesh)

            def search_exactly(part, depth, recall_target=None):
                return exact.search(vectors[part], depth, recall_target=recall_target)

            if not approximate.is_exact(config, len(passages)):
                directory = self._index(config)

                def search(part, depth):
                    return approximate.search(vectors[part], passages, depth, config, directory)

                return search, search_exactly
            if recall is None:
                return search_exactly, search_exactly
            return functools.partial(search_exactly, recall_target=recall), search_exactly

        return keep_ranking(self, queries, open_search)

    def list_scorer(self, queries: Queries) -> ListScorer:
        query_vectors, passages = self.queries(queries), self.passages

        def score_lists(lists: Lists) -> np.ndarray:
            own = query_vectors[lists.query]
            originals = np.einsum('md,mnd->mn', own, passages[lists.passages])
            num_dark = lists.num_dark
            if not num_dark:
                return originals

            def name(row):
                query = queries.ids[int(lists.query[row // num_dark])]
                return f"dark example {row % num_dark} of query '{query}'"

            tokens = self.encoder.dark_tokens(self.run, lists)
            dark = self.embed(tokens, f'{self.name}: dark examples', name=name)
            dark = passages.round(dark)  # As the originals are.
            dark = dark.reshape(len(lists), num_dark, -1)
            return np.concatenate([originals, np.einsum('md,mnd->mn', own, dark)], axis=1)

        return score_lists

    def batch_scorer(self, queries: Queries) -> BatchScorer:
        query_vectors, passages = self.queries(queries), self.passages
        return lambda rows, columns: query_vectors[rows] @ passages[columns].T

    def search(self, question: str, depth: int) -> Ranking:
        return self._exact.search(self._embed_question(question), depth)

    def score(self, question: str, passages: np.ndarray) -> np.ndarray:
        return self.passages[passages] @ self._embed_question(question)[0]

    @functools.cached_property
    def _exact(self) -> ExactIndex:
        """Stays on the devices between questions, if it fits."""
        return ExactIndex(self.passages, self.run.mesh)

    def _embed_question(self, question: str) -> np.ndarray:
        """`[1, dim]` float32."""
        return self.embed(self.encoder.encode_queries([question]), 'question', tower='query')

    def embed(
        self,
        tokens: TokenStore,
        desc: str,
        *,
        tower: str = 'passage',
        name: Callable[[int], str] = 'row {}'.format,
    ) -> np.ndarray:
        """Embeddings `[n, dim]` float32 of texts, in memory; `name` names rows in error messages.

        The tower is `passage` or `query`.
        """
        model, params = self.encoder.model, dual_encoder.tower(self.encoder.params, tower)
        return encode.embed(model, params, tokens, mesh=self.run.mesh, desc=desc, name=name)

    def write_embeddings(
        self,
        directory: pathlib.Path,
        tokens: TokenStore,
        kind: str,
        ids: Sequence[str],
        *,
        tower: str = 'passage',
    ) -> None:
        """Writes the embeddings of any number of texts; `vectors.load` reads them.

        `kind` says for the progress bar what the texts are.
        """
        encode.write_embeddings(
            directory,
            self.encoder.model,
            dual_encoder.tower(self.encoder.params, tower),
            tokens,
            store=self._store(tower),
            mesh=self.run.mesh,
            desc=f'{self.name}: {kind}',
            name=lambda row: f"{tower} '{ids[row]}'",
        )

    @functools.cached_property
    def passages(self) -> Vectors:
        """`[P, dim]` embeddings of the collection, memory-mapped."""
        ids = self.run.collection.passage_ids
        return self._embeddings('passages', self.encoder.passage_tokens(self.run), ids)

    def cut_passages(self, length: int) -> Vectors:
        """`[P, dim]` embeddings of passages that are cut to `length` tokens, memory-mapped."""
        if length >= self.encoder.spec.passage_length:
            return self.passages
        tokens = self.encoder.passage_tokens(self.run, length)
        return self._embeddings(f'passages-{length}', tokens, self.run.collection.passage_ids)

    def queries(self, queries: Queries) -> Vectors:
        """`[Q, dim]` embeddings of a split's queries, memory-mapped."""
        tokens = self.encoder.query_tokens(self.run, queries)
        return self._embeddings(queries.split, tokens, queries.ids, 'query')

    def _embeddings(
        self, kind: str, tokens: TokenStore, ids: Sequence[str], tower: str = 'passage'
    ) -> Vectors:
        def build(out):
            self.write_embeddings(out, tokens, kind, ids, tower=tower)

        store = {'store': self._store(tower)}
        return vectors.load(self._keep(f'embeddings-{kind}', store, build))

    def _store(self, tower: str) -> str:
        """How embeddings by a tower are stored: those of queries are never quantised."""
        store = self.run.config.index.store
        return 'float32' if tower == 'query' and store in vectors.QUANTISED else store

    def _index(self, config: IndexConfig) -> pathlib.Path:
        """ScaNN's index of the collection, built for the first search."""
        settings = {key: getattr(config, key) for key in ('store', 'shard', 'threshold')}
        return self._keep(
            'index', {'index': settings}, lambda out: approximate.build(out, self.passages, config)
        )

    def release(self) -> None:
        """Frees what `search` keeps on the devices; the next one puts it there again."""
        self.__dict__.pop('_exact', None)

    def discard(self) -> None:
        """Deletes its embeddings, index and train ranking; what reads them makes them anew.

        All processes call it.
        """
        self.release()
        self.__dict__.pop('passages', None)  # Mapped files would keep their blocks.
        directory = self.run.workdir / 'systems' / self.name
        splits = self.run.config.collection
        train, other = splits.train_split, (splits.eval_split, splits.test_split)
        kinds = [kind for kind in ('passages', train, *other) if kind is not None]
        names = [*(f'embeddings-{kind}' for kind in kinds), 'index', f'ranking-{train}']

        def delete():
            for name in names:
                stages.delete(directory / name)

        distributed.barrier(f'{directory}: no longer read')
        distributed.from_primary(delete, f'{directory}: discarded')

    def _keep(self, name: str, inputs: dict, build: Callable) -> pathlib.Path:
        """Directory of a resumable stage of this system that depends on the collection."""
        inputs |= {'system': self.digest, 'collection': self.run.collection.fingerprint}
        path = f'systems/{self.name}/{name}'
        self.run.stage(path, inputs, build, resumable=True)
        return self.run.workdir / path


@dataclasses.dataclass(frozen=True)
class AsymmetricSystem(DualEncoderSystem):
    """Embeds queries with one encoder and searches the passages, and the index, of another.

    So a student that is aligned with an assistant serves an index that is there already.
    """

    passage_side: DualEncoderSystem

    @classmethod
    def of(cls, name: str, queries: DualEncoderSystem, passages: DualEncoderSystem) -> Self:
        """`queries` embeds queries, `passages` the collection; their spaces must be one."""
        digest = stages.digest([queries.digest, passages.digest])
        return cls(name, digest, queries.scale, queries.run, queries.encoder, passages)

    @functools.cached_property
    def passages(self) -> Vectors:
        return self.passage_side.passages

    def _index(self, config: IndexConfig) -> pathlib.Path:
        return self.passage_side._index(config)


def as_dual(system: System) -> DualEncoderSystem:
    """The system, for callers that need its embeddings.

    Raises:
        TypeError: if it is no dual-encoder.
    """
    if not isinstance(system, DualEncoderSystem):
        raise TypeError(f"system '{system.name}' is no dual-encoder and has no embeddings.")
    return system
