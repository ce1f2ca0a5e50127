"""Encoder configs: every model family is one choice of these fields."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jdkd.config.systems import REMAT
from jdkd.runtime.messages import shown

# By the names that Hugging Face configs use.
ACTIVATIONS = {
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_new': functools.partial(nn.gelu, approximate=True),
    'gelu_pytorch_tanh': functools.partial(nn.gelu, approximate=True),
    'relu': nn.relu,
    'silu': nn.silu,
    'tanh': jnp.tanh,
}
Layers = Sequence[int | str] | str | None  # To keep of a checkpoint; see `pick_layers`.
MAX_SIZE = 2**24  # Checkpoints are not trusted; products of sizes must fit 64 bits.


@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """A learned logit bias per head and bucket of distances, shared by all layers.

    From T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683), as used by MPNet.
    """

    num_buckets: int = 32  # Half are for keys before the query, half for keys after it.
    max_distance: int = 128  # Distances from here on share the last bucket.


@dataclasses.dataclass(frozen=True)
class Disentangled:
    """Logits between contents and relative positions (He et al. 2021, DeBERTa).

    See https://arxiv.org/abs/2006.03654 and, for the buckets, https://arxiv.org/abs/2111.09543.
    """

    num_buckets: int = 0  # On each side of the query; 0 for one bucket per distance.
    max_distance: int = 512  # Distances are clipped to this.
    # Out of 'c2p' (the query's content to positions) and 'p2c' (positions to the key's content).
    terms: tuple[str, ...] = ()
    share_key: bool = False  # Whether positions use the query and key projections of the contents.
    norm: bool = False  # Whether position embeddings are layer-normalised.

    @property
    def span(self) -> int:
        """Number of positions with an embedding on each side of the query."""
        return self.num_buckets or self.max_distance

    def __post_init__(self):
        _check_numbers(self)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotates queries and keys by position (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

    theta: float = 160_000.0  # Longest wavelength / 2 pi, in layers that attend everywhere.
    local_theta: float = 10_000.0  # The same in layers that attend in a window.


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of one encoder; the defaults are BERT's."""

    vocab_size: int
    hidden_size: int  # D
    num_layers: int
    num_heads: int  # H; divides `hidden_size`.
    intermediate_size: int  # Width of the feed-forward layers.
    max_positions: int = 512  # Maximum row length in tokens.
    type_vocab_size: int = 2  # Number of token types (segments); 0 if the family has none.
    layer_norm_eps: float = 1e-12  # Added to the variance.
    activation: str = 'gelu'  # A key of `ACTIVATIONS`; 'gelu' is the exact one (erf).
    pad_id: int = 0
    embedding_size: int | None = None  # Width of embeddings that are projected to D; None for D.
    # Whether that projection precedes the norm of the embeddings and has no bias (DeBERTa), or
    # follows it (ELECTRA).
    project_first: bool = False
    position_embeddings: bool = True  # Whether absolute positions have learned embeddings.
    position_offset: int = 0  # Rows of that table before the first position.
    relative: RelativeBias | Disentangled | Rotary | None = None  # Positions in attention.
    use_bias: bool = True  # In dense layers and norms.
    # Whether norms precede each residual branch (except the first, which follows the norm of the
    # embeddings), with one more after the last layer; else they follow each sum.
    norm_first: bool = False
    # Whether the feed-forward layers multiply the activation by a second projection (Shazeer 2020,
    # https://arxiv.org/abs/2002.05202).
    gated: bool = False
    local_layers: tuple[int, ...] = ()  # Indices of layers that attend only in a window.
    window: int = 64  # Tokens in that window to each side of the query.
    head_pooling: str = 'cls'  # Or 'mean': the state that the family's sequence classifier reads.
    head_activation: str = 'tanh'  # After that classifier's first dense layer.
    # Rate in training, on the embeddings and each residual branch. Attention probabilities are
    # never dropped, so that fused kernels remain possible.
    dropout: float = 0.0
    dtype: str = 'float32'  # Or 'bfloat16', in which matrix products run.
    # Rematerialisation: 'none' keeps everything for the backward pass, 'dots' keeps products with
    # weights, 'full' keeps only the inputs of layers.
    remat: str = 'none'
    family: str = 'bert'  # Key of `families.FAMILIES`, which names the tensors in a checkpoint.

    def __post_init__(self):
        _check_numbers(self)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f'num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; '
                'choose one that does.'
            )
        for field, supported in (
            ('activation', ACTIVATIONS),
            ('head_activation', ACTIVATIONS),
            ('head_pooling', ('cls', 'mean')),
            ('dtype', ('float32', 'bfloat16')),
            ('remat', REMAT),
        ):
            if getattr(self, field) not in supported:
                raise ValueError(
                    f'{field}={shown(getattr(self, field))} is not supported; use one of '
                    f'{", ".join(supported)}.'
                )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


def pick_layers(
    config: TransformerConfig, layers: Layers
) -> tuple[TransformerConfig, tuple[int, ...]]:
    """Returns the config of some layers of a checkpoint, and their indices in it.

    `layers` are indices to keep, from 0, in this order; or 'first:3', or 'even:3' for three evenly
    spaced from the first to the last; None for all.

    Raises:
        ValueError: if the checkpoint has no such layers, or its family does not work with them.
    """
    if layers is None:
        return config, tuple(range(config.num_layers))
    picks = _layer_indices(layers, config.num_layers)
    wrong = [i for i in picks if not 0 <= i < config.num_layers]
    if wrong or not picks:
        raise ValueError(
            f'layers={layers!r} cannot be kept: the checkpoint has layers 0 to '
            f'{config.num_layers - 1}; name some of these.'
        )
    if config.norm_first and [i for i in picks if i == 0] != list(picks[:1]):
        raise ValueError(
            f'layers={layers!r} cannot be kept: only the first layer of {config.family} works '
            'without a norm before its attention; begin with layer 0, and use it once.'
        )
    local = tuple(new for new, old in enumerate(picks) if old in config.local_layers)
    return dataclasses.replace(config, num_layers=len(picks), local_layers=local), picks


def _layer_indices(layers: Sequence[int | str] | str, num_layers: int) -> tuple[int, ...]:
    """Resolves the argument `layers` of `pick_layers`."""
    if isinstance(layers, str):
        layers = (layers,)
    indices = tuple(layer for layer in layers if not isinstance(layer, str))
    if len(indices) == len(layers):
        return indices
    rule = re.fullmatch(r'(first|even):([1-9]\d*)', ','.join(map(str, layers)))
    if not rule:
        raise ValueError(f'layers={layers!r} is not supported; use indices, first:N or even:N.')
    count = int(rule[2])
    if count > num_layers:
        raise ValueError(f'layers={layers!r} cannot be kept: the checkpoint has {num_layers}.')
    if rule[1] == 'first':
        return tuple(range(count))
    return tuple(round(x) for x in np.linspace(0, num_layers - 1, count).tolist())


def _check_numbers(config: Any) -> None:
    """Checks that ints are integers within bounds and that floats are finite and not negative."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is int:
            # Sizes without a default and upper limits must be positive.
            low = int(field.default is dataclasses.MISSING or field.name.startswith('max_'))
            valid = isinstance(value, int | np.integer) and low <= value <= MAX_SIZE
            expected = f'an integer from {low} to {MAX_SIZE}'
        elif field.type is float:
            valid = isinstance(value, int | float | np.number) and 0 <= value < math.inf
            expected = 'a number that is not negative'
        else:
            continue
        if not valid or isinstance(value, bool):
            raise ValueError(
                f'{field.name}={shown(value)} is not supported; it must be {expected}.'
            )
