"""What all trained encoders share: batches of candidate lists, and restored parameters."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from jdkd.distillation.train_loop import CHECKPOINTS
from jdkd.lists import loader
from jdkd.lists.packing import RowSpec
from jdkd.run import Queries, Run
from jdkd.runtime import checkpoint
from jdkd.runtime import mesh as meshes
from jdkd.systems.encoders import Encoder
from jdkd.systems.system import System


def make_batches(
    run: Run,
    encoder: Encoder,
    queries: Queries,
    source: Any,
    records: loader.Features,
    order: loader.BatchOrder,
    rows: RowSpec,
    *,
    length: int,
    steps: int,
    pool: Sequence[tuple[System, float]] = (),
    targets: loader.Targets | None = None,
    scored: loader.Scored | None = None,
) -> grain.DatasetIterator:
    """Batches of candidate lists as an encoder reads them; see `loader.batches`.

    Args:
        queries, source: The split of the lists, and their records.
        records: All of them, stacked, with the features that decide the candidates' lengths.
        order, steps: Lists of each batch, and the number of batches.
        rows: Layout of the candidates' texts in rows of tokens.
        length: Tokens of a candidate for a dual-encoder; longer ones are cut.
        pool: Assistants that score whole batches, with their scales.
        targets: Look up the embeddings that those of queries and originals are to become.
        scored: Passages that the teacher scored; see `loader.scored_pool`.
    """
    query_ids, passage_ids = encoder.query_tokens(run, queries), encoder.passage_tokens(run)
    if encoder.spec.kind == 'cross_encoder':
        to_tokens = loader.CrossEncoderTokens(query_ids, passage_ids, encoder.separators)
    else:
        end, dark = encoder.passage_end, bool(run.config.loss.dark)
        to_tokens = loader.DualEncoderTokens(query_ids, passage_ids, length, end, dark)
    to_batch = loader.make_row_packer(to_tokens, records, order, rows, run.mesh, steps=steps)
    extras = []
    if targets is not None:
        extras.append(loader.embedding_targets(targets))
    if scored is not None:
        extras.append(loader.scored_pool(scored))
    if pool:
        scorers = [system.batch_scorer(queries) for system, _ in pool]
        scales = [scale for _, scale in pool]
        extras.append(loader.in_batch(records['passages'], scorers, scales))
    return loader.batches(source, to_batch, order, run.mesh, extras)


def restore_encoder(run: Run, encoder: Encoder, directory: pathlib.Path, step: int) -> Encoder:
    """The encoder with the parameters of a stage's checkpoint, on this process's devices."""
    tree: Any = {'params': encoder.params}
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding),
        tree,
        meshes.shardings(run.mesh, tree, run.config.sharding),
    )
    restored = checkpoint.restore_state(directory / CHECKPOINTS, step, abstract)
    return dataclasses.replace(encoder, params=meshes.to_local(restored['params'], run.mesh))
