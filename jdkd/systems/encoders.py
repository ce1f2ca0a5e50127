"""Dual-encoders and cross-encoders as systems."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from jdkd.data import tokens
from jdkd.data.candidates import Lists
from jdkd.models import cross_encoder, pretrained, weights
from jdkd.models.config import TransformerConfig
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.families import FAMILIES
from jdkd.retrieval import encode, index
from jdkd.retrieval.index import Ranking
from jdkd.run import Queries, Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems import base

_CHUNK = 4096  # Lists scored at once, to bound the memory of gathered embeddings.
_RECALL_SAMPLE = 256  # Queries whose approximate ranking is checked against exact search.


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model on the mesh with its tokenizer and the token stores it reads.

    Attributes:
        model: `DualEncoder` or `CrossEncoder`.
        params: Its parameters, replicated over the mesh.
        tokenizer: Its tokenizer.
        spec: Its config entry: lengths, prefixes, with what the checkpoint tells filled in.
        source: The checkpoint it came from.
    """

    model: Any
    params: Any
    tokenizer: tokens.Tokenizer
    spec: ml_collections.FrozenConfigDict
    source: pretrained.Pretrained

    @property
    def pad_id(self) -> int:
        return self.model.transformer.pad_id

    @property
    def separators(self) -> int:
        """[SEP] tokens between the texts of a pair."""
        return FAMILIES[self.model.transformer.family].separators

    def passage_tokens(self, run: Run) -> np.ndarray:
        """`[P, passage_length]` token store of the collection, memory-mapped."""
        spec = self.spec
        return self._store(run, 'passages', spec.passage_prefix, run.passages, spec.passage_length)

    def query_tokens(self, run: Run, queries: Queries) -> np.ndarray:
        """`[Q, query_length]` token store of a split's queries, memory-mapped."""
        spec = self.spec
        return self._store(run, queries.split, spec.query_prefix, queries.texts, spec.query_length)

    def dark_tokens(self, lists: Lists) -> np.ndarray:
        """`[M * N_d, length]` ids of the dark examples for this encoder."""
        ids = lists.flat_dark()
        same = lists.tokenizer.fingerprint == self.tokenizer.fingerprint
        if same and not self.spec.passage_prefix and ids.shape[1] <= self.spec.passage_length:
            return ids
        mask = self.tokenizer.fast.id_to_token(self.tokenizer.special['mask'])
        texts = lists.tokenizer.decode(ids, mask=mask)
        texts = tokens.prefixed(self.spec.passage_prefix, texts)
        return self.tokenizer.encode(texts, self.spec.passage_length)

    def _store(self, run: Run, what: str, prefix: str, texts, length: int) -> np.ndarray:
        key = f'{self.tokenizer.fingerprint[:12]}-{length}'
        if prefix:
            key += f'-{stages.digest(prefix)[:8]}'
        path = f'tokens/{what}-{key}'

        def build(out):
            ids = self.tokenizer.encode(
                tokens.prefixed(prefix, texts), length, desc=f'tokenise {what}'
            )
            np.save(out / 'ids.npy', ids)

        run.stage(
            path,
            {
                'collection': run.collection.fingerprint,
                'split': what,
                'tokenizer': self.tokenizer.fingerprint,
                'length': length,
                'prefix': prefix,
            },
            build,
        )
        return np.load(run.workdir / path / 'ids.npy', mmap_mode='r')


