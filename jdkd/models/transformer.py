"""The bidirectional Transformer encoder shared by every retriever and cross-encoder.

Families differ only in `TransformerConfig`. Shapes: B rows, L tokens per row, D hidden units, H
heads of size d. Parameters are float32; matrix products run in `config.dtype`; layer norms,
softmax, the embedding sum and residual sums run in float32.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from jdkd.models import positions
from jdkd.models.attention import attention, matmul_precision
from jdkd.models.config import ACTIVATIONS, Disentangled, RelativeBias, Rotary, TransformerConfig

# Ids, token types or segments; host arrays are fine, as for any Flax module.
TokenArray = Int[Array | np.ndarray, 'batch length']
RowNumbers = Int[Array | np.ndarray, ' batch']

INITIALIZER = nn.initializers.normal(0.02)  # Of dense layers and embeddings.


def real_tokens(tokens: TokenArray, pad_id: int) -> Bool[Array, 'batch length']:
    """Marks all tokens but the padding on the right.

    A text may contain the padding token (documentation of tokenizers does), which is then real.
    """
    return jax.lax.cummax((tokens != pad_id).astype(jnp.int8), axis=1, reverse=True) > 0


def _fairseq_columns(
    tokens: TokenArray, columns: Int[Array, '#batch length'], pad_id: int
) -> Int[Array, 'batch length']:
    """Positions of RoBERTa and its kin, which pass over padding tokens that a text contains."""
    pads = (jnp.asarray(tokens) == pad_id).astype(jnp.int32)
    before = jnp.cumsum(pads, axis=1) - pads
    at_start = jax.lax.cummax(jnp.where(columns == 0, before, 0), axis=1)
    return jnp.where(pads == 1, -1, columns - before + at_start)


def layer_norm(config: TransformerConfig, name: str) -> nn.LayerNorm:
    """Returns a layer norm that computes in float32 whatever the dtype."""
    # The fast variance, E[x^2] - E[x]^2, loses digits where a few units are very large.
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=jnp.float32,
        use_bias=config.use_bias,
        use_fast_variance=False,
        name=name,
    )


def _dense(
    config: TransformerConfig, features: int, name: str, use_bias: bool | None = None
) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=jnp.dtype(config.dtype),
        use_bias=config.use_bias if use_bias is None else use_bias,
        kernel_init=INITIALIZER,
        precision=matmul_precision(config.dtype),
        name=name,
    )


class Embeddings(nn.Module):
    """Sums word, position and token type embeddings and normalises the sum."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, tokens: TokenArray, token_types: TokenArray, columns: Int[Array, '#batch length']
    ) -> Float[Array, 'batch length hidden']:
        """Embeds tokens, in float32; `columns` are their positions in their texts."""
        config = self.config
        width = config.embedding_size or config.hidden_size

        embed = functools.partial(nn.Embed, features=width, embedding_init=INITIALIZER)

        def project(x, use_bias):
            if width == config.hidden_size:
                return x
            return _dense(config, config.hidden_size, 'project', use_bias)(x)

        x = embed(config.vocab_size, name='word')(tokens)
        if config.position_embeddings:
            table = embed(config.position_offset + config.max_positions, name='position')
            x += table(config.position_offset + columns)
        if config.type_vocab_size:
            x += embed(config.type_vocab_size, name='token_type')(token_types)
        if config.project_first:
            return layer_norm(config, 'norm')(project(x, use_bias=False))
        return project(layer_norm(config, 'norm')(x), use_bias=True)


