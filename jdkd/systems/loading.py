"""Loads the model of a config entry: its module, parameters and checkpoint."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging

from jdkd.config import EncoderSpec
from jdkd.models import pretrained, weights
from jdkd.models.config import TransformerConfig, pick_layers
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.models.families import FAMILIES
from jdkd.runtime.messages import brief
from jdkd.tokens.tokenizer import Tokenizer

_TOKENS = np.zeros((1, 8), np.int32)  # Inputs to initialise a module with.


def read_model(spec: EncoderSpec, seed: int) -> tuple[Any, Any, pretrained.Pretrained]:
    """Reads the model of a config entry.

    Args:
        spec: The entry of a `dual_encoder` or a `cross_encoder`.
        seed: For parameters that the checkpoint lacks: the head of a cross-encoder, or all of a
            smaller model.

    Returns:
        The module, its parameters on the host, and the checkpoint.

    Raises:
        FileNotFoundError: if the weights cannot be found.
        ValueError: if they cannot be used as the entry asks.
    """
    source = _read_towers(spec)
    transformer = _transformer(spec, source.config)
    if spec.hidden_size is not None:
        source = dataclasses.replace(source, head=None, projection=None)
    make = _cross_encoder if spec.kind == 'cross_encoder' else _dual_encoder
    model, params = make(spec, transformer, source, jax.random.key(seed))
    longest = check_lengths(spec, transformer)
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


def _cross_encoder(
    spec: EncoderSpec,
    transformer: TransformerConfig,
    source: pretrained.Pretrained,
    key: jax.Array,
) -> tuple[CrossEncoder, Any]:
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
    params = jax.device_get(model.init(key, _TOKENS, _TOKENS)['params'])
    if spec.hidden_size is None:
        params['transformer'] = source.params
    if head == 'linear' and source.head is not None:
        params |= _one_label(spec, source)
    return model, params


def _dual_encoder(
    spec: EncoderSpec,
    transformer: TransformerConfig,
    source: pretrained.Pretrained,
    key: jax.Array,
) -> tuple[DualEncoder, Any]:
    resolved = resolve(spec, source)
    model = DualEncoder(
        transformer, str(resolved.pooling), bool(resolved.normalize), source.projection
    )

    def tower(source, key):
        if spec.hidden_size is not None:
            return jax.device_get(model.init(key, _TOKENS)['params'])
        params = {'transformer': source.params}
        if source.projection is not None:
            params['projection'] = source.projection_params
        return params

    params = tower(source, key)
    if source.query is not None:
        params = {'query': tower(source.query, jax.random.fold_in(key, 1)), 'passage': params}
    return model, params


def sketch_model(spec: EncoderSpec) -> tuple[Any, Any]:
    """Module and parameter shapes of a config entry: `read_model` without tensors.

    Args:
        spec: As for `read_model`; only the configs of the checkpoint are read.

    Raises:
        FileNotFoundError: if the configs cannot be found.
        ValueError: if the model is of an unknown kind.
    """
    directory = weights.find_weights(spec.weights, spec.revision, tensors=False)
    towers = pretrained.read_architectures(directory, tensors=False)
    source = towers[0]
    picked, _ = pick_layers(source.config, spec.layers or None)
    transformer = _transformer(spec, picked)
    check_lengths(spec, transformer)
    if spec.kind == 'cross_encoder':
        classifies = source.classifies and spec.hidden_size is None
        model = CrossEncoder(transformer, spec.head or ('linear' if classifies else 'cosine'))
        return model, jax.eval_shape(model.init, jax.random.key(0), _TOKENS, _TOKENS)['params']
    pooling = spec.pooling or source.pooling or 'mean'
    normalize = source.normalize if spec.normalize is None else spec.normalize
    projection = source.projection if spec.hidden_size is None else None
    model = DualEncoder(transformer, pooling, normalize, projection)
    params = jax.eval_shape(model.init, jax.random.key(0), _TOKENS)['params']
    if spec.query_weights is not None or len(towers) > 1:
        params = {'query': params, 'passage': params}
    return model, params


def _transformer(spec: EncoderSpec, config: TransformerConfig) -> TransformerConfig:
    """A checkpoint's architecture, changed as a config entry asks."""
    config = dataclasses.replace(config, dtype=spec.dtype, dropout=spec.dropout, remat=spec.remat)
    return config if spec.hidden_size is None else of_size(config, spec.hidden_size)


def _read_towers(spec: EncoderSpec) -> pretrained.Pretrained:
    """The checkpoint of a config entry, with that of its query tower if it has its own."""

    def read(name, revision):
        path = weights.find_weights(name, revision)
        return pretrained.read_pretrained(path, layers=spec.layers or None)

    source = read(spec.weights, spec.revision)
    if spec.query_weights is not None:
        query = read(spec.query_weights, spec.query_revision)
        source = dataclasses.replace(source, query=query.query or query)
    query = source.query
    if query is None:
        return source
    if spec.kind == 'cross_encoder':
        raise ValueError(
            f"'{spec.query_weights or spec.weights}' has a tower for queries, but a cross-encoder "
            'reads query and passage in one; leave query_weights out, or give another checkpoint.'
        )
    alike = [
        'config',
        'projection',
        *(f for f in ('pooling', 'normalize') if getattr(spec, f) is None),
    ]
    for field in alike:
        if getattr(query, field) != getattr(source, field):
            raise ValueError(
                f'the towers {query.source} and {source.source} differ in {field}: '
                f'{getattr(query, field)} and {getattr(source, field)}; both must be alike but '
                'for their weights.'
            )
    return source


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
            f'{spec.query_length} and passage_length={spec.passage_length} need {longest}.'
        )
    return longest


def check_tokenizer(spec: EncoderSpec, config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Checks that a model has an embedding for each token, and masks the padding token.

    Raises:
        ValueError: if not.
    """
    if tokenizer.special['pad'] != config.pad_id:
        raise ValueError(
            f"'{spec.weights}' masks token {config.pad_id} (pad_token_id in config.json), "
            f'but its tokenizer pads with {tokenizer.special["pad"]}; correct one of the two.'
        )
    # XLA would silently read the last embedding for a token beyond it.
    token, last = max(tokenizer.fast.get_vocab().items(), key=lambda item: item[1])
    if last >= config.vocab_size:
        raise ValueError(
            f"'{spec.weights}' has embeddings of {config.vocab_size} tokens (vocab_size in "
            f'config.json), but its tokenizer has a token {last}, {token!r}; it is the tokenizer '
            'of another model.'
        )


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
    """A config entry, with the fields that it leaves to the checkpoint filled in."""
    defaults = {
        'pooling': source.pooling or 'mean',
        'normalize': source.normalize,
        'query_prefix': (source.query or source).query_prompt,
        'passage_prefix': source.passage_prompt,
    }
    missing = {key: value for key, value in defaults.items() if getattr(spec, key) is None}
    return spec.replace(**missing)


def _one_label(spec: EncoderSpec, source: pretrained.Pretrained) -> dict[str, Any]:
    """Parameters of the checkpoint's head, for the label that ranks alone."""
    count = len(source.labels)
    label = 0 if spec.label is None and count == 1 else spec.label
    if label is None or not 0 <= label < count:
        raise ValueError(
            f"'{spec.weights}' has {count} labels ({brief(', '.join(source.labels))}); set label "
            f'to the number, from 0 to {count - 1}, of the one to rank by.'
        )
    assert source.head is not None  # It has labels.
    classifier = jax.tree.map(lambda x: x[..., label : label + 1], source.head['classifier'])
    return {**source.head, 'classifier': classifier}
