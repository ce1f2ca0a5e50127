"""The bidirectional Transformer encoder that every retriever and cross-encoder shares.

Shapes: B rows, L tokens a row, D hidden units, H heads. Parameters are float32; the matrix
products run in `config.dtype`; layer norms, softmax and the embedding sum run in float32.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

# Under the names that Hugging Face configs use.
ACTIVATIONS = {
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_new': functools.partial(nn.gelu, approximate=True),
    'relu': nn.relu,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of one encoder.

    Attributes:
        vocab_size: Rows of the word embedding.
        hidden_size: D.
        num_layers: Blocks of attention and feed-forward.
        num_heads: H; divides `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        max_positions: Longest row, in tokens.
        type_vocab_size: Number of token types (segments).
        layer_norm_eps: Added to the variance in layer norms.
        activation: A key of `ACTIVATIONS`; 'gelu' is the exact one (erf).
        pad_id: The token that is masked.
        dropout: Rate, in training only, on the embeddings and on each residual branch. Attention
            probabilities are never dropped, so that fused attention kernels stay possible.
        dtype: 'float32' or 'bfloat16': what the matrix products run in.
        family: The key of `FAMILIES` that names the tensors in a checkpoint.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    activation: str = 'gelu'
    pad_id: int = 0
    dropout: float = 0.0
    dtype: str = 'float32'
    family: str = 'bert'

    def __post_init__(self):
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f'num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}; '
                'choose one that does.'
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f'activation={self.activation!r} is not supported; use one of '
                f'{", ".join(ACTIVATIONS)}.'
            )
        if self.dtype not in ('float32', 'bfloat16'):
            raise ValueError(f'dtype={self.dtype!r} is not supported; use float32 or bfloat16.')


@dataclasses.dataclass(frozen=True)
class Family:
    """What one family of models calls things in a Hugging Face checkpoint.

    Attributes:
        architecture: The encoder's class, for config.json.
        classifier: The sequence classifier's class, whose `head` we read.
        prefix: What a tensor's name may begin with, if saved from a model with a head.
        fields: Field of `TransformerConfig` -> key of config.json.
        fixed: Keys of config.json that may have this one value only.
        modules: Path of our module -> name of theirs; `{i}` is the layer.
        head: The same for `CrossEncoder(head='linear')`.
        ignored: Regexes, on the whole name, of tensors that are not needed.
        unused: Shape, in config fields, of tensors that `architecture` has and no embedding
            needs. They are exported as zeros: transformers would warn that they are missing.
    """

    architecture: str
    classifier: str
    prefix: str
    fields: Mapping[str, str]
    fixed: Mapping[str, Any]
    modules: Mapping[str, str]
    head: Mapping[str, str]
    ignored: Sequence[str]
    unused: Mapping[str, Sequence[str]]


FAMILIES = {
    'bert': Family(
        architecture='BertModel',
        classifier='BertForSequenceClassification',
        prefix='bert.',
        fields={
            'vocab_size': 'vocab_size',
            'hidden_size': 'hidden_size',
            'num_layers': 'num_hidden_layers',
            'num_heads': 'num_attention_heads',
            'intermediate_size': 'intermediate_size',
            'max_positions': 'max_position_embeddings',
            'type_vocab_size': 'type_vocab_size',
            'layer_norm_eps': 'layer_norm_eps',
            'activation': 'hidden_act',
            'pad_id': 'pad_token_id',
        },
        fixed={'position_embedding_type': 'absolute', 'is_decoder': False},
        modules={
            'embeddings/word': 'embeddings.word_embeddings',
            'embeddings/position': 'embeddings.position_embeddings',
            'embeddings/token_type': 'embeddings.token_type_embeddings',
            'embeddings/norm': 'embeddings.LayerNorm',
            'layer_{i}/attention/query': 'encoder.layer.{i}.attention.self.query',
            'layer_{i}/attention/key': 'encoder.layer.{i}.attention.self.key',
            'layer_{i}/attention/value': 'encoder.layer.{i}.attention.self.value',
            'layer_{i}/attention/output': 'encoder.layer.{i}.attention.output.dense',
            'layer_{i}/attention_norm': 'encoder.layer.{i}.attention.output.LayerNorm',
            'layer_{i}/ffn/up': 'encoder.layer.{i}.intermediate.dense',
            'layer_{i}/ffn/down': 'encoder.layer.{i}.output.dense',
            'layer_{i}/ffn_norm': 'encoder.layer.{i}.output.LayerNorm',
        },
        head={'pooler': 'pooler.dense', 'classifier': 'classifier'},
        ignored=(r'embeddings\.position_ids', r'pooler\..*', r'cls\..*'),
        unused={
            'pooler.dense.weight': ('hidden_size', 'hidden_size'),
            'pooler.dense.bias': ('hidden_size',),
        },
    ),
}


def _layer_norm(config: TransformerConfig, name: str) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where a few units are very large.
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def _dense(config: TransformerConfig, features: int, name: str) -> nn.Dense:
    return nn.Dense(
        features, dtype=config.dtype, kernel_init=nn.initializers.normal(0.02), name=name
    )


class Embeddings(nn.Module):
    """Word + position + token type, normalised: `[B, L]` ids to `[B, L, D]` float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, token_types: jax.Array) -> jax.Array:
        def embed(size, name):
            return nn.Embed(
                size,
                self.config.hidden_size,
                embedding_init=nn.initializers.normal(0.02),
                name=name,
            )

        positions = jnp.arange(tokens.shape[1])[None]
        x = embed(self.config.vocab_size, 'word')(tokens)
        x += embed(self.config.max_positions, 'position')(positions)
        x += embed(self.config.type_vocab_size, 'token_type')(token_types)
        return _layer_norm(self.config, 'norm')(x)


