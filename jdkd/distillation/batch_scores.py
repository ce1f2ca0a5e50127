"""Forward passes: a model's scores of a batch of candidate lists.

A score function maps `(params, batch, dropout key or None)` to `BatchScores`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jdkd.distillation import losses
from jdkd.lists.packing import RowSpec
from jdkd.models import cross_encoder, dual_encoder

_ONE_TEXT_A_ROW = RowSpec()

Batch = Mapping[str, Any]
Slots = Int[Array | np.ndarray, 'lists candidates']
# A tile's token ids, segments or token types, or the numbers of its rows.
Rows = Int[Array | np.ndarray, 'rows *length']


class Prefix(NamedTuple):
    """What the first dimensions of the embeddings score; see `BatchScores`."""

    contrastive: Float[Array, 'lists columns']
    queries: Float[Array, 'lists dim']
    originals: Float[Array, 'lists originals dim']
    normalize: bool  # Whether they have unit length, as targets must then.


class BatchScores(NamedTuple):
    """A model's scores of a batch.

    Attributes:
        lists: `[B, N]` logits of each list.
        contrastive: `[B, C]` logits of the contrastive softmax.
        labels: `[B]` its columns of the positives.
        mask: `[B, C]` bool, the columns that enter it; None in a batch without judgements.
        queries, originals: `[B, D]` and `[B, N_o, D]` embeddings; None for a cross-encoder.
        pool: `[B, U]` logits of the query and stored embeddings of passages, if the batch has them.
        prefixes: One for each width below D that the embeddings may be cut to.
    """

    lists: Float[Array, 'lists candidates']
    contrastive: Float[Array, 'lists columns']
    labels: Int[Array, ' lists']
    mask: Bool[Array | np.ndarray, 'lists columns'] | None
    queries: Float[Array, 'lists dim'] | None = None
    originals: Float[Array, 'lists originals dim'] | None = None
    pool: Float[Array, 'lists pooled'] | None = None
    prefixes: tuple[Prefix, ...] = ()


ScoreFn = Callable[..., BatchScores]


def make_score_fn(model: Any, scale: float, rows: RowSpec, dims: Sequence[int] = ()) -> ScoreFn:
    """The score function of a `DualEncoder`, with logits per unit of score, or a `CrossEncoder`.

    `dims` are the widths that a dual-encoder's embeddings may be cut to.
    """
    if isinstance(model, cross_encoder.CrossEncoder):
        return cross_encoder_scores(model, rows)
    return dual_encoder_scores(model, scale, rows, dims)


def dual_encoder_scores(
    model: dual_encoder.DualEncoder,
    scale: float,
    rows: RowSpec = _ONE_TEXT_A_ROW,
    dims: Sequence[int] = (),
) -> ScoreFn:
    """Scaled inner products; the contrastive scores span the global batch."""
    width = dual_encoder.embedding_width(model)
    dims = sorted({dim for dim in dims if dim < width}, reverse=True)
    # Scores are float32 products: TPUs would multiply in bfloat16 by default.
    exact = jax.lax.Precision.HIGHEST

    def in_batch(query_BxD, originals_BxNxD):
        # Every query against every original of the global batch: XLA gathers the shards.
        originals_CxD = originals_BxNxD.reshape(-1, originals_BxNxD.shape[-1])
        return scale * jnp.matmul(query_BxD, originals_CxD.T, precision=exact)

    def cut(dim, query_BxD, originals_BxNxD):
        query_BxD = dual_encoder.prefix(query_BxD, dim, normalize=model.normalize)
        originals_BxNxD = dual_encoder.prefix(originals_BxNxD, dim, normalize=model.normalize)
        in_batch_BxC = in_batch(query_BxD, originals_BxNxD)
        return Prefix(in_batch_BxC, query_BxD, originals_BxNxD, model.normalize)

    def score(params: Any, batch: Batch, key: Array | None) -> BatchScores:
        def tower(name):
            variables = {'params': dual_encoder.tower(params, name)}
            return functools.partial(model.apply, variables, num_segments=rows.texts)

        key_q, key_p = (None, None) if key is None else jax.random.split(key)
        B, num_originals = batch['group'].shape
        query_BxD = _in_chunks(tower('query'), (batch['query'],), key_q, rows)
        inputs = [batch[name] for name in ('tokens', 'segments') if name in batch]
        passage_BxNxD = _candidates(tower('passage'), inputs, batch['slots'], key_p, rows)
        lists_BxN = scale * jnp.einsum('bd,bnd->bn', query_BxD, passage_BxNxD, precision=exact)
        embeddings = query_BxD, passage_BxNxD[:, :num_originals]
        mask_BxC = None
        if 'relevant' in batch:
            marks = batch['relevant'], batch['false_negative']
            mask_BxC = losses.negatives_mask(batch['group'], *marks)
        labels_B = jnp.arange(B) * num_originals
        pool_BxU = None
        if 'pool_embedding' in batch:
            pool_BxUxD = batch['pool_embedding']
            pool_BxU = scale * jnp.einsum('bd,bud->bu', query_BxD, pool_BxUxD, precision=exact)
        prefixes = tuple(cut(dim, *embeddings) for dim in dims)
        return BatchScores(
            lists_BxN, in_batch(*embeddings), labels_B, mask_BxC, *embeddings, pool_BxU, prefixes
        )

    return score


def cross_encoder_scores(
    model: cross_encoder.CrossEncoder, rows: RowSpec = _ONE_TEXT_A_ROW
) -> ScoreFn:
    """One forward pass a pair; the contrastive scores are those of a query's own originals."""

    def score(params: Any, batch: Batch, key: Array | None) -> BatchScores:
        def apply(*inputs, **dropout):
            scores: Any = model.apply({'params': params}, *inputs, **dropout)
            return scores[:, None]

        inputs = [batch['tokens'], batch['token_types']]
        lists_BxN = _candidates(apply, inputs, batch['slots'], key, rows)[..., 0]
        B, num_originals = batch['group'].shape
        own_BxC, labels_B = lists_BxN[:, :num_originals], jnp.zeros(B, jnp.int32)
        return BatchScores(lists_BxN, own_BxC, labels_B, ~batch['false_negative'])

    return score