@dataclasses.dataclass(frozen=True)
class DualEncoderSystem:
    name: str
    digest: str
    scale: float | None
    run: Run
    encoder: Encoder

    def rank(self, queries: Queries) -> tuple[Ranking, dict[str, float]]:
        def search(depth):
            passages, vectors = self.passages, self.queries(queries)
            ranking = index.search(vectors, passages, depth, self.run.config.index)
            sample = slice(0, _RECALL_SAMPLE)
            exact = index.exact_search(vectors[sample], passages, depth)
            approximate = Ranking(ranking.passages[sample], ranking.scores[sample])
            return ranking, {'index_recall': index.recall(approximate, exact)}

        return base.keep_ranking(self, queries, search)

    def score(self, queries: Queries, lists: Lists) -> np.ndarray:
        vectors, passages = self.queries(queries), self.passages
        num_originals, num_dark = lists.passages.shape[1], lists.dark.shape[1]
        scores = np.empty((len(lists), num_originals + num_dark), np.float32)
        for start in range(0, len(lists), _CHUNK):
            part = slice(start, start + _CHUNK)
            scores[part, :num_originals] = np.einsum(
                'md,mnd->mn', vectors[lists.query[part]], passages[lists.passages[part]]
            )
        if num_dark:
            dark = self.embed(self.encoder.dark_tokens(lists), f'{self.name}: dark examples')
            dark = dark.reshape(len(lists), num_dark, -1)
            scores[:, num_originals:] = np.einsum('md,mnd->mn', vectors[lists.query], dark)
        return scores

    def scorer(self, queries: Queries) -> base.Scorer:
        vectors, passages = self.queries(queries), self.passages
        return lambda rows, columns: vectors[rows] @ passages[columns].T

    def embed(self, ids: np.ndarray, desc: str) -> np.ndarray:
        """Embeddings `[n, dim]` float32 of token rows."""
        encoder = self.encoder
        return encode.embed(
            encoder.model,
            encoder.params,
            ids,
            pad_id=encoder.pad_id,
            mesh=self.run.mesh,
            desc=desc,
        )

    @functools.cached_property
    def passages(self) -> np.ndarray:
        """`[P, dim]` embeddings of the collection, memory-mapped."""
        return self._embeddings('passages', self.encoder.passage_tokens(self.run))

    def queries(self, queries: Queries) -> np.ndarray:
        """`[Q, dim]` embeddings of a split's queries, memory-mapped."""
        return self._embeddings(queries.split, self.encoder.query_tokens(self.run, queries))

    def _embeddings(self, what: str, ids: np.ndarray) -> np.ndarray:
        path = f'systems/{self.name}/embeddings-{what}'
        self.run.stage(
            path,
            {'system': self.digest, 'collection': self.run.collection.fingerprint},
            lambda out: np.save(out / 'embeddings.npy', self.embed(ids, f'{self.name}: {what}')),
        )
        return np.load(self.run.workdir / path / 'embeddings.npy', mmap_mode='r')


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

    def scorer(self, queries: Queries) -> base.Scorer:
        raise ValueError(
            f"system '{self.name}' is a cross-encoder: it scores lists, not whole batches."
        )

    def score(self, queries: Queries, lists: Lists) -> np.ndarray:
        encoder = self.encoder
        query_ids = encoder.query_tokens(self.run, queries)
        passage_ids = encoder.passage_tokens(self.run)
        columns = [self._pairs(query_ids[lists.query], passage_ids[lists.passages])]
        if lists.dark.shape[1]:
            dark = encoder.dark_tokens(lists).reshape(*lists.dark.shape[:2], -1)
            columns.append(self._pairs(query_ids[lists.query], dark))
        return np.concatenate(columns, axis=1)

    def _pairs(self, queries: np.ndarray, passages: np.ndarray) -> np.ndarray:
        """Logits `[M, N]` of queries `[M, Lq]` with passages `[M, N, Lp]`."""
        M, N, L = passages.shape
        pad_id = self.encoder.pad_id
        ids, types = cross_encoder.join_pairs(
            np.repeat(queries, N, axis=0),
            passages.reshape(M * N, L),
            pad_id,
            self.encoder.separators,
        )
        return encode.score_pairs(
            self.encoder.model,
            self.encoder.params,
            ids,
            types,
            pad_id=pad_id,
            mesh=self.run.mesh,
            desc=f'{self.name}: pairs',
        ).reshape(M, N)


