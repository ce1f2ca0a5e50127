"""The named device mesh and the rules that place parameters on it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ('data', 'model')
Rules = Sequence[tuple[str, Sequence[str | None]]]


def make_mesh(
    data: int = -1, model: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes `data` and `model` over the given devices (default: all).

    Args:
        data: Devices along the batch; -1 for as many as there are.
        model: Devices along the parameters.
        devices: The devices, also those of a topology that is only compiled for.

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
    """Arrays of a batch are split along their first axis over `data`."""
    return NamedSharding(mesh, PartitionSpec('data'))


def path_name(path) -> str:
    """`transformer/layer_0/attention/query/kernel` for a key path of a tree."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def check_rules(params: Any, rules: Rules) -> None:
    """Every parameter has a rule, and every rule has a parameter.

    Args:
        params: Tree of arrays or shapes.
        rules: (regex, spec) pairs; the first regex found in a parameter's path decides.

    Raises:
        ValueError: naming the parameter or the rule that has no counterpart.
    """
    used = set()
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        used.add(_first_match(path_name(path), rules))
    unused = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
    if unused:
        raise ValueError(
            f"sharding rule '{unused[0]}' decides for no parameter; "
            'remove it or put it before the rule that hides it.'
        )


def shardings(mesh: Mesh, tree: Any, rules: Rules) -> Any:
    """A NamedSharding for every leaf of a train state or a parameter tree.

    Optimizer moments carry the path of their parameter and so its rule. Scalars and other vectors
    outside parameters are replicated.

    Args:
        mesh: The mesh.
        tree: Arrays or shapes.
        rules: (regex, spec) pairs, checked by `check_rules`.

    Raises:
        ValueError: if a dimension is not divisible by the devices it is split over.
    """

    def place(path, leaf):
        name = path_name(path)
        if leaf.ndim == 0 or name == 'selected':
            return replicated(mesh)
        pattern, spec = rules[_first_match(name, rules)]
        # A rule for kernels may also decide for their bias: it then shards the last axis.
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
    """Numbers of the rows of a global batch that the devices of this process hold.

    Together the processes hold every row; those that share the devices of one row, where `model`
    spans processes, hold the same ones.

    Raises:
        ValueError: if the batch does not divide over the devices of axis `data`.
    """
    ways = mesh.shape['data']
    if batch_size % ways:
        raise ValueError(
            f'a batch of {batch_size} does not divide over the {ways} devices of mesh axis data; '
            'change batch_size or mesh.data.'
        )
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique([np.arange(batch_size)[rows] for rows in held])


def to_device(batch: Any, sharding: NamedSharding) -> Any:
    """Global arrays from this process' rows of a batch, a tree of arrays; see `local_rows`."""
    # Meant, so that the guard against transfers which are not lets it pass.
    with jax.transfer_guard_host_to_device('allow'):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put(tree: Any, mesh: Mesh) -> Any:
    """Values that every process has, as arrays that are replicated over a mesh."""
    whole = replicated(mesh)
    if mesh.is_multi_process:  # Device_put would compare the values of all processes.
        host = jax.device_get(tree)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(np.shape(x), whole, np.asarray(x).__getitem__),
            host,
        )
    return jax.device_put(tree, whole)


def to_local(tree: Any, mesh: Mesh) -> Any:
    """Arrays of a mesh, replicated over the devices that this process has of it."""
    tree = jax.device_put(tree, replicated(mesh))
    if not mesh.is_multi_process:
        return tree
    here = replicated(mesh.local_mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape, here, [shard.data for shard in x.addressable_shards]
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
