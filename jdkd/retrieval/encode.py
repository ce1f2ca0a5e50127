"""Encoding many texts on the device: sorted by length, in few compiled shapes."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from jdkd.models.transformer import row_lengths
from jdkd.runtime import mesh as meshes

BUCKETS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # Token lengths that are compiled.
_TOKENS_PER_BATCH = 8192  # Per device; on a CPU larger batches fall out of its caches.


def map_rows(
    fn: Callable[..., jax.Array],
    arrays: dict[str, np.ndarray],
    *,
    lengths: np.ndarray,
    mesh: Mesh,
    desc: str,
) -> np.ndarray:
    """Applies a jitted function of a batch of token rows to any number of rows.

    Rows are sorted by length and padded to the shortest bucket that holds them, so that no
    computation is spent on long padding and each bucket compiles once.

    Args:
        fn: `fn(**batch) -> [rows, ...]`, row by row; compiled per bucket.
        arrays: `[n, max_length]` each, padded on the right.
        lengths: `[n]` real tokens of each row.
        mesh: Rows are split over its `data` axis.
        desc: Name of the progress bar.

    Returns:
        `[n, ...]` float32 in the order of the input.
    """
    n, max_length = next(iter(arrays.values())).shape
    ways = mesh.shape['data']
    sharding = meshes.batch_sharding(mesh)
    order = np.argsort(lengths, kind='stable')
    out, pending = None, []

    def collect(rows, result):
        nonlocal out
        result = np.asarray(result, np.float32)[: len(rows)]
        if out is None:
            out = np.empty((n, *result.shape[1:]), np.float32)
        out[rows] = result

    with tqdm.tqdm(total=n, desc=desc, unit='rows', disable=n < 512) as bar:
        start = 0
        for bucket in [*(b for b in BUCKETS if b < max_length), max_length]:
            end = int(np.searchsorted(lengths[order], bucket, side='right'))
            size = max(_TOKENS_PER_BATCH // bucket, 1) * ways
            while start < end:
                rows = order[start : min(start + size, end)]
                # The last batch of a bucket repeats its rows, so that no shape is added.
                padded = np.resize(rows, size) if len(rows) < size else rows
                batch = {k: v[padded, :bucket].astype(np.int32) for k, v in arrays.items()}
                # Dispatched before the result of the batch before is fetched.
                pending.append((rows, fn(**meshes.to_device(batch, sharding))))
                if len(pending) > 1:
                    collect(*pending.pop(0))
                start += len(rows)
                bar.update(len(rows))
        for item in pending:
            collect(*item)
    if out is None:
        raise ValueError(f'{desc}: nothing to encode; there must be at least one row.')
    return out


@functools.partial(jax.jit, static_argnames='model')
def _embed(model, params, tokens):
    return model.apply({'params': params}, tokens)


def embed(model, params, tokens: np.ndarray, *, pad_id: int, mesh: Mesh, desc: str) -> np.ndarray:
    """Embeddings `[n, dim]` float32 of token rows `[n, length]` by a dual-encoder.

    Args:
        model: `DualEncoder` module.
        params: Its parameters, on the mesh.
        tokens: Padded ids.
        pad_id: Id of the padding token.
        mesh: Where to compute.
        desc: Name of the progress bar.
    """
    return map_rows(
        lambda tokens: _embed(model, params, tokens),
        {'tokens': tokens},
        lengths=row_lengths(tokens, pad_id),
        mesh=mesh,
        desc=desc,
    )


@functools.partial(jax.jit, static_argnames='model')
def _score_pairs(model, params, tokens, token_types):
    return model.apply({'params': params}, tokens, token_types)


def score_pairs(
    model,
    params,
    tokens: np.ndarray,
    token_types: np.ndarray,
    *,
    pad_id: int,
    mesh: Mesh,
    desc: str,
) -> np.ndarray:
    """Logits `[n]` float32 of joined pairs `[n, length]` by a cross-encoder."""
    return map_rows(
        lambda tokens, token_types: _score_pairs(model, params, tokens, token_types),
        {'tokens': tokens, 'token_types': token_types},
        lengths=row_lengths(tokens, pad_id),
        mesh=mesh,
        desc=desc,
    )
