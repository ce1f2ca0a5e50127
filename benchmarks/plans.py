"""Collects plans of one config for several topologies.

for t in v5e:2x4 v5p:2x2x2; do
    python -m jdkd.main --mode plan --topology=$t --config configs/mta4dpr.py:nq --workdir=nq/$t
done
python -m benchmarks.plans --name=nq --plans=nq

Figures go to benchmarks/results/plans_<name>.json, and from there into the docs
(benchmarks/tables.py).
"""

import pathlib

from absl import app, flags

from benchmarks import measure, tables
from jdkd.planning import plan
from jdkd.runtime import stages

_NAME = flags.DEFINE_string('name', None, 'Of the results.', required=True)
_PLANS = flags.DEFINE_string('plans', None, 'Where the workdirs are.', required=True)


def main(_):
    paths = sorted(pathlib.Path(_PLANS.value).glob(f'*/{plan.FILE}'))
    plans = [stages.read_json(path) for path in paths]
    measure.write(f'plans_{_NAME.value}', {'plans': {p['topology']: p for p in plans}})
    tables.update()


if __name__ == '__main__':
    app.run(main)
