"""Numbers of a training that are not finite: which lists of the batch they come from."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jdkd.runtime import mesh as meshes

_NAMED = 8  # Queries that a message names.
_UPDATE = ['param_norm']  # What is bad where loss and gradient are not.


def not_finite(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are not finite."""
    return [name for name, value in metrics.items() if not np.all(np.isfinite(value))]


def lists(
    trainer,
    params: Any,
    host_batch: Mapping[str, np.ndarray],
    progress: float,
    bad: Sequence[str],
) -> list[int] | None:
    """Rows of the lists that alone, without the others, give a loss or gradient that is not finite.

    Nothing is kept for this while training: each list is evaluated as a batch of its own, repeated
    over the devices, with the rows of the others emptied, without dropout. Each takes about as long
    as a step, and there is a compilation.

    Args:
        trainer: A `train.Trainer`; its `probe` is run.
        params: As they were before the step; `step.make_train_step` keeps them.
        host_batch: The step's batch.
        progress: Part of training that was done before the step.
        bad: What was not finite; no list is to blame for an update alone.

    Returns:
        The rows; None where it is not known, as several processes would have to ask in one order.
    """
    if list(bad) == _UPDATE or jax.process_count() > 1:
        return None
    copies, found = trainer.rows.parts * trainer.rows.chunks, []
    sharding = meshes.batch_sharding(trainer.mesh)
    originals = host_batch['group'].shape[1]
    for i in range(len(host_batch['group'])):
        alone = {
            name: np.repeat(value[i : i + 1], copies, axis=0)
            for name, value in host_batch.items()
            if not isinstance(value, tuple)
        }
        alone |= _rows_of(host_batch, host_batch['slots'][i] // trainer.rows.texts)
        if 'in_batch' in alone:
            own = alone['in_batch'][..., i * originals : (i + 1) * originals]
            alone['in_batch'] = np.tile(own, copies)
        metrics = trainer.probe(params, meshes.to_device(alone, sharding), np.float32(progress))
        if not_finite(jax.device_get(metrics)):
            found.append(i)
    return found


def _rows_of(host_batch: Mapping[str, Any], rows: np.ndarray) -> dict[str, tuple]:
    """The tiles of a batch with nothing in any rows but these, numbered over all tiles."""
    tiles = {name: list(value) for name, value in host_batch.items() if isinstance(value, tuple)}
    first = 0
    for t, tile in enumerate(host_batch['tokens']):
        kept = np.isin(first + np.arange(len(tile)), rows)[:, None]
        for value in tiles.values():
            value[t] = np.where(kept, value[t], 0)
        first += len(tile)
    return {name: tuple(value) for name, value in tiles.items()}


def message(
    what: str, bad: Sequence[str], rows: Sequence[int] | None, query_ids: Sequence[str], kept: str
) -> str:
    """What to say of a step that was not finite.

    Args:
        what: Which step of what.
        bad: Names of its metrics that are not finite.
        rows: From `lists`.
        query_ids: Of every list of the batch.
        kept: What is left to go on from.
    """
    said = f'{what}: {", ".join(bad)} {"is" if len(bad) == 1 else "are"} not finite'
    if list(bad) == _UPDATE:
        return (
            f'{said}: loss and gradient are, but the update is too large for float32; lower the '
            f'learning rate. {kept}'
        )
    mend = f'lower the learning rate or the weights of the loss. {kept}'
    if rows is None:
        return f'{said} with the lists of {_queries(query_ids)} or of other processes; {mend}'
    if not rows:
        batch = _queries(query_ids)
        return f'{said}, though of the lists of {batch}, none alone gives the same; {mend}'
    one = len(rows) == 1
    return (
        f'{said}: the list{"" if one else "s"} of {_queries([query_ids[i] for i in rows])} alone '
        f'give{"s" if one else ""} the same; look at their texts and scores, or {mend}'
    )


def _queries(ids: Sequence[str]) -> str:
    ids = list(dict.fromkeys(ids))
    named = ', '.join(repr(i) for i in ids[:_NAMED])
    more = f' and {len(ids) - _NAMED} more' if len(ids) > _NAMED else ''
    return f'{"query" if len(ids) == 1 else "queries"} {named}{more}'
