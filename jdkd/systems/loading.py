"""Loads the model of a config entry: its module, parameters and checkpoint."""

import dataclasses
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import logging

from jdkd.config import EncoderSpec
from jdkd.config.systems import EvalEncoderSpec
from jdkd.models import export, pretrained, public_models, weights
from jdkd.models.config import TransformerConfig, pick_layers
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.models.families import FAMILIES
from jdkd.runtime.messages import brief, shown
from jdkd.tokens.tokenizer import Tokenizer, load_tokenizer

_TOKENS = np.zeros((1, 8), np.int32)  # Inputs to initialise a module with.


def read_model(spec: EncoderSpec, seed: int) -> tuple[Any, Any, pretrained.Pretrained]:
    """Reads the module of a config entry, its parameters on the host, and the checkpoint.

    The seed is for parameters that the checkpoint lacks: the head of a cross-encoder, or all of a
    smaller model.

    Raises:
        FileNotFoundError: if the weights cannot be found.
        ValueError: if they cannot be used as the entry asks.
    """
    source = _read_towers(spec)
    spec = _with_format(spec, source.source)
    model = _make_module(spec, source)
    if spec.hidden_size is not None:
        source = dataclasses.replace(source, head=None, projection=None)
    key = jax.random.key(seed)
    if isinstance(model, CrossEncoder):
        params = _pair_params(spec, model, source, key)
    else:
        params = _text_params(spec, model, source, key)
    longest = check_lengths(spec, model.transformer)
    if not spec.train.steps:
        _warn_of_lengths(spec, source, longest)
    return model, params, source


def sketch_model(spec: EncoderSpec) -> tuple[Any, Any]:
    """Module and parameter shapes of a config entry: `read_model` without tensors.

    The public models of the recipes are known without a network.

    Raises:
        FileNotFoundError: if the configs of the checkpoint cannot be found.
        ValueError: if the model is of an unknown kind.
    """
    try:
        return _sketch(spec, weights.find_weights(spec.weights, spec.revision, tensors=False))
    except FileNotFoundError:
        if spec.weights not in public_models.CONFIGS:
            raise
    logging.info('%s: its shapes are those known to jdkd.', spec.weights)
    with tempfile.TemporaryDirectory() as directory:
        public_models.write(spec.weights, pathlib.Path(directory))
        return _sketch(spec, directory)


def read_tokenizer(spec: EncoderSpec) -> Tokenizer:
    """The tokenizer of a config entry's checkpoint.

    Raises:
        FileNotFoundError: if the checkpoint or its tokenizer cannot be found.
        ValueError: if it cannot be used.
    """
    directory = weights.find_weights(spec.weights, spec.revision, tensors=False)
    return load_tokenizer(pretrained.read_architectures(directory, tensors=False)[0].tokenizer_dir)


def _sketch(spec: EncoderSpec, directory: str | os.PathLike) -> tuple[Any, Any]:
    source, *query = pretrained.read_architectures(directory, tensors=False)
    picked, _ = pick_layers(source.config, spec.layers or None)
    spec = _with_format(spec, directory)
    model = _make_module(spec, dataclasses.replace(source, config=picked))
    check_lengths(spec, model.transformer)
    is_pair = isinstance(model, CrossEncoder)
    texts = [_TOKENS, _TOKENS] if is_pair else [_TOKENS]
    params = jax.eval_shape(model.init, jax.random.key(0), *texts)['params']
    if not is_pair and (query or spec.query_weights is not None):
        params = {'query': params, 'passage': params}
    return model, params


def _warn_of_lengths(spec: EncoderSpec, source: pretrained.Pretrained, longest: int) -> None:
    """Logs lengths beyond those that the checkpoint was made for; `longest` is that of pairs."""
    lengths = (
        ('max_seq_length', source.max_length, longest),
        ('query_length', (source.query or source).query_length, spec.query_length),
        ('document_length', source.passage_length, spec.passage_length),
    )
    for name, limit, length in lengths[:1] if spec.kind == 'cross_encoder' else lengths[1:]:
        if length > limit:
            name = 'max_seq_length' if limit == source.max_length else name
            logging.warning(
                f"'{spec.weights}' was made for at most {limit} tokens (its {name}), but "
                f'query_length={spec.query_length} and passage_length={spec.passage_length} need '
                f'{length}; scores of longer texts may suffer, unless it is trained at that length.'
            )


