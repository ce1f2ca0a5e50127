"""The train step: its state, its optimizer and one update."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jdkd.config import OptimizerConfig
from jdkd.distillation.objective import Batch, Metrics


@flax.struct.dataclass
class TrainState:
    """All that a train step reads and writes.

    Attributes:
        step: Scalar int32, steps done; -1 after a non-finite step: that update is discarded and
            the state stays frozen.
        selected: `[num_choices]` float32, how many queries each (fused) assistant was selected
            for in this round; one zero without a pool (Orbax saves no empty arrays).
    """

    step: Any  # Of abstract states, the leaves are shapes or shardings.
    params: Any
    opt_state: optax.OptState
    selected: Any


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """The learning rate by step: linear warm-up and cosine decay to 0, again in each cycle.

    A cycle is a round by default (ours; warm restarts are Loshchilov and Hutter's, 2017). One
    cosine over all rounds would leave little of the learning to the last, whose negatives, queries
    and assistants are the best.
    """
    steps = config.cycle_steps or config.total_steps
    cycle = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, steps
    )
    return lambda step: cycle(jnp.mod(step, steps))


def freeze(params: Any, tower: str) -> Any:
    """Parameters whose tower of this name, 'query' or 'passage', has no gradient."""
    return {**params, tower: jax.lax.stop_gradient(params[tower])} if tower in params else params


def optimizer(config: OptimizerConfig, frozen: str = 'none') -> optax.GradientTransformation:
    """AdamW with the rate of `learning_rate` and clipping by the global norm.

    The tower `frozen`, which `freeze` leaves without a gradient, does not decay either.

    The mean gradient of `config.accumulate` steps makes one update. Adam's moments outlast a
    cycle: a round's gradients resemble those of the round before.
    """
    by_step = learning_rate(config)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            lambda updates: by_step(updates * config.accumulate),
            weight_decay=config.weight_decay,
            # Vectors (biases, scales, layer norms) are not decayed.
            mask=lambda params: jax.tree.map_with_path(
                lambda path, p: p.ndim > 1 and path[0] != jax.tree_util.DictKey(frozen), params
            ),
        ),
    )
    if config.accumulate == 1:
        return tx
    return optax.MultiSteps(tx, config.accumulate).gradient_transformation()


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    total_steps: int,
    dropout_seed: int | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> state, metrics`, pure; the caller jits it.

    `loss_fn` is from `objective.make_loss`, `total_steps` the length of the schedules. Each dropout
    mask is a function of (dropout_seed, step); a seed of None turns dropout off.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = None
        if dropout_seed is not None:
            key = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
        progress = state.step / total_steps
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch, progress, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        after = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            selected=state.selected + metrics.get('selected', 0.0),
        )
        if 'selected' in metrics:
            metrics['selected_so_far'] = after.selected
        metrics['grad_norm'] = optax.tree.norm(grads)
        metrics['param_norm'] = optax.tree.norm(after.params)
        # The host notices a non-finite step one step late. The state before it is kept, so that
        # `nonfinite.find_lists` can evaluate that step's batch again.
        finite = [jnp.isfinite(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')]
        accepted = (state.step >= 0) & jnp.all(jnp.stack(finite))
        frozen = dataclasses.replace(state, step=jnp.full_like(state.step, -1))
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), after, frozen), metrics

    return train_step
