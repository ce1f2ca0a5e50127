"""The bidirectional Transformer encoder that every retriever and cross-encoder shares.

Families differ in `TransformerConfig` alone. Shapes: B rows, L tokens a row, D hidden units, H
heads of size d. Parameters are float32; the matrix products run in `config.dtype`; layer norms,
softmax, the embedding sum and residual sums run in float32.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jdkd.models import positions
from jdkd.models.attention import attention
from jdkd.models.config import ACTIVATIONS, Disentangled, RelativeBias, Rotary, TransformerConfig


def real_tokens(tokens: jax.Array, pad_id: int) -> jax.Array:
    """`[B, L]` bool: all but the padding on the right.

    A text may spell out the padding token (documentation of tokenizers does): that one is text.
    """
    return jax.lax.cummax((tokens != pad_id).astype(jnp.int8), axis=1, reverse=True) > 0


def layer_norm(config: TransformerConfig, name: str) -> nn.LayerNorm:
    """A layer norm in float32, whatever the dtype."""
    # The fast variance, E[x^2] - E[x]^2, loses digits where a few units are very large.
    return nn.LayerNorm(
        epsilon=config.layer_norm_eps,
        dtype=jnp.float32,
        use_bias=config.use_bias,
        use_fast_variance=False,
        name=name,
    )


def _dense(config: TransformerConfig, features: int, name: str, use_bias=None) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=config.dtype,
        use_bias=config.use_bias if use_bias is None else use_bias,
        kernel_init=nn.initializers.normal(0.02),
        name=name,
    )


class Embeddings(nn.Module):
    """Word + position + token type, normalised: `[B, L]` ids to `[B, L, D]` float32.

    `columns` are `[1 or B, L]` positions of the tokens in their texts.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, token_types: jax.Array, columns: jax.Array) -> jax.Array:
        config = self.config
        width = config.embedding_size or config.hidden_size

        def embed(size, name):
            return nn.Embed(size, width, embedding_init=nn.initializers.normal(0.02), name=name)

        def project(x, use_bias):
            if width == config.hidden_size:
                return x
            return _dense(config, config.hidden_size, 'project', use_bias)(x)

        x = embed(config.vocab_size, 'word')(tokens)
        if config.position_embeddings:
            table = embed(config.position_offset + config.max_positions, 'position')
            x += table(config.position_offset + columns)
        if config.type_vocab_size:
            x += embed(config.type_vocab_size, 'token_type')(token_types)
        if config.project_first:
            return layer_norm(config, 'norm')(project(x, use_bias=False))
        return project(layer_norm(config, 'norm')(x), use_bias=True)


class Positions(nn.Module):
    """What all layers share, for rows of one length; None where there is nothing.

    `[1, H, L, L]` float32 logit bias for `RelativeBias`; `[2L - 1, D]` float32 embeddings by
    distance for `Disentangled`.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, length: int) -> jax.Array | None:
        relative = self.config.relative

        def table(rows, width):
            init = nn.initializers.normal(0.02)
            return nn.Embed(rows, width, embedding_init=init, name='relative')

        if isinstance(relative, RelativeBias):
            embed = table(relative.num_buckets, self.config.num_heads)
            bias = embed(positions.bias_buckets(positions.distances(length), relative)).T[:, None]
            return positions.skew(jnp.broadcast_to(bias, (len(bias), length, bias.shape[-1])))[None]
        if isinstance(relative, Disentangled):
            embed = table(2 * relative.span, self.config.hidden_size)
            rows = embed(positions.disentangled_rows(positions.distances(length), relative))
            return layer_norm(self.config, 'norm')(rows) if relative.norm else rows
        return None


class Attention(nn.Module):
    """Multi-head self-attention: `[B * L, D]` states and `[B, L]` segments to `[B * L, D]`.

    Attributes:
        config: Of the encoder.
        local: Whether it attends in `config.window` only.
        packed: Whether rows hold several texts.
    """

    config: TransformerConfig
    local: bool = False
    packed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, shared: jax.Array | None) -> jax.Array:
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
            # The logits are sums of as many terms, each as large as the first.
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
        window = config.window if self.local else None
        x = attention(
            query,
            key,
            value,
            segments=segments,
            packed=self.packed,
            bias=bias,
            scale=scale,
            window=window,
        )
        return _dense(config, D, 'output')(x.reshape(B * L, D))


class FeedForward(nn.Module):
    """Two dense layers with an activation between: `[B * L, D]` to `[B * L, D]`."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        if jnp.dtype(config.dtype) == jnp.bfloat16:
            # Of two arrays, in and out, accelerators would keep both for the backward pass, which
            # takes longer to read than to compute again. On CPUs it is the other way round.
            activation = jax.checkpoint(activation)
        up = _dense(config, config.intermediate_size, 'up')(x)
        if config.gated:
            hidden = activation(_dense(config, config.intermediate_size, 'gate')(x)) * up
        else:
            hidden = activation(up)
        return _dense(config, config.hidden_size, 'down')(hidden)