def check_similarity(spec: EncoderSpec, source: pretrained.Architecture) -> None:
    """Checks that embeddings are compared by cosine or inner product.

    Raises:
        ValueError: if they are compared by a distance.
    """
    is_dual = spec.kind != 'cross_encoder' and spec.normalize is None
    if is_dual and source.similarity not in (None, 'cosine', 'dot'):
        raise ValueError(
            f"'{spec.weights}' compares embeddings by {source.similarity} distance "
            '(similarity_fn_name in config_sentence_transformers.json), which jdkd does not; set '
            'normalize=True to use the cosine, or normalize=False to use the inner product.'
        )


def head_of(spec: EncoderSpec, source: pretrained.Architecture) -> str:
    """The head of a cross-encoder, of `cross_encoder.HEADS`.

    Raises:
        ValueError: if it would score at random, or it is not clear which output is to rank.
    """
    classifies = source.classifies and spec.hidden_size is None
    head = spec.head or ('linear' if classifies else 'cosine')
    if head == 'linear' and not classifies and not spec.train.steps:
        raise ValueError(
            f"'{spec.weights}' has no classifier, so its linear head would score at random; "
            "set head='cosine', or train it from labels with train.steps."
        )
    if spec.label is not None and not (head == 'linear' and classifies):
        raise ValueError(
            f"label={spec.label} chooses an output of a checkpoint's classifier, but "
            f"'{spec.weights}' is used with no such; leave it out."
        )
    count = len(source.labels) if head == 'linear' and classifies else 0
    label = 0 if spec.label is None and count == 1 else spec.label
    if count and (label is None or not 0 <= label < count):
        raise ValueError(
            f"'{spec.weights}' has {count} labels ({brief(', '.join(source.labels))}); set label "
            f'to the number, from 0 to {count - 1}, of the one to rank by.'
        )
    return head


def _make_module(spec: EncoderSpec, source: pretrained.Architecture) -> DualEncoder | CrossEncoder:
    """The module of a config entry for a checkpoint with the layers that it picks."""
    check_format(spec)
    config, same_size = source.config, spec.hidden_size is None
    config = dataclasses.replace(config, dtype=spec.dtype, dropout=spec.dropout, remat=spec.remat)
    if spec.hidden_size is not None:
        config = of_size(config, spec.hidden_size)
    projection = source.projection if same_size else None
    projection = projection_of(spec, config.hidden_size, projection)
    if spec.kind == 'cross_encoder':
        return CrossEncoder(config, head_of(spec, source))
    check_similarity(spec, source)
    pooling = spec.pooling or source.pooling or 'mean'
    normalize = source.normalize if spec.normalize is None else spec.normalize
    return DualEncoder(config, pooling, normalize, projection, spec.passage_format == 'pair')


def _pair_params(
    spec: EncoderSpec, model: CrossEncoder, source: pretrained.Pretrained, key: jax.Array
) -> dict[str, Any]:
    """Parameters of a cross-encoder, on the host."""
    params = jax.device_get(model.init(key, _TOKENS, _TOKENS)['params'])
    if spec.hidden_size is None:
        params['transformer'] = source.params
    if model.head == 'linear' and source.head is not None:
        label = spec.label or 0
        classifier = jax.tree.map(lambda x: x[..., label : label + 1], source.head['classifier'])
        params |= {**source.head, 'classifier': classifier}
    return params


def _text_params(
    spec: EncoderSpec, model: DualEncoder, source: pretrained.Pretrained, key: jax.Array
) -> dict[str, Any]:
    """Parameters of a dual-encoder, on the host; untied towers have `query` and `passage`."""

    def tower(source, key):
        if spec.hidden_size is not None:
            params = jax.device_get(model.init(key, _TOKENS)['params'])
        else:
            params = {'transformer': source.params}
            if source.projection is not None:
                params['projection'] = source.projection_params
        if spec.projection is not None:
            kernel = np.eye(model.transformer.hidden_size, spec.projection, dtype=np.float32)
            params['projection'] = {'kernel': kernel}
        return params

    params = tower(source, key)
    if source.query is not None:
        params = {'query': tower(source.query, jax.random.fold_in(key, 1)), 'passage': params}
    return params


def query_checkpoint(spec: EncoderSpec) -> tuple[str, str | None]:
    """Name and revision of `query_weights`: that of `weights` where both have one name."""
    name = spec.query_weights
    assert name is not None
    return name, spec.query_revision or (spec.revision if name == spec.weights else None)