def read_model(
    spec: ml_collections.FrozenConfigDict, seed: int
) -> tuple[Any, Any, pretrained.Pretrained]:
    """Module, parameters on the host and checkpoint of a config entry.

    Args:
        spec: `kind` is `dual_encoder` or `cross_encoder`; `weights`, `revision`, `layers`, ...
        seed: For what the checkpoint lacks: the head of a cross-encoder, all of a smaller model.

    Raises:
        FileNotFoundError: if the weights are nowhere to be found.
        ValueError: if they cannot be used as the entry says.
    """
    path = weights.find_weights(spec.weights, spec.revision)
    source = pretrained.read_pretrained(path, layers=spec.layers or None)
    transformer = dataclasses.replace(
        source.config, dtype=spec.dtype, dropout=spec.dropout, remat=spec.remat
    )
    longest = max(spec.query_length, spec.passage_length)
    params, example = {'transformer': source.params}, np.zeros((1, 8), np.int32)
    if spec.hidden_size is not None:
        source = dataclasses.replace(source, head=None, projection=None)
        transformer, params = _of_size(transformer, spec.hidden_size), {}
    if spec.kind == 'cross_encoder':
        longest = spec.query_length + spec.passage_length
        longest += FAMILIES[transformer.family].separators - 2
        head = spec.head or ('cosine' if source.head is None else 'linear')
        if head == 'linear' and source.head is None and not spec.train.steps:
            raise ValueError(
                f"'{spec.weights}' has no classifier, so its linear head would score at random; "
                "set head='cosine', or train it from labels with train.steps."
            )
        if spec.label is not None and (head != 'linear' or source.head is None):
            raise ValueError(
                f"label={spec.label} chooses an output of a checkpoint's classifier, but "
                f"'{spec.weights}' is used with no such; leave it out."
            )
        model = CrossEncoder(transformer, head=head)
        fresh = model.init(jax.random.key(seed), example, example)['params']
        if head == 'linear' and source.head is not None:
            params |= _one_label(spec, source)
        params = {**jax.device_get(fresh), **params}
    else:
        told = resolve(spec, source)
        model = DualEncoder(transformer, told.pooling, told.normalize, source.projection)
        if source.projection is not None:
            params['projection'] = source.projection_params
        if not params:
            params = jax.device_get(model.init(jax.random.key(seed), example)['params'])
    if longest > transformer.max_positions:
        raise ValueError(
            f"'{spec.weights}' has {transformer.max_positions} positions, but query_length="
            f'{spec.query_length} and passage_length={spec.passage_length} need {longest}.'
        )
    if longest > source.max_length and not spec.train.steps:
        logging.warning(
            "'%s' was made for at most %d tokens (its max_seq_length), but query_length=%d and "
            'passage_length=%d need %d; scores of longer texts may suffer, unless it is trained '
            'at that length.',
            spec.weights,
            source.max_length,
            spec.query_length,
            spec.passage_length,
            longest,
        )
    return model, params, source


def _of_size(config: TransformerConfig, hidden_size: int) -> TransformerConfig:
    """The config with heads as large and feed-forward layers as many times as wide as before."""
    if hidden_size % config.head_size:
        raise ValueError(
            f'hidden_size={hidden_size} is no multiple of the {config.head_size} units of each of '
            "the checkpoint's attention heads; choose one that is."
        )
    return dataclasses.replace(
        config,
        hidden_size=hidden_size,
        num_heads=hidden_size // config.head_size,
        intermediate_size=config.intermediate_size * hidden_size // config.hidden_size,
    )


def resolve(
    spec: ml_collections.FrozenConfigDict, source: pretrained.Pretrained
) -> ml_collections.FrozenConfigDict:
    """A config entry with the fields that it leaves to the checkpoint filled in."""
    told = {
        'pooling': source.pooling or 'mean',
        'normalize': source.normalize,
        'query_prefix': source.query_prompt,
        'passage_prefix': source.passage_prompt,
    }
    told = {key: value for key, value in told.items() if spec[key] is None}
    return ml_collections.FrozenConfigDict({**spec.to_dict(), **told})


def _one_label(
    spec: ml_collections.FrozenConfigDict, source: pretrained.Pretrained
) -> dict[str, Any]:
    """Parameters of the checkpoint's head with the label alone that is ranked by."""
    count = len(source.labels)
    label = 0 if spec.label is None and count == 1 else spec.label
    if label is None or not 0 <= label < count:
        raise ValueError(
            f"'{spec.weights}' has {count} labels ({', '.join(source.labels)}); set label to the "
            f'number, from 0 to {count - 1}, of the one to rank by.'
        )
    classifier = jax.tree.map(lambda x: x[..., label : label + 1], source.head['classifier'])
    return {**source.head, 'classifier': classifier}


def load_encoder(run: Run, spec: ml_collections.FrozenConfigDict) -> Encoder:
    """The encoder of a config entry on the run's mesh; see `read_model`.

    Raises:
        ValueError: also if the tokenizer pads with another token than the model masks.
    """
    model, params, source = read_model(spec, run.config.seed)
    tokenizer = tokens.load(source.tokenizer_dir)
    if tokenizer.special['pad'] != source.config.pad_id:
        raise ValueError(
            f"'{spec.weights}' masks token {source.config.pad_id} (pad_token_id in config.json), "
            f'but its tokenizer pads with {tokenizer.special["pad"]}; mend one of the two.'
        )
    return Encoder(
        model=model,
        params=jax.device_put(params, meshes.replicated(run.mesh)),
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
