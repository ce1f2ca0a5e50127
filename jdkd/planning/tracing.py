"""The steps of a run's stages, traced for a mesh from shapes alone."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from jdkd.distillation import train
from jdkd.distillation.train import labels_trainer
from jdkd.lists import packing
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.families import FAMILIES
from jdkd.planning import flops, roofline
from jdkd.planning.corpus_size import Texts
from jdkd.retrieval import encode
from jdkd.runtime import mesh as meshes

_FITTED = 8  # Batches that rows are made for.


def train_student(config, model: Any, params: Any, mesh: Mesh, texts: Texts) -> roofline.Traced:
    """The student's train step."""
    trainer = train.student_trainer(config, mesh, model, params)
    originals = 1 + config.candidates.hard_negatives
    dark = config.dark.reinforced + config.dark.noisy if config.loss.dark else 0
    shape = (config.batch_size, originals + dark)
    lengths = texts.passage_lengths((_FITTED, *shape), config.train_passage_length)
    batch = student_batch(config, trainer.rows, lengths, meshes.batch_sharding(mesh))
    queries = texts.query_lengths((_FITTED, config.batch_size), config.student.query_length)
    return _trace_training(trainer, model, batch, lengths, queries)


def train_from_labels(
    config, entry, model: Any, params: Any, mesh: Mesh, texts: Texts
) -> roofline.Traced:
    """The train step of a system that is trained from labels first."""
    trainer = labels_trainer(config, entry, mesh, model, params)
    shape = (entry.train.batch_size, 1 + entry.train.hard_negatives)
    sharding = meshes.batch_sharding(mesh)
    if isinstance(model, CrossEncoder):
        lengths, _ = pair_lengths(entry, model, texts, (_FITTED, *shape))
        batch = lists(trainer.rows, lengths, shape[1], sharding)
        batch['token_types'] = batch['tokens']
        read = [lengths]
    else:
        lengths = texts.passage_lengths((_FITTED, *shape), entry.passage_length)
        batch = lists(trainer.rows, lengths, shape[1], sharding)
        batch['query'] = _ints(sharding, shape[0], entry.query_length)
        queries = texts.query_lengths((_FITTED, shape[0]), entry.query_length)
        read = [lengths, queries]
    return _trace_training(trainer, model, batch, *read)


def encode_texts(
    model: Any, params: Any, mesh: Mesh, lengths: np.ndarray, longest: int
) -> tuple[roofline.Traced, float]:
    """The step that embeds texts or scores pairs, and how many texts it takes.

    Texts of like length are encoded together; this is the step of the length that most tokens
    are in, and the texts are as many as if all were.

    Args:
        model: `DualEncoder` or `CrossEncoder`.
        params: Shapes of the parameters of one tower.
        mesh: Where to.
        lengths: `[n]` tokens of a sample of texts.
        longest: Tokens that no text exceeds.
    """
    buckets = encode.buckets(longest)
    padded = buckets[np.searchsorted(buckets, lengths)]
    bucket = int(max(buckets, key=lambda b: padded[padded == b].sum()))
    rows = encode.rows_per_batch(bucket, mesh)
    whole = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.replicated(mesh)), params
    )
    tokens = _ints(meshes.batch_sharding(mesh), rows, bucket)
    if isinstance(model, CrossEncoder):
        computation = encode.score_batch.trace(model, mesh.abstract_mesh, whole, tokens, tokens)
    else:
        computation = encode.embed_batch.trace(model, mesh.abstract_mesh, whole, tokens)
    per_batch = rows * bucket / padded.mean()
    forward = flops.forward(model.transformer, lengths) / len(lengths)
    step = roofline.Traced(
        computation,
        params=whole,
        optimizer=(),
        model_flops=forward * per_batch,
        devices=mesh.size,
    )
    return step, per_batch


def pair_lengths(entry, model: CrossEncoder, texts: Texts, shape) -> tuple[np.ndarray, int]:
    """Tokens of pairs as a cross-encoder reads them, and the most that one has."""
    more = FAMILIES[model.transformer.family].separators - 2
    queries = texts.query_lengths(shape, entry.query_length)
    passages = texts.passage_lengths(shape, entry.passage_length)
    # Drawn apart: a long query does not mean a long passage.
    passages = np.random.default_rng(1).permutation(passages.ravel()).reshape(shape)
    return queries + passages + more, entry.query_length + entry.passage_length + more


def student_batch(
    config: ml_collections.FrozenConfigDict, rows: packing.RowSpec, lengths: np.ndarray, sharding
) -> dict[str, Any]:
    """Shapes of a batch of the student's training; see `distill.step`.

    Args:
        config: The run's.
        rows: How candidates are put into rows.
        lengths: `[batches, B, N]` tokens of the candidates of some batches.
        sharding: Of the arrays.
    """
    _, B, N = lengths.shape
    originals = 1 + config.candidates.hard_negatives
    batch = lists(rows, lengths, originals, sharding)
    batch['query'] = _ints(sharding, B, config.student.query_length)
    batch['teacher'] = _floats(sharding, B, N)
    if K := len(config.assistants):
        batch['assistants'] = _floats(sharding, B, K, N)
        if config.loss.in_batch:
            batch['in_batch'] = _floats(sharding, B, K, B * originals)
    return batch


def lists(rows: packing.RowSpec, lengths: np.ndarray, originals: int, sharding) -> dict[str, Any]:
    """Shapes of what batches have for every model."""
    _, B, N = lengths.shape
    layout = packing.fit_layout(lengths, rows)
    tiles = tuple(_ints(sharding, rows.parts * count, length) for count, length in layout.tiles)
    batch = {
        'query_row': _ints(sharding, B),
        'tokens': tiles,
        'slots': _ints(sharding, B, N),
        'lengths': _ints(sharding, B, N),
        'group': _ints(sharding, B, originals),
        'relevant': _ints(sharding, B, 1),
        'false_negative': jax.ShapeDtypeStruct((B, originals), jnp.bool_, sharding=sharding),
    }
    return batch | ({'segments': tiles} if layout.slots > 1 else {})


def _trace_training(
    trainer: train.Trainer, model: Any, batch, *lengths: np.ndarray
) -> roofline.Traced:
    """A train step, whose model reads texts of these lengths in `_FITTED` batches."""
    state = trainer.abstract
    forward = sum(flops.forward(model.transformer, of) for of in lengths)
    return roofline.Traced(
        trainer.step.trace(state, batch),
        params=state.params,
        optimizer=state.opt_state,
        # The backward pass takes twice as many.
        model_flops=3 * forward / _FITTED,
        devices=trainer.mesh.size,
    )


def _ints(sharding, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)


def _floats(sharding, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