def _read_towers(spec: EncoderSpec) -> pretrained.Pretrained:
    """The checkpoint of a config entry, with that of its query tower if it has its own."""

    def read(name, revision):
        path = weights.find_weights(name, revision)
        return pretrained.read_pretrained(path, layers=spec.layers or None)

    source = read(spec.weights, spec.revision)
    if spec.query_weights is not None:
        query = read(*query_checkpoint(spec))
        source = dataclasses.replace(source, query=query.query or query)
    if (query := source.query) is None:
        return source
    if spec.kind == 'cross_encoder':
        raise ValueError(
            f"'{spec.query_weights or spec.weights}' has a tower for queries, but a cross-encoder "
            'reads query and passage in one; leave query_weights out, or give another checkpoint.'
        )
    left_open = [f for f in ('pooling', 'normalize') if getattr(spec, f) is None]
    for field in ('config', 'projection', *left_open):
        if getattr(query, field) != getattr(source, field):
            raise ValueError(
                f'the towers {query.source} and {source.source} differ in {field}: '
                f'{getattr(query, field)} and {getattr(source, field)}; both must be alike but '
                'for their weights.'
            )
    return source


def projection_of(spec: EncoderSpec, hidden_size: int, own: Projection | None) -> Projection | None:
    """The projection of a config entry; `own` is the checkpoint's.

    Raises:
        ValueError: if both have one, that of the entry is narrower than the encoder, or there are
            no embeddings to project.
    """
    if spec.projection is None:
        return own
    if spec.kind == 'cross_encoder':
        raise ValueError(
            f'projection={spec.projection} is for embeddings, and a cross-encoder has none; leave '
            'it out.'
        )
    if own is not None:
        raise ValueError(
            f"projection={spec.projection} adds a linear layer, but '{spec.weights}' ends in one "
            f'(Dense) of {own.out_dim} dimensions; leave projection out.'
        )
    if spec.projection < hidden_size:
        raise ValueError(
            f'projection={spec.projection} is narrower than the {hidden_size} units of '
            f"'{spec.weights}'; for narrower embeddings use student.dims."
        )
    return Projection(spec.projection, bias=False)


def check_format(spec: EncoderSpec | EvalEncoderSpec) -> None:
    """Raises a ValueError if an encoder cannot read passages in the format of its entry."""
    if spec.kind == 'cross_encoder' and spec.passage_format == 'pair':
        raise ValueError(
            'passage_format=pair is for dual-encoders, since the pair of a cross-encoder is query '
            'and passage; use colon or joined.'
        )


def _with_format(spec: EncoderSpec, directory: str | os.PathLike) -> EncoderSpec:
    return spec.replace(
        passage_format=spec.passage_format or export.read_passage_format(directory) or 'joined'
    )


def check_lengths(spec: EncoderSpec, config: TransformerConfig) -> int:
    """The longest row of a config entry, in tokens.

    Raises:
        ValueError: if the model has fewer positions.
    """
    longest = max(spec.query_length, spec.passage_length)
    if spec.kind == 'cross_encoder':
        longest = spec.query_length + spec.passage_length
        longest += FAMILIES[config.family].separators - 2
    if longest > config.max_positions:
        raise ValueError(
            f"'{spec.weights}' has {config.max_positions} positions, but query_length="
            f'{spec.query_length} and passage_length={spec.passage_length} need {longest}; set '
            'these fields to less (0 takes what the collection needs).'
        )
    return longest


def of_size(config: TransformerConfig, hidden_size: int) -> TransformerConfig:
    """The config at another width, with the same head size and feed-forward ratio.

    Raises:
        ValueError: if the width is no multiple of the head size.
    """
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


def resolve(spec: EncoderSpec, source: pretrained.Pretrained) -> EncoderSpec:
    """Fills in the fields of a config entry that it leaves to the checkpoint, and logs doubts."""
    is_dual = spec.kind == 'dual_encoder'
    if is_dual and spec.normalize is None and source.similarity is None:
        logging.warning(
            f"'{spec.weights}' names no similarity_fn_name: it is used with the cosine, as "
            'sentence-transformers does; set normalize=False to use the inner product.'
        )
    name = source.passage_prompt_name
    if is_dual and spec.passage_prefix is None and name != 'document':
        logging.warning(
            f"'{spec.weights}' has no prompt 'document': passages begin with its prompt '{name}', "
            f'{shown(source.passage_prompt)}, which encode_document of sentence-transformers may '
            'leave out; set passage_prefix to use another.'
        )
    defaults = {
        'pooling': source.pooling or 'mean',
        'normalize': source.normalize,
        'query_prefix': (source.query or source).query_prompt,
        'passage_prefix': source.passage_prompt,
    }
    return _with_format(spec, source.source).replace(
        **{k: v for k, v in defaults.items() if getattr(spec, k) is None}
    )
