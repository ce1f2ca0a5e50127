"""Makes trainers: the compiled functions of one training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jdkd.distillation import assistants, batch_scores, objective, step
from jdkd.distillation.objective import Objective
from jdkd.distillation.step import TrainState
from jdkd.lists import packing
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Compiled functions of one training and the layout of its state.

    Attributes:
        step: `(state, batch) -> state, metrics`; the state is donated.
        loss: `(params, batch) -> metrics` without an update, for D_eval.
        probe: `(params, batch, progress) -> metrics` with the gradient's norm, without an update
            or dropout; see `nonfinite.find_lists`.
        place: `params -> params` on the mesh.
        init: `params -> state` before the first step, on the mesh.
    """

    mesh: Mesh
    step: jax.stages.Wrapped
    loss: Callable
    probe: Callable
    place: Callable
    init: Callable
    abstract: TrainState  # Shapes and shardings.
    rows: packing.RowSpec  # Layout of the candidates' texts in rows of tokens.


def make_trainer(training: Objective, *, mesh: Mesh, model: Any, params: Any) -> Trainer:
    """The trainer of an encoder; each of its functions compiles when it is first called.

    Batches are split over the mesh's `data`, parameters by `config.sharding`. The model is a
    `DualEncoder` or a `CrossEncoder`, and `params` are its arrays or shapes.

    Raises:
        ValueError: if a parameter has no sharding rule, a rule no parameter, or the mesh does not
            divide a parameter.
    """
    config, num_assistants = training.config, training.num_assistants
    meshes.check_rules(params, config.sharding)
    tx = step.optimizer(training.optimizer, training.frozen)
    num_choices = 0
    if objective.selects_assistants(config, num_assistants):
        num_choices = len(assistants.fusion_weights(num_assistants, config.selection.fusion))

    def init(params):
        selected = jnp.zeros(max(num_choices, 1), jnp.float32)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), selected)

    shapes = jax.eval_shape(init, params)
    shardings = meshes.shardings(mesh, shapes, config.sharding)
    replicated, batch = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    jit_init = jax.jit(init, out_shardings=shardings)
    place = jax.jit(lambda params: params, out_shardings=shardings.params)
    rows = packing.resolve_rows(
        config.rows, mesh.shape['data'], share=isinstance(model, DualEncoder)
    )
    score_fn = batch_scores.make_score_fn(model, training.scale, rows, training.dims)
    of_all = objective.make_loss(config, score_fn, num_assistants)

    def loss_fn(params, *args):
        return of_all(step.freeze(params, training.frozen), *args)

    train_step = step.make_train_step(
        loss_fn,
        tx,
        total_steps=training.optimizer.total_steps,
        dropout_seed=config.seed if training.dropout else None,
    )

    def compiled(fn, inputs, outputs, **options):
        def on_mesh(*args):
            # Fused kernels, which XLA cannot partition, read the mesh from here.
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return fn(*args)

        return jax.jit(on_mesh, in_shardings=inputs, out_shardings=outputs, **options)

    def loss(params, batch):
        # Schedules as at the end of training, so that rounds compare.
        return loss_fn(params, batch, jnp.ones(()))[1]

    def probe(params, batch, progress):
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, batch, progress)
        return metrics | {'grad_norm': optax.tree.norm(grads)}

    return Trainer(
        mesh=mesh,
        step=compiled(train_step, (shardings, batch), (shardings, replicated), donate_argnums=0),
        loss=compiled(loss, (shardings.params, batch), replicated),
        probe=compiled(probe, (shardings.params, batch, replicated), replicated),
        place=lambda params: place(meshes.put(params, mesh)),
        init=lambda params: jit_init(meshes.put(params, mesh)),
        abstract=jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        ),
        rows=rows,
    )
