"""Traces the train and encode steps of a run for a mesh, from shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdkd.config import Config
from jdkd.distillation.objective import Objective
from jdkd.distillation.trainer import Trainer, make_trainer
from jdkd.lists import packing
from jdkd.lists.alignment import AlignmentSize, plan_size
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import embedding_width
from jdkd.models.families import FAMILIES
from jdkd.planning.corpus_size import CorpusSize
from jdkd.planning.roofline import Traced, forward_flops
from jdkd.retrieval import encode, exact
from jdkd.runtime import mesh as meshes
from jdkd.systems.roles import fine_tuning_length

_BATCHES = 8  # Batches that the row layout is made for.


def train_student(config, model, params, mesh: Mesh, size: CorpusSize) -> Traced:
    """Traces the student's train step."""
    trainer = make_trainer(Objective.of_student(config), mesh=mesh, model=model, params=params)
    dark = config.dark.reinforced + config.dark.noisy if config.loss.dark else 0
    shape = (_BATCHES, config.batch_size, 1 + config.candidates.hard_negatives + dark)
    lengths = size.passage_lengths(shape, config.train_passage_length)
    sharding = meshes.batch_sharding(mesh)
    batch = student_batch(config, trainer.rows, lengths, sharding)
    if config.loss.embedding:
        originals = 1 + config.candidates.hard_negatives
        batch |= _targets(model, config.batch_size, originals, sharding)
    if config.loss.pool:
        batch |= _scored_pool(model, config.batch_size, 1 + config.candidates.scored, sharding)
    queries = size.query_lengths(shape[:2], config.student.query_length)
    return _trace_training(trainer, model, batch, lengths, queries)


def align_student(
    config, model, params, mesh: Mesh, size: CorpusSize
) -> tuple[Traced, AlignmentSize]:
    """Traces the step that aligns the student with embeddings; also returns the texts it takes."""
    training = Objective.of_embeddings(config, steps=1)
    trainer = make_trainer(training, mesh=mesh, model=model, params=params)
    parts = trainer.rows.parts * trainer.rows.chunks
    texts = plan_size(size.passages, size.train, config.align, parts)
    shape = (_BATCHES, texts.batch_size, texts.per_query)
    sharding = meshes.batch_sharding(mesh)
    lengths = size.passage_lengths(shape, config.student.passage_length)
    batch = _list_batch(trainer.rows, lengths, texts.per_query, sharding)
    batch['query'] = _array(sharding, texts.batch_size, config.student.query_length)
    batch |= _targets(model, texts.batch_size, texts.per_query, sharding)
    queries = size.query_lengths(shape[:2], config.student.query_length)
    return _trace_training(trainer, model, batch, lengths, queries), texts


def train_from_labels(config, spec, model, params, mesh: Mesh, size: CorpusSize) -> Traced:
    """Traces the train step of a system that is fine-tuned from labels."""
    trainer = make_trainer(Objective.of_labels(config, spec), mesh=mesh, model=model, params=params)
    B, N = spec.train.batch_size, 1 + spec.train.hard_negatives
    sharding = meshes.batch_sharding(mesh)
    if isinstance(model, CrossEncoder):
        lengths, _ = pair_lengths(spec, model, size, (_BATCHES, B, N))
        batch = _list_batch(trainer.rows, lengths, N, sharding)
        batch['token_types'] = batch['tokens']
        return _trace_training(trainer, model, batch, lengths)
    lengths = size.passage_lengths((_BATCHES, B, N), fine_tuning_length(config, spec))
    batch = _list_batch(trainer.rows, lengths, N, sharding)
    batch['query'] = _array(sharding, B, spec.query_length)
    queries = size.query_lengths((_BATCHES, B), spec.query_length)
    return _trace_training(trainer, model, batch, lengths, queries)


def encode_texts(
    model: Any, params: Any, mesh: Mesh, lengths: np.ndarray, longest: int
) -> tuple[Traced, float]:
    """Traces the step that embeds texts or scores pairs; also returns how many texts it takes.

    Of the buckets of similar length, traces the one that holds most tokens, and counts as many
    texts per step as an average text would allow. `params` are the shapes of one tower; `lengths`
    are the `[n]` token counts of a sample of texts, `longest` their upper limit.
    """
    buckets = encode.buckets(longest)
    padded = buckets[np.searchsorted(buckets, lengths)]
    bucket = int(max(buckets, key=lambda b: padded[padded == b].sum()))
    rows = encode.rows_per_batch(bucket, mesh)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh)), params
    )
    tokens = _array(meshes.batch_sharding(mesh), rows, bucket)
    batch = {'tokens': tokens}
    if isinstance(model, CrossEncoder):
        batch['token_types'] = tokens
    computation = encode.apply_batch.trace(model, mesh.abstract_mesh, placed, **batch)
    per_batch = rows * bucket / padded.mean()
    flops = per_batch * forward_flops(model.transformer, lengths) / len(lengths)
    return Traced(computation, placed, (), model_flops=flops, devices=mesh.size), per_batch