class Positions(nn.Module):
    """Computes what all layers share about relative positions in rows of one length.

    Returns `[1, H, L, L]` float32 logit biases for `RelativeBias`, `[2L - 1, D]` float32
    embeddings by distance for `Disentangled`, else None.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, length: int
    ) -> Float[Array, '1 heads length length'] | Float[Array, 'distances hidden'] | None:
        relative = self.config.relative
        distances = np.arange(1 - length, length)  # Key minus query.
        table = functools.partial(nn.Embed, embedding_init=INITIALIZER, name='relative')
        if isinstance(relative, RelativeBias):
            embed = table(relative.num_buckets, self.config.num_heads)
            bias = embed(jnp.asarray(positions.bias_buckets(distances, relative))).T[:, None]
            return positions.skew(jnp.broadcast_to(bias, (len(bias), length, bias.shape[-1])))[None]
        if isinstance(relative, Disentangled):
            embed = table(2 * relative.span, self.config.hidden_size)
            rows = embed(jnp.asarray(positions.disentangled_rows(distances, relative)))
            return layer_norm(self.config, 'norm')(rows) if relative.norm else rows
        return None


class Attention(nn.Module):
    """Multi-head self-attention."""

    config: TransformerConfig
    local: bool = False  # Whether tokens attend only within `config.window`.
    packed: bool = False  # Whether rows hold several texts.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'tokens hidden'],
        segments: TokenArray,
        shared: Float[Array, '...'] | None,
    ) -> Float[Array, 'tokens hidden']:
        """Attends; `shared` is the output of `Positions`."""
        config, relative = self.config, self.config.relative
        (B, L), D = segments.shape, x.shape[-1]
        project = {name: _dense(config, D, name) for name in ('query', 'key', 'value')}

        def heads(x):
            return x.reshape(*x.shape[:-1], config.num_heads, config.head_size)

        query, key, value = (heads(dense(x).reshape(B, L, D)) for dense in project.values())
        scale, bias = 1 / math.sqrt(config.head_size), None
        if isinstance(relative, RelativeBias):
            bias = shared
        elif isinstance(relative, Rotary):
            theta = relative.local_theta if self.local else relative.theta
            angles = positions.rotary_angles(L, config.head_size, theta)
            query, key = positions.rotate(query, angles), positions.rotate(key, angles)
        elif isinstance(relative, Disentangled) and relative.terms:
            # Logits sum 1 + len(terms) products of equal size.
            scale /= math.sqrt(1 + len(relative.terms))

            def by_distance(name):
                if relative.share_key:
                    return heads(project[name](shared))
                return heads(_dense(config, D, f'position_{name}')(shared))

            bias = scale * positions.disentangled_bias(
                query,
                key,
                to_key=by_distance('key') if 'c2p' in relative.terms else None,
                to_query=by_distance('query') if 'p2c' in relative.terms else None,
            )
        attended = attention(
            query,
            key,
            value,
            segments=segments,
            packed=self.packed,
            bias=bias,
            scale=scale,
            window=config.window if self.local else None,
        )
        return _dense(config, D, 'output')(attended.reshape(B * L, D))


class FeedForward(nn.Module):
    """Two dense layers with an activation between them, gated where the config says so."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, 'tokens hidden']) -> Float[Array, 'tokens hidden']:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        if jnp.dtype(config.dtype) == jnp.bfloat16:
            # Accelerators would keep the activation's input and output for the backward pass;
            # reading the output takes longer than recomputing it. On CPUs it is the reverse.
            activation = jax.checkpoint(activation)
        up = _dense(config, config.intermediate_size, 'up')(x)
        if config.gated:
            hidden = activation(_dense(config, config.intermediate_size, 'gate')(x)) * up
        else:
            hidden = activation(up)
        return _dense(config, config.hidden_size, 'down')(hidden)


class Dropout(nn.Module):
    """Dropout whose random bits depend only on a row's number, not on the rest of the batch."""

    rate: float  # Share of the values set to 0; the others are scaled up to keep the mean.

    @nn.compact
    def __call__(
        self, x: Float[Array, 'tokens ...'], rows: RowNumbers | None
    ) -> Float[Array, 'tokens ...']:
        """Drops values of `rows`, which follow one another in `x`; None returns `x` as it is."""
        if rows is None or not self.rate:
            return x
        key, shape = self.make_rng('dropout'), (x.shape[0] // rows.size, *x.shape[1:])

        def keep(row):
            return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - self.rate, shape)

        return jnp.where(jax.vmap(keep)(rows).reshape(x.shape), x / (1 - self.rate), 0)


