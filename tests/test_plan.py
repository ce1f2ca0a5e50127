"""The train step compiled ahead of time for TPU topologies, where the compiler is there."""

import pytest

from configs import mta4dpr
from jdkd import plan
from jdkd.runtime import config as configs


def tiny(**overrides):
    config = mta4dpr.get_config('tiny')
    for name, value in overrides.items():
        config[name] = value
    return configs.resolve(config)


def test_without_the_compiler_it_says_what_to_install():
    with pytest.raises(RuntimeError, match=r'pip install "jax\[tpu\]"'):
        plan.topology_devices('v99:1x1')


def test_the_step_compiles_for_v5e():
    pytest.importorskip('libtpu')
    found = plan.plan(tiny(), 'v5e:2x4')
    assert found['chips'] == 8
    assert 0 < found['parameters'] <= found['arguments'] < found['total'] < found['hbm']
    assert found['flops'] > 0
    assert '8 chips' in plan.table(found)
