"""Encoders: models on this process's devices, with their tokenizers and token stores."""

import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jdkd.config import EncoderSpec
from jdkd.lists.candidates import Lists
from jdkd.models import pretrained
from jdkd.models.families import FAMILIES
from jdkd.run import Queries, Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems.loading import check_tokenizer, read_model, resolve
from jdkd.tokens.store import TokenStore
from jdkd.tokens.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A model on this process's devices with its tokenizer and the token stores it reads."""

    model: Any  # `DualEncoder` or `CrossEncoder`.
    params: Any  # Replicated over the local mesh.
    tokenizer: Tokenizer
    spec: EncoderSpec  # With the fields that the checkpoint decides filled in.
    source: pretrained.Pretrained

    @property
    def pad_id(self) -> int:
        return self.model.transformer.pad_id

    @property
    def separators(self) -> int:
        """[SEP] tokens between the texts of a pair."""
        return FAMILIES[self.model.transformer.family].separators

    @property
    def query_prefix(self) -> str:
        return self.spec.query_prefix or ''

    @property
    def passage_prefix(self) -> str:
        return self.spec.passage_prefix or ''

    def passage_tokens(self, run: Run) -> TokenStore:
        """Token store of the collection."""
        length = self.spec.passage_length
        return self._store(run, 'passages', self.passage_prefix, run.passages, length)

    def query_tokens(self, run: Run, queries: Queries) -> TokenStore:
        """Token store of a split's queries."""
        length = self.spec.query_length
        return self._store(run, queries.split, self.query_prefix, queries.texts, length)

    def question_tokens(self, question: str) -> TokenStore:
        """Tokens of one question, in memory."""
        return self.tokenizer.encode([self.query_prefix + question], self.spec.query_length)

    def dark_tokens(self, run: Run, lists: Lists) -> TokenStore:
        """Tokens of the `M * N_d` dark examples, read as passages are."""
        texts = lists.dark_texts(run.passages, self.tokenizer.mask)
        return self.tokenizer.encode(
            [self.passage_prefix + text for text in texts], self.spec.passage_length
        )

    def text_room(self, length: int) -> int:
        """Tokens for a passage's own text in rows of `length`, beside special ones and prefix."""
        prefix = self.passage_prefix.rstrip()  # A space at its end begins the next word.
        return min(length, self.spec.passage_length) - len(self.tokenizer.fast.encode(prefix).ids)

    def _store(self, run: Run, split: str, prefix: str, texts, length: int) -> TokenStore:
        key = f'{self.tokenizer.fingerprint[:12]}-{length}'
        if prefix:
            key += f'-{stages.digest(prefix)[:8]}'
        path = f'tokens/{split}-{key}'
        inputs = {
            'collection': run.collection.fingerprint,
            'split': split,
            'tokenizer': self.tokenizer.fingerprint,
            'length': length,
            'prefix': prefix,
        }

        def build(out):
            self.tokenizer.write_store(out, texts, length, prefix=prefix, desc=f'tokenise {split}')

        run.stage(path, inputs, build, resumable=True)
        return self.tokenizer.load_store(run.workdir / path, length)


def load_encoder(run: Run, spec: EncoderSpec) -> Encoder:
    """Loads the encoder of a config entry onto the run's mesh; see `read_encoder`."""
    return read_encoder(spec, run.mesh, run.config.seed)


def read_encoder(spec: EncoderSpec, mesh: Mesh, seed: int = 0) -> Encoder:
    """Reads an encoder and its tokenizer onto this process' devices; see `read_model`.

    Raises:
        ValueError: also if the tokenizer is not the model's, or untied towers have one each.
    """
    model, params, source = read_model(spec, seed)
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
        params=meshes.put(params, mesh.local_mesh),
        tokenizer=tokenizer,
        spec=resolve(spec, source),
        source=source,
    )


def start_digest(encoder: Encoder) -> str:
    """Digest of an encoder as loaded: its parameters, in the order of their paths, and its spec."""
    weights = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(encoder.params):
        weights.update(meshes.path_name(path).encode())
        weights.update(np.ascontiguousarray(leaf).tobytes())
    return stages.digest([weights.hexdigest(), encoder.spec.to_dict()])