class Layer(nn.Module):
    """Attention and feed-forward, each in a residual branch with a layer norm."""

    config: TransformerConfig
    index: int  # Of the layer.
    packed: bool = False  # Whether rows hold several texts.

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'tokens hidden'],
        segments: TokenArray,
        shared: Float[Array, '...'] | None,
        dropout_rows: RowNumbers | None,
    ) -> Float[Array, 'tokens hidden']:
        config = self.config

        def residual(x, branch, name):
            # The first branch directly follows the norm of the embeddings and needs none.
            norm_first = config.norm_first and (self.index, name) != (0, 'attention_norm')
            inner = layer_norm(config, name)(x) if norm_first else x
            update = branch(inner.astype(config.dtype))
            update = Dropout(config.dropout)(update, dropout_rows)
            # Sum in float32: bfloat16 would round the residual stream twice in every layer.
            total = x.astype(jnp.float32) + update.astype(jnp.float32)
            return total if config.norm_first else layer_norm(config, name)(total).astype(x.dtype)

        local = self.index in config.local_layers
        attention = Attention(config, local, self.packed, name='attention')
        x = residual(x, lambda x: attention(x, segments, shared), 'attention_norm')
        return residual(x, FeedForward(config, name='ffn'), 'ffn_norm')


class Transformer(nn.Module):
    """BERT's encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) and its successors.

    It has no pooler. RoBERTa, MPNet, DeBERTa, ... (`families.FAMILIES`) are this module with other
    configs; parameters that families share have the same paths in all of them.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: TokenArray,
        token_types: TokenArray | None = None,
        *,
        segments: TokenArray | None = None,
        dropout_rows: RowNumbers | None = None,
    ) -> Float[Array, 'batch length hidden']:
        """Encodes rows of tokens.

        Args:
            tokens: Ids; padding (see `real_tokens`) is masked as a key.
            token_types: Which text of a pair each token belongs to; None for all 0. Ignored if the
                family has no token types.
            segments: For rows that hold several texts one after another, int32: the index from 1
                of the token's text, 0 for padding. Each text is encoded as if it were alone. None
                if each row is one text.
            dropout_rows: Row numbers that seed dropout, which then needs the 'dropout' rng if its
                rate is above 0; None for no dropout.

        Returns:
            States in `config.dtype`; at padding they are finite but meaningless.

        Raises:
            ValueError: if a row that is one text has more tokens than `config.max_positions`.
        """
        config, length, packed = self.config, tokens.shape[1], segments is not None
        if length > config.max_positions and not packed:
            raise ValueError(
                f'Rows of {length} tokens, but the model has {config.max_positions} '
                'positions (max_positions); truncate to that length.'
            )
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        columns = jnp.arange(length)[None]
        if segments is None:
            segments = real_tokens(tokens, config.pad_id).astype(jnp.int32)
        else:
            first = jnp.diff(segments, axis=1, prepend=-1) != 0
            columns = columns - jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
            columns = jnp.minimum(columns, config.max_positions - 1)  # Padding may be longer.
        if config.position_offset:
            columns = _fairseq_columns(tokens, columns, config.pad_id)
        x = Embeddings(config, name='embeddings')(tokens, token_types, columns)
        x = Dropout(config.dropout)(x, dropout_rows)
        # Norms after each sum undo rounding; a stream without them stays in float32.
        x = x if config.norm_first else x.astype(config.dtype)
        shared = Positions(config, name='positions')(length)
        # Tokens on one axis: with two, XLA on a CPU transposes all states once more for every
        # gradient of a dense layer.
        shape = x.shape
        x = x.reshape(-1, config.hidden_size)
        layer = Layer
        if config.remat != 'none':
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            layer = nn.remat(Layer, policy=dots if config.remat == 'dots' else None)
        for i in range(config.num_layers):
            x = layer(config, i, packed, name=f'layer_{i}')(x, segments, shared, dropout_rows)
        if config.norm_first:
            x = layer_norm(config, 'final_norm')(x)
        return x.astype(config.dtype).reshape(shape)


def param_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by its path, such as `layer_0/ffn/up/bias`."""
    return init_shapes(Transformer(config))


def init_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of a module that reads tokens and token types."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)['params']
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
    return {path: leaf.shape for path, leaf in flat.items()}