def search_passages(config: Config, width: int, mesh: Mesh, size: CorpusSize) -> Traced:
    """Traces the exact search of the collection for a block of queries.

    All devices share the passages here. In a run the devices of each process do, and processes
    share the queries, which takes as long.
    """
    everywhere = meshes.replicated(mesh)
    shape = exact.QUERY_BLOCK, min(config.depth, size.passages)
    blocking = exact.Blocking.of(size.passages, mesh.size, size.passages)
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    dtype = jnp.bfloat16 if config.index.store == 'bfloat16' else jnp.float32
    passages = _array(split, blocking.rows, width, dtype=dtype)
    computation = exact.search_block.trace(
        _array(everywhere, shape[0], width, dtype=jnp.float32),
        _array(everywhere, *shape, dtype=jnp.float32),
        _array(everywhere, *shape),
        passages,
        _array(everywhere),
        _array(everywhere),
        mesh=mesh,
        tiles=blocking.tiles,
        recall_target=config.index.recall,
    )
    flops = 2.0 * exact.QUERY_BLOCK * size.passages * width
    return Traced(computation, passages, (), flops, mesh.size)


def pair_lengths(spec, model: CrossEncoder, size: CorpusSize, shape) -> tuple[np.ndarray, int]:
    """Token counts of a cross-encoder's pairs, and their upper limit."""
    separators = FAMILIES[model.transformer.family].separators - 2
    queries = size.query_lengths(shape, spec.query_length)
    passages = size.passage_lengths(shape, spec.passage_length)
    # Shuffled, since the lengths of queries and passages are independent.
    passages = np.random.default_rng(1).permutation(passages.ravel()).reshape(shape)
    return queries + passages + separators, spec.query_length + spec.passage_length + separators


def student_batch(
    config: Config, rows: packing.RowSpec, lengths: np.ndarray, sharding
) -> dict[str, Any]:
    """Shapes of a batch of the student's training; see `distillation.objective`.

    `lengths` are the `[batches, B, N]` token counts of the candidates of some batches.
    """
    _, B, N = lengths.shape
    originals = 1 + config.candidates.hard_negatives
    batch = _list_batch(rows, lengths, originals, sharding)
    batch['query'] = _array(sharding, B, config.student.query_length)
    batch['teacher'] = _array(sharding, B, N, dtype=jnp.float32)
    if K := len(config.assistants):
        batch['assistants'] = _array(sharding, B, K, N, dtype=jnp.float32)
        if config.loss.in_batch:
            batch['in_batch'] = _array(sharding, B, K, B * originals, dtype=jnp.float32)
    return batch


def _scored_pool(model: Any, lists: int, passages: int, sharding) -> dict[str, Any]:
    """Shapes of scored passages and their stored embeddings."""
    width = embedding_width(model)
    return {
        'pool_embedding': _array(sharding, lists, passages, width, dtype=jnp.float32),
        'pool_teacher': _array(sharding, lists, passages, dtype=jnp.float32),
        'pool_there': _array(sharding, lists, passages, dtype=jnp.bool_),
    }


def _targets(model: Any, lists: int, originals: int, sharding) -> dict[str, Any]:
    """Shapes of the targets of embeddings."""
    width = embedding_width(model)
    return {
        'query_target': _array(sharding, lists, width, dtype=jnp.float32),
        'passage_target': _array(sharding, lists, originals, width, dtype=jnp.float32),
    }


def _list_batch(rows: packing.RowSpec, lengths: np.ndarray, originals: int, sharding) -> dict:
    """Shapes of the arrays that batches have for every model."""
    _, B, N = lengths.shape
    layout = packing.fit_layout(lengths, rows)
    tiles = tuple(_array(sharding, rows.parts * count, length) for count, length in layout.tiles)
    batch = {
        'query_row': _array(sharding, B),
        'tokens': tiles,
        'slots': _array(sharding, B, N),
        'lengths': _array(sharding, B, N),
        'group': _array(sharding, B, originals),
        'relevant': _array(sharding, B, 1),
        'false_negative': _array(sharding, B, originals, dtype=jnp.bool_),
    }
    return batch | ({'segments': tiles} if layout.slots > 1 else {})


def _trace_training(trainer: Trainer, model: Any, batch, *lengths: np.ndarray) -> Traced:
    """Traces a train step; `lengths` are those of all texts of `_BATCHES` batches."""
    computation = trainer.step.trace(trainer.abstract, batch)
    params, optimizer = trainer.abstract.params, trainer.abstract.opt_state
    forward = sum(forward_flops(model.transformer, some) for some in lengths)
    # The backward pass takes twice as many operations.
    return Traced(computation, params, optimizer, 3 * forward / _BATCHES, trainer.mesh.size)


def _array(sharding, *shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
