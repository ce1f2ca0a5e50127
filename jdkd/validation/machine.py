"""The devices that a config asks for."""

from collections.abc import Iterator

import ml_collections

from jdkd.runtime import mesh as meshes
from jdkd.systems import roles
from jdkd.validation.faults import caught


def faults(config: ml_collections.FrozenConfigDict) -> Iterator[str]:
    """A mesh that is not the devices', or batches that do not divide over it."""
    wrong = list(mesh_faults(config))
    yield from wrong
    if not wrong:
        ways = meshes.make_mesh(config.mesh.data, config.mesh.model).shape['data']
        sizes = {'batch_size': config.batch_size}
        for name, entry in roles.trained(config).items():
            sizes[f'systems.{name}.train.batch_size'] = entry.train.batch_size
        for field, size in sizes.items():
            if size % ways:
                yield (
                    f'{field}={size} does not divide over the {ways} devices of mesh axis data; '
                    'change it or mesh.data.'
                )
        parts, chunks = config.rows.parts or ways, config.rows.chunks
        if parts % ways:
            yield (
                f'rows.parts={parts} does not divide over the {ways} devices of mesh axis data; '
                'set it to a multiple, or to 0.'
            )
        for field, size in sizes.items():
            if size % (parts * chunks) and not size % ways:
                yield (
                    f'{field}={size} does not divide among {parts} parts (rows.parts) of {chunks} '
                    'chunks (rows.chunks) each; change it or these.'
                )


def mesh_faults(config: ml_collections.FrozenConfigDict) -> Iterator[str]:
    """A mesh that is not the devices'."""
    if config.mesh.model >= 1:  # Else that is the fault.
        yield from caught(meshes.make_mesh, config.mesh.data, config.mesh.model)