class Dropout(nn.Module):
    """Dropout that gives every row bits of its own, whatever rows it is computed with.

    Attributes:
        rate: Share of the values that become 0; the others grow by as much.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        """Drops out.

        Args:
            x: `[B * n, ...]` values of B rows, one after another.
            rows: `[B]` numbers of the rows, of which their bits are a function; None for all of `x`
                as it is.
        """
        if rows is None or not self.rate:
            return x
        key, shape = self.make_rng('dropout'), (x.shape[0] // rows.size, *x.shape[1:])

        def keep(row):
            return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - self.rate, shape)

        return jnp.where(jax.vmap(keep)(rows).reshape(x.shape), x / (1 - self.rate), 0)


class Layer(nn.Module):
    """Attention and feed-forward, each in a residual branch with a layer norm: `[B * L, D]` states.

    Attributes:
        config: Of the encoder.
        index: Of the layer.
        packed: Whether rows hold several texts.
    """

    config: TransformerConfig
    index: int
    packed: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segments: jax.Array,
        shared: jax.Array | None,
        dropout_rows: jax.Array | None,
    ) -> jax.Array:
        config = self.config

        def residual(x, branch, name):
            # The norm of the embeddings has just been: the first branch needs none.
            norm_first = config.norm_first and (self.index, name) != (0, 'attention_norm')
            inner = layer_norm(config, name)(x) if norm_first else x
            update = branch(inner.astype(config.dtype))
            update = Dropout(config.dropout)(update, dropout_rows)
            # Summed in float32: bfloat16 would round the stream twice in every layer.
            total = x.astype(jnp.float32) + update.astype(jnp.float32)
            return total if config.norm_first else layer_norm(config, name)(total).astype(x.dtype)

        local = self.index in config.local_layers
        attention = Attention(config, local, self.packed, name='attention')
        x = residual(x, lambda x: attention(x, segments, shared), 'attention_norm')
        return residual(x, FeedForward(config, name='ffn'), 'ffn_norm')


class Transformer(nn.Module):
    """BERT's encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) and its successors.

    Without a pooler. What `families.FAMILIES` says is RoBERTa, MPNet, DeBERTa, ... is this module
    with another config; parameters that several families have are at the same paths in all.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None = None,
        *,
        segments: jax.Array | None = None,
        dropout_rows: jax.Array | None = None,
    ) -> jax.Array:
        """States of every token.

        Args:
            tokens: `[B, L]` integer ids; padding (see `real_tokens`) is masked as a key.
            token_types: `[B, L]` integers, which text of a pair; None for all 0. Ignored where
                the family has none.
            segments: `[B, L]` int32 for rows of several texts, one after another: above 0 the
                text that a token belongs to, 0 for padding. Each text is encoded as if it were
                alone. None: a row is a text.
            dropout_rows: `[B]` numbers of the rows, to drop out; needs the 'dropout' rng where the
                rate is above 0. None: nothing is dropped.

        Returns:
            `[B, L, D]` states in `config.dtype`; those of padding are finite and mean nothing.

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
        if packed:
            first = jnp.diff(segments, axis=1, prepend=-1) != 0
            columns = columns - jax.lax.cummax(jnp.where(first, columns, 0), axis=1)
            columns = jnp.minimum(columns, config.max_positions - 1)  # Padding may be longer.
        else:
            segments = real_tokens(tokens, config.pad_id).astype(jnp.int32)
        x = Embeddings(config, name='embeddings')(tokens, token_types, columns)
        x = Dropout(config.dropout)(x, dropout_rows)
        # Norms restore what rounding loses; a stream that none stands in stays in float32.
        x = x if config.norm_first else x.astype(config.dtype)
        shared = Positions(config, name='positions')(length)
        # One row a token: with two axes of rows, XLA on a CPU transposes all states once more for
        # every gradient of a dense layer.
        shape = x.shape
        x = x.reshape(-1, config.hidden_size)
        layer = Layer
        if config.remat != 'none':
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if config.remat == 'dots' else None
            layer = nn.remat(Layer, policy=policy)
        for i in range(config.num_layers):
            x = layer(config, i, packed, name=f'layer_{i}')(x, segments, shared, dropout_rows)
        if config.norm_first:
            x = layer_norm(config, 'final_norm')(x)
        return x.astype(config.dtype).reshape(shape)


def param_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of `Transformer(config)`, by its path (`layer_0/ffn/up/bias`)."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)
    flat = traverse_util.flatten_dict(variables['params'], sep='/')
    return {path: leaf.shape for path, leaf in flat.items()}
