"""Encoders: models on this process's devices, with their tokenizers and token stores."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from jdkd.config import EncoderSpec
from jdkd.lists.candidates import Lists
from jdkd.models import pretrained
from jdkd.models.families import FAMILIES
from jdkd.run import Queries, Run
from jdkd.runtime import mesh as meshes
from jdkd.runtime import stages
from jdkd.systems.loading import read_model, resolve
from jdkd.systems.tokenizer_checks import check_tokenizer, with_padding
from jdkd.tokens.layouts import Layout
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
    def separators(self) -> int:
        """[SEP] tokens between the texts of a pair."""
        return FAMILIES[self.model.transformer.family].separators

    @property
    def query_prefix(self) -> str:
        return self.spec.query_prefix or ''

    @property
    def layout(self) -> Layout:
        """How it reads passages."""
        return Layout(self.spec.passage_format or 'joined', self.spec.passage_prefix or '')

    @property
    def passage_end(self) -> int:
        """The last token of a passage, also of one that is cut."""
        return self.tokenizer.special['sep'] + self.types

    @property
    def types(self) -> int:
        """What is added to the tokens of the second text of a pair; see `DualEncoder.pairs`."""
        pairs = self.layout.format == 'pair'
        return self.model.transformer.vocab_size if pairs else 0

    def passage_tokens(self, run: Run, length: int | None = None) -> TokenStore:
        """Token store of the collection, with passages cut to `length` or else as configured."""
        texts = self.layout.inputs(run.passages)
        own = dataclasses.asdict(self.layout) | {'types': self.types}
        return self._store(run, 'passages', texts, length or self.spec.passage_length, own)

    def query_tokens(self, run: Run, queries: Queries) -> TokenStore:
        """Token store of a split's queries."""
        texts = [self.query_prefix + text for text in queries.texts]
        own = {'prefix': self.query_prefix, 'types': 0}
        return self._store(run, queries.split, texts, self.spec.query_length, own)

    def encode_queries(self, texts: Sequence[str]) -> TokenStore:
        """Tokens of a few queries, in memory."""
        prefixed = [self.query_prefix + text for text in texts]
        return self.tokenizer.encode(prefixed, self.spec.query_length)

    def dark_tokens(self, run: Run, lists: Lists) -> TokenStore:
        """Tokens of the `M * N_d` dark examples, read as passages are."""
        texts = lists.dark_texts(self.layout.bordered(run.passages), self.tokenizer.mask)
        return self.encode_passages(texts)

    def encode_passages(self, texts: Sequence[str | tuple[str, str]]) -> TokenStore:
        """Tokens of a few passages in memory: texts (see `Layout.render`), or titles and texts."""
        layout = self.layout
        inputs = [layout.render(t if isinstance(t, str) else layout.border(*t)) for t in texts]
        return self.tokenizer.encode(inputs, self.spec.passage_length, types=self.types)

    def encode(self, texts: Sequence, kind: str) -> TokenStore:
        """`encode_passages` or, where `kind` is 'query', `encode_queries`."""
        return self.encode_queries(texts) if kind == 'query' else self.encode_passages(texts)

    def text_room(self, length: int) -> int:
        """Tokens for a passage's own text in rows of `length`, beside special ones and prefix."""
        empty = self.layout.render('')
        # A space at the end of a prefix begins the next word.
        first, second = (empty.rstrip(), None) if isinstance(empty, str) else empty
        special = len(self.tokenizer.fast.encode(first, second).ids)
        return min(length, self.spec.passage_length) - special

    def _store(self, run: Run, split: str, texts, length: int, own: dict) -> TokenStore:
        """Token store of texts; `own` decides them, and how they are stored, beside the split."""
        key = f'{self.tokenizer.fingerprint[:12]}-{length}'
        if any(value not in ('', 'joined', 0) for value in own.values()):
            key += f'-{stages.digest(own)[:8]}'
        path = f'tokens/{split}-{key}'
        inputs = {
            'collection': run.collection.fingerprint,
            'split': split,
            'tokenizer': self.tokenizer.fingerprint,
            'length': length,
            'layout': own,
        }

        def build(out):
            desc = f'tokenise {split}'
            counts = self.tokenizer.write_store(out, texts, length, types=own['types'], desc=desc)
            if counts and counts['cut']:
                message = '%s: %d of %d texts have more than %d tokens and are cut'
                logging.info(message, split, counts['cut'], counts['texts'], length)
            return counts

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
    spec = resolve(spec, source)
    check_tokenizer(spec, source.config, tokenizer)
    return Encoder(
        model=with_padding(model, tokenizer),
        params=meshes.put(params, mesh.local_mesh),
        tokenizer=tokenizer,
        spec=spec,
        source=source,
    )


def start_digest(encoder: Encoder) -> str:
    """Digest of all that decides an encoder's embeddings or scores, as it was loaded.

    That is its parameters, in the order of their paths, its modules, tokenizer and spec.
    """
    weights = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(encoder.params):
        weights.update(meshes.path_name(path).encode())
        weights.update(np.ascontiguousarray(leaf).tobytes())
    modules, tokenizer = _describe(encoder.model), encoder.tokenizer.fingerprint
    return stages.digest([weights.hexdigest(), modules, tokenizer, encoder.spec.to_dict()])


def _describe(value: Any) -> Any:
    """A module or its config as JSON, without fields that have their defaults."""
    if not dataclasses.is_dataclass(value):
        return value
    fields = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
    told = {name: _describe(own) for name, (own, default) in fields.items() if own != default}
    return [type(value).__name__, {k: v for k, v in told.items() if k not in ('parent', 'name')}]
