"""Finds the lists that caused a non-finite loss or gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jdkd.distillation.trainer import Trainer
from jdkd.runtime import mesh as meshes

_NAMED = 8  # Queries that a message names.
_UPDATE_ONLY = ['param_norm']  # The non-finite metrics where loss and gradient are finite.


def nonfinite_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the metrics that are not finite."""
    return [name for name, value in metrics.items() if not np.all(np.isfinite(value))]


def find_lists(
    trainer: Trainer,
    params: Any,
    host_batch: Mapping[str, Any],
    progress: float,
    bad: Sequence[str],
) -> list[int] | None:
    """Rows of the lists that by themselves give a non-finite loss or gradient.

    Training keeps nothing for this: each list is evaluated as a batch of its own, repeated over the
    devices, with the rows of the others emptied, without dropout. Each takes about as long as a
    step, after one compilation.

    `params` are those before the step, which `step.make_train_step` keeps, and `progress` the part
    of training done by then; `bad` is from `nonfinite_metrics`. Returns None where the rows are
    unknown: only the update is not finite, or there are several processes, which would have to
    evaluate in one order.
    """
    if list(bad) == _UPDATE_ONLY or jax.process_count() > 1:
        return None
    copies, rows = trainer.rows.parts * trainer.rows.chunks, []
    sharding = meshes.batch_sharding(trainer.mesh)
    num_originals = host_batch['group'].shape[1]
    for i in range(len(host_batch['group'])):
        alone: dict[str, Any] = {
            name: np.repeat(value[i : i + 1], copies, axis=0)
            for name, value in host_batch.items()
            if not isinstance(value, tuple)
        }
        alone |= _keep_rows(host_batch, host_batch['slots'][i] // trainer.rows.texts)
        if 'in_batch' in alone:
            own = alone['in_batch'][..., i * num_originals : (i + 1) * num_originals]
            alone['in_batch'] = np.tile(own, copies)
        metrics = trainer.probe(params, meshes.to_device(alone, sharding), np.float32(progress))
        if nonfinite_metrics(jax.device_get(metrics)):
            rows.append(i)
    return rows


def _keep_rows(host_batch: Mapping[str, Any], rows: np.ndarray) -> dict[str, tuple]:
    """The tiles of a batch, emptied but for some rows, which are numbered over all tiles."""
    tiles = {name: list(value) for name, value in host_batch.items() if isinstance(value, tuple)}
    first = 0
    for t, tile in enumerate(host_batch['tokens']):
        is_kept = np.isin(first + np.arange(len(tile)), rows)[:, None]
        for value in tiles.values():
            value[t] = np.where(is_kept, value[t], 0)
        first += len(tile)
    return {name: tuple(value) for name, value in tiles.items()}


def message(
    step: str, bad: Sequence[str], rows: Sequence[int] | None, query_ids: Sequence[str], left: str
) -> str:
    """The error message for a step with non-finite metrics `bad`.

    `rows` are from `find_lists`, `query_ids` are the query of every list of the batch, and `left`
    is a sentence about the checkpoint that training can go on from.
    """
    problem = f'{step}: {", ".join(bad)} {"is" if len(bad) == 1 else "are"} not finite'
    if list(bad) == _UPDATE_ONLY:
        return (
            f'{problem}: loss and gradient are, but the update is too large for float32; lower the '
            f'learning rate. {left}'
        )
    advice = f'lower the learning rate or the weights of the loss. {left}'
    batch = _queries(query_ids)
    if rows is None:
        return f'{problem} with the lists of {batch} or of other processes; {advice}'
    if not rows:
        return f'{problem}, though of the lists of {batch}, none alone gives the same; {advice}'
    lists, give = ('list', 'gives') if len(rows) == 1 else ('lists', 'give')
    culprits = _queries([query_ids[i] for i in rows])
    return (
        f'{problem}: the {lists} of {culprits} alone {give} the same; look at their texts and '
        f'scores, or {advice}'
    )


def _queries(ids: Sequence[str]) -> str:
    ids = list(dict.fromkeys(ids))
    named = ', '.join(repr(i) for i in ids[:_NAMED])
    more = f' and {len(ids) - _NAMED} more' if len(ids) > _NAMED else ''
    return f'{"query" if len(ids) == 1 else "queries"} {named}{more}'
