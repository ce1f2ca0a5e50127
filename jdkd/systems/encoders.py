"""Dual-encoders and cross-encoders as systems."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jdkd.config import EncoderSpec
from jdkd.lists import loader
from jdkd.lists.candidates import Lists
from jdkd.models import dual_encoder, pretrained
from jdkd.models.families import FAMILIES
from jdkd.retrieval import encode, index, vectors
from jdkd.retrieval.index import Ranking
from jdkd.retrieval.vectors import Vectors
from jdkd.run import Queries, Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems.loading import check_tokenizer, read_model, resolve
from jdkd.systems.ranking import keep_ranking
from jdkd.systems.system import ListScorer, Scorer
from jdkd.tokens.store import TokenStore
from jdkd.tokens.tokenizer import Tokenizer, load_tokenizer

_RECALL_SAMPLE = 256  # Queries whose approximate ranking is checked against exact search.


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model on this process' devices with its tokenizer and the token stores it reads.

    Attributes:
        model: `DualEncoder` or `CrossEncoder`.
        params: Its parameters, replicated over the local mesh.
        tokenizer: Its tokenizer.
        spec: Its config entry: lengths, prefixes, with what the checkpoint tells filled in.
        source: The checkpoint it came from.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer
    spec: EncoderSpec
    source: pretrained.Pretrained

    @property
    def pad_id(self) -> int:
        return self.model.transformer.pad_id

    @property
    def separators(self) -> int:
        """[SEP] tokens between the texts of a pair."""
        return FAMILIES[self.model.transformer.family].separators

    def passage_tokens(self, run: Run, *, prefix: bool = True) -> TokenStore:
        """Token store of the collection, with the prefix that the model reads or without it."""
        spec = self.spec
        before = spec.passage_prefix if prefix else ''
        return self._store(run, 'passages', before, run.passages, spec.passage_length)

    def query_tokens(self, run: Run, queries: Queries) -> TokenStore:
        """Token store of a split's queries."""
        spec = self.spec
        return self._store(run, queries.split, spec.query_prefix, queries.texts, spec.query_length)

    @property
    def passage_prefix_ids(self) -> np.ndarray:
        """Ids of the passage prefix, without special tokens."""
        # The space at its end is the beginning of the next word.
        prefix = self.spec.passage_prefix.rstrip()
        return np.array(self.tokenizer.fast.encode(prefix, add_special_tokens=False).ids, np.int32)

    def prefixed(self, dark: np.ndarray) -> np.ndarray:
        """Dark examples `[M, N_d, L]` of this tokenizer as the encoder reads them: prefix first."""
        prefix = self.passage_prefix_ids.astype(dark.dtype)
        prefix = np.broadcast_to(prefix, (*dark.shape[:2], len(prefix)))
        return np.concatenate([dark[..., :1], prefix, dark[..., 1:]], axis=-1)

    def dark_tokens(self, lists: Lists) -> TokenStore:
        """Tokens of the `M * N_d` dark examples for this encoder."""
        ids = lists.flat_dark()
        same = lists.tokenizer.fingerprint == self.tokenizer.fingerprint
        if same and not self.spec.passage_prefix and ids.shape[1] <= self.spec.passage_length:
            return TokenStore.from_rows(ids, self.pad_id)
        mask = self.tokenizer.fast.id_to_token(self.tokenizer.special['mask'])
        prefix = self.spec.passage_prefix
        texts = [prefix + text for text in lists.tokenizer.decode(ids, mask=mask)]
        return self.tokenizer.encode(texts, self.spec.passage_length)

    def _store(self, run: Run, what: str, prefix: str, texts, length: int) -> TokenStore:
        key = f'{self.tokenizer.fingerprint[:12]}-{length}'
        if prefix:
            key += f'-{stages.digest(prefix)[:8]}'
        path = f'tokens/{what}-{key}'
        run.stage(
            path,
            {
                'collection': run.collection.fingerprint,
                'split': what,
                'tokenizer': self.tokenizer.fingerprint,
                'length': length,
                'prefix': prefix,
            },
            lambda out: self.tokenizer.write_store(
                out, texts, length, prefix=prefix, desc=f'tokenise {what}'
            ),
            resumable=True,
        )
        return self.tokenizer.load_store(run.workdir / path, length)


