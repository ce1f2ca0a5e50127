"""Encoding many texts on the device: sorted by length, in few compiled shapes."""

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from jdkd.retrieval import vectors
from jdkd.runtime import distributed
from jdkd.runtime import mesh as meshes
from jdkd.runtime.parts import write_parts
from jdkd.tokens.pairs import join_pairs
from jdkd.tokens.store import TokenStore

# Token lengths that are compiled; from 64 on, four between a power of two and the next.
BUCKETS = (16, 24, 32, 48, *((4 + i) * 2**n for n in range(4, 11) for i in range(4)))
# Of a batch, per device. A CPU keeps what a layer makes of 2,048 in its caches: a sixth faster.
_TOKENS = {'cpu': 2048}
_TOKENS_OTHERWISE = 8192


def buckets(max_length: int) -> np.ndarray:
    """Lengths that rows of at most so many tokens are padded to, rising."""
    return np.array([*(b for b in BUCKETS if b < max_length), max_length])


def rows_per_batch(bucket: int, mesh: Mesh) -> int:
    """Rows of so many tokens that are computed together."""
    tokens = _TOKENS.get(mesh.devices.flat[0].platform, _TOKENS_OTHERWISE)
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
    """Applies a jitted function of a batch of token rows to any number of rows.

    Rows are sorted by length, the longest first, and a batch is padded to the shortest bucket that
    holds it: little computation is spent on padding, and each bucket compiles once. Batches are
    gathered as they are needed, while the device computes those before, so that the host holds
    the result, three batches and 16 bytes a row.

    Of several processes, each does its own rows on its own devices.

    Args:
        fn: `fn(**batch) -> [rows, ...]`, row by row; compiled per bucket.
        rows: (numbers `[m]`, bucket) -> arrays `[m, bucket]`, padded on the right.
        lengths: `[n]` real tokens of each row.
        max_length: Tokens that no row exceeds.
        mesh: Rows are split over the `data` axis of this process' part of it.
        desc: Name of the progress bar.
        name: What messages call a row.

    Returns:
        `[n, ...]` float32 in the order of the input.

    Raises:
        ValueError: if there is no row.
        FloatingPointError: at the first batch with a result that is not finite, naming the row.
    """
    mesh = mesh.local_mesh
    n, ways = len(lengths), mesh.shape['data']
    if not n:
        raise ValueError(f'{desc}: nothing to encode; there must be at least one row.')
    sharding = meshes.batch_sharding(mesh)
    padded_to = buckets(max_length)
    # A single question is no batch of thousands; powers of two, so that few shapes are added.
    at_most = -(-(1 << (n - 1).bit_length()) // ways) * ways
    order = np.argsort(-lengths, kind='stable')
    out, pending = None, []

    def collect(numbers, result):
        nonlocal out
        result = np.asarray(result, np.float32)[: len(numbers)]
        if out is None:
            out = np.empty((n, *result.shape[1:]), np.float32)
        good = np.isfinite(result).reshape(len(result), -1).all(axis=1)
        if not good.all():
            raise FloatingPointError(
                f'{desc}: what the model makes of {name(int(numbers[~good][0]))} is not finite, '
                f'and so are {(~good).sum()} of the {len(good)} rows of its batch; look at the '
                "model's weights, or compute in float32 (dtype)."
            )
        out[numbers] = result

    quiet = n < 512 or not distributed.is_primary()
    with tqdm.tqdm(total=n, desc=desc, unit='rows', disable=quiet) as bar:
        start = 0
        while start < n:
            bucket = int(padded_to[np.searchsorted(padded_to, lengths[order[start]])])
            size = min(rows_per_batch(bucket, mesh), at_most)
            numbers = order[start : start + size]
            # The last batch repeats its rows, so that no shape is added.
            batch = rows(np.resize(numbers, size), bucket)
            batch = {name: array.astype(np.int32) for name, array in batch.items()}
            # Dispatched before the results of the batches before are fetched.
            pending.append((numbers, fn(**meshes.to_device(batch, sharding))))
            if len(pending) > 2:
                collect(*pending.pop(0))
            start += len(numbers)
            bar.update(len(numbers))
        for item in pending:
            collect(*item)
    return out


@functools.partial(jax.jit, static_argnums=(0, 1))
def embed_batch(model, mesh, params, tokens):
    """Embeddings of rows of tokens, on an abstract mesh."""
    with jax.sharding.use_abstract_mesh(mesh):  # For fused attention.
        return model.apply({'params': params}, tokens)


def embed(
    model,
    params,
    tokens: TokenStore,
    *,
    rows: range | None = None,
    mesh: Mesh,
    desc: str,
    name: Callable[[int], str] = 'row {}'.format,
) -> np.ndarray:
    """Embeddings `[n, dim]` float32 of texts by a dual-encoder, in memory.

    Args:
        model: `DualEncoder` module.
        params: Its parameters, on the mesh.
        tokens: Of the texts.
        rows: Those to embed; None for all.
        mesh: Where to compute.
        desc: Name of the progress bar.
        name: What messages call a text of `tokens`.
    """
    rows = range(len(tokens)) if rows is None else rows
    return map_rows(
        lambda tokens: embed_batch(model, mesh.local_mesh.abstract_mesh, params, tokens),
        lambda numbers, bucket: {'tokens': tokens.rows(rows.start + numbers, bucket)},
        lengths=tokens.lengths[rows.start : rows.stop],
        max_length=tokens.length,
        mesh=mesh,
        desc=desc,
        name=lambda row: name(rows.start + row),
    )


def write_embeddings(
    directory: pathlib.Path,
    model,
    params,
    tokens: TokenStore,
    *,
    store: str,
    mesh: Mesh,
    desc: str,
    name: Callable[[int], str] = 'row {}'.format,
    part: int = vectors.PART,
) -> None:
    """Writes the embeddings of any number of texts; `vectors.load` reads them.

    Made for a resumable stage: what is written is bit for bit the same whether or not it was
    interrupted. Several processes, each with a mesh of its own devices, write their share of the
    parts. The host holds one part in memory (and its copy, if it is rounded): 4 bytes times
    `part` times the dimensions, beside what `map_rows` says and 4 bytes a text for its length.

    Args:
        directory: Of the stage.
        model: `DualEncoder` module.
        params: Its parameters, on the mesh.
        tokens: Of the texts.
        store: 'float32' or 'bfloat16'; see `vectors.save`.
        mesh: Where to compute.
        desc: Name of the progress bars.
        name: What messages call a text.
        part: Texts a file.

    Raises:
        ValueError: if `store` is neither.
    """
    if store not in vectors.STORES:
        raise ValueError(f"index.store is '{store}'; use one of {', '.join(vectors.STORES)}.")
    count = -(-len(tokens) // part)

    def write(i, file):
        rows = range(i * part, min((i + 1) * part, len(tokens)))
        label = f'{desc} {i + 1}/{count}' if count > 1 else desc
        found = embed(model, params, tokens, rows=rows, mesh=mesh, desc=label, name=name)
        vectors.save(file, found, store)

    write_parts(directory, vectors.NAME, count, write)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score_batch(model, mesh, params, tokens, token_types):
    """Logits of rows of pairs, on an abstract mesh."""
    with jax.sharding.use_abstract_mesh(mesh):  # For fused attention.
        return model.apply({'params': params}, tokens, token_types)


def score_pairs(
    model,
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
    """Logits `[n]` float32 of pairs by a cross-encoder; nothing is tokenised again.

    Args:
        model: `CrossEncoder` module.
        params: Its parameters, on the mesh.
        queries: Tokens of queries.
        query_rows: `[n]` query of each pair.
        passages: Tokens of passages.
        passage_rows: `[n]` passage of each pair.
        separators: Of a pair; see `cross_encoder.join_pairs`.
        mesh: Where to compute.
        desc: Name of the progress bar.
        name: What messages call a pair.
    """
    more = separators - 2  # Tokens of a pair beyond those of its two texts.

    def joined(numbers, bucket):
        tokens, token_types = join_pairs(
            queries.rows(query_rows[numbers]),
            passages.rows(passage_rows[numbers]),
            queries.pad_id,
            separators,
        )
        return {'tokens': tokens[:, :bucket], 'token_types': token_types[:, :bucket]}

    return map_rows(
        lambda **batch: score_batch(model, mesh.local_mesh.abstract_mesh, params, **batch),
        joined,
        lengths=queries.lengths[query_rows] + passages.lengths[passage_rows] + more,
        max_length=queries.length + passages.length + more,
        mesh=mesh,
        desc=desc,
        name=name,
    )
