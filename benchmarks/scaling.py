"""Times a train step on growing numbers of virtual devices of this CPU.

python -m benchmarks.scaling --weights sentence-transformers/all-MiniLM-L6-v2

The devices share the cores and the batch is always the same, so time above that of one device is
the price of partition and collectives. A tensor-parallel mesh pays more of it.
Meshes are data x model; all take their turns in one run.
"""

import jax
from absl import app, flags

from benchmarks import measure, train_step
from jdkd.models import weights
from jdkd.runtime import mesh as meshes

_MESHES = flags.DEFINE_list('meshes', ['1x1', '2x1', '4x1', '8x1', '4x2'], 'data x model.')


def main(_):
    path = weights.find_weights(train_step.WEIGHTS.value)
    batches = train_step.train_batches(1)
    sides = {}
    for name in _MESHES.value:
        data, model = map(int, name.split('x'))
        mesh = meshes.make_mesh(data, model, devices=jax.devices()[: data * model])
        # The rows are the same on every mesh.
        sides[name], _ = train_step.prepared(path, batches, mesh, parts=8)
    seconds = train_step.timed(sides, 1)
    first = seconds[_MESHES.value[0]]
    measure.write(
        'scaling',
        {
            'dtype': train_step.DTYPE.value,
            'lists': train_step.LISTS.value,
            'candidates': train_step.CANDIDATES.value,
            'meshes': {
                name: {'seconds': round(s, 4), 'of_the_first': round(s / first, 3)}
                for name, s in seconds.items()
            },
        },
    )


if __name__ == '__main__':
    jax.config.update('jax_num_cpu_devices', 8)
    app.run(main)