@dataclasses.dataclass(frozen=True)
class DualEncoderSystem:
    name: str
    digest: str
    scale: float | None
    run: Run
    encoder: Encoder

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        def search(depth):
            passages, asked = self.passages, self.queries(queries)
            config = self.run.config.index
            ranking = index.search(asked, passages, depth, config, self._index())
            sample = slice(0, _RECALL_SAMPLE)
            exact = index.exact_search(asked[sample], passages, depth)
            approximate = Ranking(ranking.passages[sample], ranking.scores[sample])
            return ranking, {'index_recall': index.recall(approximate, exact)}

        return keep_ranking(self, queries, search)

    def list_scorer(self, queries: Queries) -> ListScorer:
        asked, passages = self.queries(queries), self.passages

        def score(lists: Lists) -> np.ndarray:
            own = asked[lists.query]
            scores = np.einsum('md,mnd->mn', own, passages[lists.passages])
            num_dark = lists.dark.shape[1]
            if not num_dark:
                return scores

            def name(row):
                query = queries.ids[lists.query[row // num_dark]]
                return f"dark example {row % num_dark} of query '{query}'"

            tokens = self.encoder.dark_tokens(lists)
            dark = self.embed(tokens, f'{self.name}: dark examples', name=name)
            dark = dark.reshape(*lists.dark.shape[:2], -1)
            return np.concatenate([scores, np.einsum('md,mnd->mn', own, dark)], axis=1)

        return score

    def scorer(self, queries: Queries) -> Scorer:
        asked, passages = self.queries(queries), self.passages
        return lambda rows, columns: asked[rows] @ passages[columns].T

    def embed(
        self,
        tokens: TokenStore,
        desc: str,
        rows: range | None = None,
        *,
        tower: str = 'passage',
        name: Callable[[int], str] = 'row {}'.format,
    ) -> np.ndarray:
        """Embeddings `[n, dim]` float32 of texts, in memory.

        Args:
            tokens: Of the texts.
            desc: Name of the progress bar.
            rows: Those to embed; None for all.
            tower: 'passage' or 'query', which they are.
            name: What messages call a text of `tokens`.
        """
        encoder = self.encoder
        params = dual_encoder.tower(encoder.params, tower)
        return encode.embed(
            encoder.model, params, tokens, rows=rows, mesh=self.run.mesh, desc=desc, name=name
        )

    def write_embeddings(
        self,
        directory: pathlib.Path,
        tokens: TokenStore,
        what: str,
        ids: Sequence[str],
        *,
        tower: str = 'passage',
    ) -> None:
        """Writes the embeddings of any number of texts; `vectors.load` reads them.

        Args:
            directory: Where to; see `encode.write_embeddings`.
            tokens: Of the texts.
            what: They are, for the progress bar.
            ids: Of the texts.
            tower: 'passage' or 'query'.
        """
        encode.write_embeddings(
            directory,
            self.encoder.model,
            dual_encoder.tower(self.encoder.params, tower),
            tokens,
            store=self.run.config.index.store,
            mesh=self.run.mesh,
            desc=f'{self.name}: {what}',
            name=lambda row: f"{tower} '{ids[row]}'",
        )

    @functools.cached_property
    def passages(self) -> Vectors:
        """`[P, dim]` embeddings of the collection, memory-mapped."""
        ids = self.run.collection.passage_ids
        return self._embeddings('passages', self.encoder.passage_tokens(self.run), ids)

    def queries(self, queries: Queries) -> Vectors:
        """`[Q, dim]` embeddings of a split's queries, memory-mapped."""
        tokens = self.encoder.query_tokens(self.run, queries)
        return self._embeddings(queries.split, tokens, queries.ids, 'query')

    def _embeddings(
        self, what: str, tokens: TokenStore, ids: Sequence[str], tower: str = 'passage'
    ) -> Vectors:
        path = f'systems/{self.name}/embeddings-{what}'
        self.run.stage(
            path,
            {
                'system': self.digest,
                'collection': self.run.collection.fingerprint,
                'store': self.run.config.index.store,
            },
            lambda out: self.write_embeddings(out, tokens, what, ids, tower=tower),
            resumable=True,
        )
        return vectors.load(self.run.workdir / path)

    def _index(self) -> pathlib.Path | None:
        """ScaNN's index of the collection, built for the first search; None if none is used."""
        config = self.run.config.index
        if config.kind != 'scann':
            return None
        path = f'systems/{self.name}/index'
        self.run.stage(
            path,
            {
                'system': self.digest,
                'collection': self.run.collection.fingerprint,
                'index': {key: getattr(config, key) for key in ('store', 'shard', 'threshold')},
            },
            lambda out: index.build(out, self.passages, config),
            resumable=True,
        )
        return self.run.workdir / path


@dataclasses.dataclass(frozen=True)
class CrossEncoderSystem:
    name: str
    digest: str
    scale: float | None
    run: Run
    encoder: Encoder

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        raise ValueError(
            f"system '{self.name}' is a cross-encoder and cannot search a collection; use it in "
            'teacher.members, not in assistants.'
        )

    def scorer(self, queries: Queries) -> Scorer:
        raise ValueError(
            f"system '{self.name}' is a cross-encoder: it scores lists, not whole batches."
        )

    def list_scorer(self, queries: Queries) -> ListScorer:
        query_tokens = self.encoder.query_tokens(self.run, queries)
        passage_tokens = self.encoder.passage_tokens(self.run)
        ids = self.run.collection.passage_ids

        def score(lists: Lists) -> np.ndarray:
            asked = [f"query '{queries.ids[row]}'" for row in lists.query]
            num_originals, num_dark = lists.passages.shape[1], lists.dark.shape[1]

            def original(pair):
                i, j = divmod(pair, num_originals)
                return f"{asked[i]} with passage '{ids[lists.passages[i, j]]}'"

            def example(pair):
                return f'{asked[pair // num_dark]} with dark example {pair % num_dark}'

            scores = [self._pairs(query_tokens, lists, passage_tokens, lists.passages, original)]
            if num_dark:
                dark = np.arange(len(lists) * num_dark).reshape(len(lists), -1)
                tokens = self.encoder.dark_tokens(lists)
                scores.append(self._pairs(query_tokens, lists, tokens, dark, example))
            return np.concatenate(scores, axis=1)

        return score

    def _pairs(
        self,
        queries: TokenStore,
        lists: Lists,
        passages: TokenStore,
        rows: np.ndarray,
        name: Callable[[int], str],
    ) -> np.ndarray:
        """Logits `[M, N]` of the lists' queries with rows `[M, N]` of the passages."""
        return encode.score_pairs(
            self.encoder.model,
            self.encoder.params,
            queries,
            np.repeat(lists.query, rows.shape[1]),
            passages,
            rows.ravel(),
            separators=self.encoder.separators,
            mesh=self.run.mesh,
            desc=f'{self.name}: pairs',
            name=name,
        ).reshape(rows.shape)


def load_encoder(run: Run, spec: EncoderSpec) -> Encoder:
    """The encoder of a config entry on the run's mesh; see `read_model`.

    Raises:
        ValueError: also if the tokenizer is not the model's, or untied towers have one each.
    """
    model, params, source = read_model(spec, run.config.seed)
    tokenizer = load_tokenizer(source.tokenizer_dir)
    if source.query is not None:
        other = load_tokenizer(source.query.tokenizer_dir)
        if other.fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f'the towers {source.query.source} and {source.source} have different tokenizers; '
                'give two of one tokenizer.'
            )
    check_tokenizer(spec, source.config, tokenizer)
    return Encoder(
        model=model,
        params=meshes.put(params, run.mesh.local_mesh),
        tokenizer=tokenizer,
        spec=resolve(spec, source),
        source=source,
    )


def weights_digest(encoder: Encoder) -> str:
    """sha256 over an encoder's parameters as loaded, in the order of their paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(encoder.params):
        digest.update(meshes.path_name(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def token_lookup(run: Run, encoder: Encoder, queries, length: int):
    """What turns records of a split into the token rows that an encoder trains on."""
    query_ids = encoder.query_tokens(run, queries)
    passage_ids = encoder.passage_tokens(run)
    if encoder.spec.kind == 'cross_encoder':
        return loader.CrossEncoderTokens(query_ids, passage_ids, encoder.separators)
    sep_id, dark = encoder.tokenizer.special['sep'], bool(run.config.loss.dark)
    return loader.DualEncoderTokens(query_ids, passage_ids, length, sep_id, dark)