def _candidates(
    apply: Callable,
    inputs: Sequence[Sequence[Int[Array | np.ndarray, '_ _']]],
    slots_BxN: Slots,
    key: Array | None,
    rows: RowSpec,
) -> Float[Array, 'lists candidates dim']:
    """`[B, N, D]`: `apply` on tiles of rows of several lengths, gathered by candidate."""
    outputs = []
    for i, tile in enumerate(zip(*inputs, strict=True)):
        key_i = None if key is None else jax.random.fold_in(key, i)
        output = _in_chunks(apply, tile, key_i, rows)
        outputs.append(output.reshape(-1, output.shape[-1]))
    return jnp.concatenate(outputs)[slots_BxN]


def _in_chunks(
    apply: Callable, inputs: tuple[Rows, ...], key: Array | None, rows: RowSpec
) -> Float[Array, ' rows *outputs']:
    """`apply(*inputs)`, row by row, in chunks that the backward pass computes again.

    Memory holds the activations of one chunk, and gradients are exact, dropout included: gradient
    caching (Gao et al., 2021, https://arxiv.org/abs/2101.06983).
    """

    def apply_to(row_numbers, *inputs):
        if key is None:
            return apply(*inputs)
        return apply(*inputs, dropout_rows=row_numbers, rngs={'dropout': key})

    inputs = (jnp.arange(len(inputs[0])), *inputs)
    if rows.chunks == 1:
        return apply_to(*inputs)

    def split(x):
        # Each part, and so each device, has its share of each chunk.
        x = x.reshape(rows.parts, rows.chunks, -1, *x.shape[1:])
        return jnp.swapaxes(x, 0, 1).reshape(rows.chunks, -1, *x.shape[3:])

    chunk = jax.checkpoint(lambda chunk: apply_to(*chunk))
    output = jax.lax.map(chunk, tuple(map(split, inputs)))
    output = output.reshape(rows.chunks, rows.parts, -1, *output.shape[2:])
    return jnp.swapaxes(output, 0, 1).reshape(-1, *output.shape[3:])