class Attention(nn.Module):
    """Multi-head self-attention: `[B, L, D]` states and `[B, 1, 1, L]` key mask to `[B, L, D]`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, mask: jax.Array) -> jax.Array:
        B, L, D = x_BxLxD.shape

        def heads(name):
            return _dense(self.config, D, name)(x_BxLxD).reshape(B, L, self.config.num_heads, -1)

        # Softmax is in float32 whatever the dtype. Where every key is masked it is uniform, not
        # NaN, because masked logits are large but finite.
        x = jax.nn.dot_product_attention(heads('query'), heads('key'), heads('value'), mask=mask)
        return _dense(self.config, D, 'output')(x.reshape(B, L, D))


class FeedForward(nn.Module):
    """Two dense layers with an activation between: `[B, L, D]` to `[B, L, D]`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _dense(self.config, self.config.intermediate_size, 'up')(x)
        x = ACTIVATIONS[self.config.activation](x)
        return _dense(self.config, self.config.hidden_size, 'down')(x)


class Layer(nn.Module):
    """Attention and feed-forward, each with a residual and a layer norm after it."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, deterministic: bool) -> jax.Array:
        def residual(x, branch, name):
            branch = nn.Dropout(self.config.dropout)(branch, deterministic=deterministic)
            # Summed in float32: bfloat16 would round the stream twice in every layer.
            total = x.astype(jnp.float32) + branch.astype(jnp.float32)
            return _layer_norm(self.config, name)(total).astype(self.config.dtype)

        x = residual(x, Attention(self.config, name='attention')(x, mask), 'attention_norm')
        return residual(x, FeedForward(self.config, name='ffn')(x), 'ffn_norm')


class Transformer(nn.Module):
    """BERT's encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), without a pooler."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """States of every token.

        Args:
            tokens: `[B, L]` integer ids; `config.pad_id` is masked as a key.
            token_types: `[B, L]` integer segments; None for all 0.
            deterministic: False drops out; needs the 'dropout' rng where the rate is above 0.

        Returns:
            `[B, L, D]` states in `config.dtype`; those of padding are finite and mean nothing.

        Raises:
            ValueError: if L is more than `config.max_positions`.
        """
        length = tokens.shape[1]
        if length > self.config.max_positions:
            raise ValueError(
                f'Rows of {length} tokens, but the model has {self.config.max_positions} '
                'positions (max_positions); truncate to that length.'
            )
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        mask = (tokens != self.config.pad_id)[:, None, None, :]
        x = Embeddings(self.config, name='embeddings')(tokens, token_types)
        x = nn.Dropout(self.config.dropout)(x, deterministic=deterministic)
        x = x.astype(self.config.dtype)
        for i in range(self.config.num_layers):
            x = Layer(self.config, name=f'layer_{i}')(x, mask, deterministic=deterministic)
        return x


def param_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of `Transformer(config)`, by its path (`layer_0/ffn/up/bias`)."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    flat = traverse_util.flatten_dict(variables['params'], sep='/')
    return {path: leaf.shape for path, leaf in flat.items()}


def tensor_name(path: str, modules: Mapping[str, str]) -> str:
    """Hugging Face's name of the parameter at `path`, given `Family.modules`."""
    module, leaf = path.rsplit('/', 1)
    layer = re.match(r'layer_(\d+)/', module)
    key = re.sub(r'^layer_\d+/', 'layer_{i}/', module)
    name = modules[key].format(i=layer and layer[1])
    return f'{name}.{"bias" if leaf == "bias" else "weight"}'
