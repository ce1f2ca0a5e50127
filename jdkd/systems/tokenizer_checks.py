"""Checks that a model reads what its tokenizer gives it, as the checkpoint means it."""

import dataclasses
from typing import Any

import numpy as np
import tokenizers

from jdkd.config import EncoderSpec
from jdkd.models.config import TransformerConfig
from jdkd.models.families import FAMILIES
from jdkd.runtime.messages import brief, shown
from jdkd.tokens.pairs import join_pairs
from jdkd.tokens.tokenizer import Tokenizer

_TEXTS = ('a', 'the')  # Any two.


def with_padding(model: Any, tokenizer: Tokenizer) -> Any:
    """A `DualEncoder` or `CrossEncoder` that masks what its tokenizer pads with.

    Many a config.json of the hub names another token, of which transformers makes no use.
    """
    config = dataclasses.replace(model.transformer, pad_id=tokenizer.special['pad'])
    return model.clone(transformer=config)


def check_tokenizer(spec: EncoderSpec, config: TransformerConfig, tokenizer: Tokenizer) -> None:
    """Checks the tokens, the token types and the lengths that a config entry gives a model.

    Raises:
        ValueError: if the model lacks an embedding of them, would take the end of a text for
            padding, or would read other texts or pairs than in transformers.
    """
    pad, texts = tokenizer.special['pad'], [tokenizer.fast.encode(text) for text in _TEXTS]
    # Positions are counted from the padding token in these families.
    if config.position_offset and pad != config.pad_id:
        raise ValueError(
            f"'{spec.weights}' masks token {config.pad_id} (pad_token_id in config.json), "
            f'but its tokenizer pads with {pad}; correct one of the two.'
        )
    if texts[0].ids[-1:] == [pad]:
        raise ValueError(
            f"'{spec.weights}' has a tokenizer that ends a text with the token that it pads with, "
            f'{shown(texts[0].tokens[-1])}; name another pad_token in its tokenizer_config.json.'
        )
    # XLA would silently read the last embedding for a token beyond it.
    token, last = max(tokenizer.fast.get_vocab().items(), key=lambda item: item[1])
    if last >= config.vocab_size:
        raise ValueError(
            f"'{spec.weights}' has embeddings of {config.vocab_size} tokens (vocab_size in "
            f'config.json), but its tokenizer has a token {last}, {shown(token)}; it is the '
            "tokenizer of another model, or its tokenizer_config.json, or the tokenizer's class, "
            'names a special token that its vocabulary lacks.'
        )
    special = tokenizer.fast.num_special_tokens_to_add(False)
    for text in ('query', 'passage'):
        length, prefix = getattr(spec, f'{text}_length'), getattr(spec, f'{text}_prefix') or ''
        own = len(tokenizer.fast.encode(prefix, add_special_tokens=False))
        if length and length < special:  # What is open yet fits the collection.
            raise ValueError(
                f"{text}_length={length} has no room for the {special} special tokens that '"
                f"{spec.weights}' puts around a text; give at least {special}."
            )
        if length and own and length <= special + own:
            raise ValueError(
                f'{text}_length={length} has no room for a text beside its prefix '
                f"{shown(prefix)}, of {own} tokens, and the {special} special ones of '"
                f"{spec.weights}'; raise it."
            )
    _check_types(spec, config, tokenizer, texts)


def _check_types(
    spec: EncoderSpec, config: TransformerConfig, tokenizer: Tokenizer, texts: list[Any]
) -> None:
    """Checks a text, or a pair of texts, with its token types beside what transformers reads."""
    fast, types = tokenizer.fast, [0] * len(texts[0])
    theirs, ids = texts[0], texts[0].ids
    if spec.kind == 'cross_encoder':
        family = FAMILIES[config.family]
        query, passage = (np.array([text.ids]) for text in texts)
        joined, second = join_pairs(query, passage, tokenizer.special['pad'], family.separators)
        theirs, ids = fast.encode(*_TEXTS), joined[0].tolist()
        types = second[0].tolist() if family.segments else [0] * len(ids)
    seen = theirs.type_ids if tokenizer.token_types else [0] * len(theirs)
    if not config.type_vocab_size:  # The model ignores them.
        seen = types = [0] * max(len(seen), len(types))
    if max(types) >= max(config.type_vocab_size, 1):
        raise ValueError(
            f"'{spec.weights}' has an embedding of one token type (type_vocab_size in "
            'config.json), but a cross-encoder of its family reads two; give another checkpoint.'
        )
    if (theirs.ids, seen) != (ids, types):
        raise ValueError(
            f"'{spec.weights}' has a tokenizer that gives its model the tokens and types "
            f'{_listed(fast, theirs.ids, seen)}, where jdkd gives it {_listed(fast, ids, types)}; '
            'correct post_processor in its tokenizer.json, or model_input_names in its '
            'tokenizer_config.json, or give another checkpoint.'
        )


def _listed(fast: tokenizers.Tokenizer, ids: list[int], types: list[int]) -> str:
    tokens = (f'{fast.id_to_token(i)}:{t}' for i, t in zip(ids, types, strict=False))
    return brief(' '.join(tokens))
