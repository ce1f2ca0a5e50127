"""Builds the device mesh and shards parameters and batches over it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'model')
Device = Any  # A jax.Device, which type checkers do not know as a type.
Rules = Sequence[tuple[str, Sequence[str | None]]]


def make_mesh(data: int = -1, model: int = 1, *, devices: Sequence[Device] | None = None) -> Mesh:
    """Makes a mesh with axes `data` and `model`.

    Args:
        data: Number of devices that batches are split over; -1 for all that `model` leaves.
        model: Number of devices that parameters are split over.
        devices: Possibly of a topology to compile for; all of the run by default.

    Raises:
        ValueError: if the product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if data == -1:
        data = len(devices) // model
    if data * model != len(devices):
        raise ValueError(
            f'mesh.data={data} times mesh.model={model} is not the number of devices, '
            f'{len(devices)}; set mesh.data=-1 and a mesh.model that divides it.'
        )
    return Mesh(np.array(devices).reshape(data, model), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the arrays of a batch over `data` along their first axis."""
    return NamedSharding(mesh, PartitionSpec('data'))


def path_name(path) -> str:
    """`transformer/layer_0/attention/query/kernel` for a key path of a tree."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def check_rules(params: Any, rules: Rules) -> None:
    """Checks that every parameter matches a rule and that every rule is used.

    Rules are (regex, spec) pairs; the first regex found in a parameter's path decides.

    Raises:
        ValueError: naming the parameter or the rule without a match.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    used = {_first_match(path_name(path), rules) for path, _ in leaves}
    unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if unused:
        raise ValueError(
            f"sharding rule '{unused[0]}' matches no parameter first; "
            'remove it or put it before the rule that hides it.'
        )


def shardings(mesh: Mesh, tree: Any, rules: Rules) -> Any:
    """Returns the NamedSharding of every leaf of a train state or parameter tree.

    The path of an optimizer moment contains that of its parameter, so both match the same rule.
    Scalars and the counts of selected assistants are replicated. `check_rules` checks the rules.

    Raises:
        ValueError: if a dimension is not divisible by the devices it is split over.
    """

    def place(path, leaf):
        name = path_name(path)
        if leaf.ndim == 0 or name == 'selected':
            return replicated(mesh)
        pattern, spec = rules[_first_match(name, rules)]
        # A rule for kernels may also match their bias; the last axes of the spec then apply.
        spec = tuple(spec)[-leaf.ndim :]
        for size, axes in zip(leaf.shape, spec, strict=False):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            ways = math.prod(mesh.shape[a] for a in axes)
            if size % ways:
                raise ValueError(
                    f"sharding rule '{pattern}' splits {name} of shape {leaf.shape} "
                    f'{ways} ways, which does not divide {size}; change the rule or mesh.model.'
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Indices of the rows of a global batch that the devices of this process hold.

    Together, the processes hold every row; if `model` spans processes, several hold the same rows.

    Raises:
        ValueError: if the batch does not divide over the devices of axis `data`.
    """
    ways = mesh.shape['data']
    if batch_size % ways:
        raise ValueError(
            f'a batch of {batch_size} does not divide over the {ways} devices of mesh axis data; '
            'change batch_size or mesh.data.'
        )
    slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique([np.arange(batch_size)[rows] for rows in slices])


def to_device(batch: Any, sharding: NamedSharding) -> Any:
    """Makes global arrays from the rows of a batch that this process holds; see `local_rows`."""
    # The transfer guard of the train loop forbids implicit transfers only.
    with jax.transfer_guard_host_to_device('allow'):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put(tree: Any, mesh: Mesh) -> Any:
    """Replicates values that every process has over a mesh."""
    sharding = replicated(mesh)
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)
    # On several processes, device_put would compare their values.
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__),
        jax.device_get(tree),
    )


def to_local(tree: Any, mesh: Mesh) -> Any:
    """Replicates arrays of a mesh over the devices of this process."""
    tree = jax.device_put(tree, replicated(mesh))
    if not mesh.is_multi_process:
        return tree
    local = replicated(mesh.local_mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape, local, [shard.data for shard in x.addressable_shards]
        ),
        tree,
    )


def _first_match(name: str, rules: Rules) -> int:
    for i, (pattern, _) in enumerate(rules):
        if re.search(pattern, name):
            return i
    raise ValueError(
        f'no sharding rule matches parameter {name}; add one, for example '
        f"('.*', ()) at the end to replicate the rest."
    )
