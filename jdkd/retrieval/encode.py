"""Runs encoders over many texts: sorted by length, in few compiled shapes."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh

from jdkd.config.fields import STORES
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, embedding_width
from jdkd.retrieval import vectors
from jdkd.runtime import mesh as meshes
from jdkd.runtime import progress
from jdkd.runtime.parts import write_parts
from jdkd.tokens.pairs import join_pairs
from jdkd.tokens.store import TokenStore

# Compiled token lengths; from 64 on, four between a power of two and the next.
BUCKETS = (16, 24, 32, 48, *((4 + i) * 2**n for n in range(4, 11) for i in range(4)))


def buckets(max_length: int) -> np.ndarray:
    """Returns the lengths, rising, that rows of up to `max_length` tokens are padded to."""
    return np.array([*(b for b in BUCKETS if b < max_length), max_length])


def rows_per_batch(bucket: int, mesh: Mesh) -> int:
    """Returns how many rows of `bucket` tokens form a batch."""
    # With 2,048 tokens a layer's outputs fit into a CPU's caches: a sixth faster.
    tokens = 2048 if mesh.devices.flat[0].platform == 'cpu' else 8192  # For each device.
    return max(tokens // bucket, 1) * mesh.shape['data']


def map_rows(
    fn: Callable[..., jax.Array],
    rows: Callable[[np.ndarray, int], dict[str, np.ndarray]],
    *,
    lengths: np.ndarray,
    max_length: int,
    mesh: Mesh,
    desc: str,
    name: Callable[[int], str] = 'row {}'.format,
) -> np.ndarray:
    """Applies a jitted function to any number of token rows, in batches.

    Rows are sorted by length, longest first, and each batch is padded to the shortest bucket that
    holds it, so that little is spent on padding and each bucket compiles once. Batches are gathered
    while the device computes earlier ones; the host holds the result, three batches and 16 bytes
    per row. Each process maps its own rows on its own devices.

    Args:
        fn: `fn(**batch) -> [rows, ...]`, independent for each row; compiled per bucket.
        rows: (row numbers `[m]`, bucket) -> arrays `[m, bucket]`, padded on the right.
        lengths: `[n]` number of real tokens of each row.
        max_length: Their upper limit.
        mesh: Mesh whose local `data` axis splits the rows.
        desc: Label of the progress bar.
        name: Name of a row in messages.

    Returns:
        `[n, ...]` float32 in the order of the input.

    Raises:
        ValueError: if there are no rows.
        FloatingPointError: at the first batch with a result that is not finite; names the row.
    """
    mesh = mesh.local_mesh
    n, num_devices = len(lengths), mesh.shape['data']
    if not n:
        raise ValueError(f'{desc}: nothing to encode; there must be at least one row.')
    sharding = meshes.batch_sharding(mesh)
    bucket_lengths = buckets(max_length)
    # Few rows make a smaller batch, of a power of two so that few shapes are added.
    max_rows = -(-(1 << (n - 1).bit_length()) // num_devices) * num_devices
    order = np.argsort(-lengths, kind='stable')
    start, pending, out = 0, [], None
    with progress.bar(n, desc, 'rows', quiet=n < 512) as bar:
        while start < n or pending:
            if start < n:
                bucket = int(bucket_lengths[np.searchsorted(bucket_lengths, lengths[order[start]])])
                size = min(rows_per_batch(bucket, mesh), max_rows)
                numbers = order[start : start + size]
                # The last batch repeats rows to keep its shape.
                batch = rows(np.resize(numbers, size), bucket)
                batch = {key: array.astype(np.int32) for key, array in batch.items()}
                # Dispatch before fetching the results of earlier batches.
                pending.append((numbers, fn(**meshes.to_device(batch, sharding))))
                start += len(numbers)
                bar.update(len(numbers))
                if len(pending) < 3:
                    continue
            numbers, result = pending.pop(0)
            result = np.asarray(result, np.float32)[: len(numbers)]
            finite = np.isfinite(result.reshape(len(result), -1)).all(axis=1)
            if not np.all(finite):
                raise FloatingPointError(
                    f"{desc}: the model's output for {name(int(numbers[~finite][0]))} is not "
                    f'finite, like {(~finite).sum()} of the {len(numbers)} rows of its batch; '
                    "check the model's weights, or compute in float32 (dtype)."
                )
            out = np.empty((n, *result.shape[1:]), np.float32) if out is None else out
            out[numbers] = result
    assert out is not None
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_batch(model: nn.Module, mesh: AbstractMesh, params, **batch: Any) -> Any:
    """Applies a model to a batch of token rows, on an abstract mesh."""
    with jax.sharding.use_abstract_mesh(mesh):  # Fused attention reads it.
        return model.apply({'params': params}, **batch)


def embed(
    model: DualEncoder,
    params,
    tokens: TokenStore,
    *,
    rows: range | None = None,
    mesh: Mesh,
    desc: str,
    name: Callable[[int], str] = 'row {}'.format,
) -> np.ndarray:
    """Embeds the texts of `tokens` in `rows` (None for all) in memory: `[n, dim]` float32.

    `params` lie on the mesh; see `map_rows` for `desc` and `name`, which numbers rows of `tokens`.
    """
    rows = range(len(tokens)) if rows is None else rows
    return map_rows(
        functools.partial(apply_batch, model, mesh.local_mesh.abstract_mesh, params),
        lambda numbers, bucket: {'tokens': tokens.rows(rows.start + numbers, bucket)},
        lengths=tokens.lengths[rows.start : rows.stop],
        max_length=tokens.length,
        mesh=mesh,
        desc=desc,
        name=lambda row: name(rows.start + row),
    )


def write_embeddings(
    directory: pathlib.Path,
    model: DualEncoder,
    params,
    tokens: TokenStore,
    *,
    store: str,
    mesh: Mesh,
    desc: str,
    name: Callable[[int], str] = 'row {}'.format,
    file_rows: int = vectors.FILE_ROWS,
) -> None:
    """Writes the embeddings of any number of texts; `vectors.load` reads them.

    A builder of a resumable stage: an interruption does not change a bit of the output. Processes,
    each with a mesh of its own devices, share out the files. Besides `map_rows` and 4 bytes per
    text for its length, the host holds the embeddings of one file (and a copy if it is rounded).

    Raises:
        ValueError: if `store` is not one of `STORES`, or is 'binary' and the embeddings are not
            normalised or their width is no multiple of 8.
    """
    if store not in STORES:
        raise ValueError(f"index.store is '{store}'; use one of {', '.join(STORES)}.")
    if store == 'binary':
        check_binary(embedding_width(model), normalize=model.normalize)
    count = -(-len(tokens) // file_rows)

    def write(i, file):
        rows = range(i * file_rows, min((i + 1) * file_rows, len(tokens)))
        label = f'{desc} {i + 1}/{count}' if count > 1 else desc
        embeddings = embed(model, params, tokens, rows=rows, mesh=mesh, desc=label, name=name)
        vectors.save(file, embeddings, store)

    write_parts(directory, vectors.FILE_NAME, count, write)


def check_binary(width: int, *, normalize: bool) -> None:
    """Raises a ValueError if embeddings of a width cannot be kept as signs, eight a byte."""
    if not normalize:
        raise ValueError(
            "index.store='binary' keeps signs alone, and these embeddings are compared by inner "
            "product, to which their lengths count; use 'int8'."
        )
    if width % 8:
        raise ValueError(
            f"index.store='binary' packs 8 dimensions into a byte, and {width} is no multiple of "
            "8; use 'int8'."
        )


def score_pairs(
    model: CrossEncoder,
    params,
    queries: TokenStore,
    query_rows: np.ndarray,
    passages: TokenStore,
    passage_rows: np.ndarray,
    *,
    separators: int,
    mesh: Mesh,
    desc: str,
    name: Callable[[int], str] = 'row {}'.format,
) -> np.ndarray:
    """Scores tokenised pairs with a cross-encoder, `[n]` float32 logits.

    Args:
        model: Module, with `params` on the mesh.
        query_rows: `[n]` query of each pair.
        passage_rows: `[n]` passage of each pair.
        separators: [SEP] tokens between the texts of a pair; see `join_pairs`.
        desc, name: See `map_rows`.
    """
    extra = separators - 2  # Tokens of a pair beyond those of its two texts.

    def join(numbers, bucket):
        tokens, token_types = join_pairs(
            queries.rows(query_rows[numbers]),
            passages.rows(passage_rows[numbers]),
            queries.pad_id,
            separators,
        )
        return {'tokens': tokens[:, :bucket], 'token_types': token_types[:, :bucket]}

    return map_rows(
        functools.partial(apply_batch, model, mesh.local_mesh.abstract_mesh, params),
        join,
        lengths=queries.lengths[query_rows] + passages.lengths[passage_rows] + extra,
        max_length=queries.length + passages.length + extra,
        mesh=mesh,
        desc=desc,
        name=name,
    )
