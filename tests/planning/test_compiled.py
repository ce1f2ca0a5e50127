"""Communication read from texts that compilers wrote, and what is no longer read but refused.

hlo/ has one function over a mesh of 4 x 2, as XLA's compilers for CPUs and for TPUs (v5e) wrote it,
less `backend_config` and line numbers.
"""

import pathlib
import types

import jax
import pytest

from jdkd.planning import compiled, roofline
from jdkd.planning.compiled import Collective

TEXTS = {path.stem: path.read_text() for path in pathlib.Path(__file__).parent.glob('hlo/*.txt')}
# Arrays on a chip: gathered f32[16, 256] (bf16 on TPUs) in pairs, f32[16, 128] scattered in pairs,
# f32[4, 512] exchanged by four and passed on, f32[8, 128] summed by four, f32[] by all eight.
EXPECTED = {
    'cpu': {
        'all-gather': Collective(1, 16384, 16384 / 2),
        'reduce-scatter': Collective(1, 8192, 8192 / 2),
        'all-to-all': Collective(1, 8192, 8192 * 3 / 4),
        'collective-permute': Collective(1, 8192, 8192.0),
        # In a loop of five trips.
        'all-reduce': Collective(5 + 1, 5 * 4096 + 4, 5 * 4096 * 2 * 3 / 4 + 4 * 2 * 7 / 8),
    },
    'tpu': {
        'all-gather': Collective(1, 8192, 8192 / 2),
        'all-to-all': Collective(1, 8192, 8192 * 3 / 4),
        'collective-permute': Collective(1, 8192, 8192.0),
        # It sums the whole where it is to be scattered.
        'all-reduce': Collective(3, 4096 + 4096 + 4, 4096 + 4096 * 2 * 3 / 4 + 4 * 2 * 7 / 8),
    },
}


@pytest.mark.parametrize('compiler', ['cpu', 'tpu'])
def test_communication_of_recorded_texts(compiler):
    assert compiled.collectives(TEXTS[compiler], 8) == EXPECTED[compiler]
    assert compiled.main_memory(TEXTS[compiler]) > 0


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('all-reduce(', 'all_reduce(', 'an operation between devices'),
        ('all-to-all(', 'all-to-all-v2(', 'an operation between devices'),
        ('all-gather(', 'gather-all(', 'an operation between devices'),
        ('collective-permute', 'permute', 'an operation between devices'),
        ('all-gather(', 'collective-broadcast(', 'an operation between devices'),
        ('= f32[', '= f32 [', 'an operation between devices'),
        ('= f32[', '= f32<', 'an operation between devices'),
        (' = ', ' := ', 'no entry'),
        ('ENTRY ', 'MAIN ', 'no entry'),
        ('replica_groups=', 'groups=', 'groups of devices'),
        ('{{0,2,4,6},{1,3,5,7}}', '<0,2,4,6>', 'groups of devices'),
        ('f32[8,128]', 'g32[8,128]', 'an array'),
        ('f32[8,128]', 'f32[8x128]', 'an array'),
    ],
)
@pytest.mark.parametrize('compiler', ['cpu', 'tpu'])
def test_text_in_another_format_is_an_error_and_not_silence(compiler, old, new, message):
    changed = TEXTS[compiler].replace(old, new)
    assert changed != TEXTS[compiler]
    with pytest.raises(ValueError, match=f'{message} that jdkd cannot read.*report it'):
        compiled.collectives(changed, 8)


def test_no_text_is_an_error():
    for text in ('', 'HloModule jit_fn\n'):
        with pytest.raises(ValueError, match='no entry'):
            compiled.collectives(text, 8)
        with pytest.raises(ValueError, match='no entry'):
            compiled.main_memory(text)


@pytest.mark.parametrize(
    ('shape', 'size'),
    [
        ('pred[3]', 3),
        ('s4[3]', 2),
        ('f8e4m3fn[5]', 5),
        ('bf16[2,3]', 12),
        ('c128[2]', 32),
        ('f64[]', 8),
        ('f32[<=8,2]', 64),
        ('(token[], u16[4])', 8),
    ],
)
def test_bytes_of_arrays(shape, size):
    text = f'%a = {shape} all-reduce(%x), replica_groups={{{{0,1}}}}'
    assert compiled.collectives(text, 2)['all-reduce'].size == size


def test_a_train_step_on_several_devices_that_communicates_nothing_is_an_error():
    memory = types.SimpleNamespace(
        temp_size_in_bytes=0,
        output_size_in_bytes=0,
        alias_size_in_bytes=0,
        argument_size_in_bytes=0,
    )
    step = types.SimpleNamespace(
        as_text=lambda: 'ENTRY %main (a: f32[8]) -> f32[8] {\n  %b = f32[8]{0} negate(%a)\n}\n',
        memory_analysis=lambda: memory,
        cost_analysis=lambda: {'flops': 1.0, 'bytes accessed': 1.0},
    )
    lowered = types.SimpleNamespace(compile=lambda: step)
    computation = types.SimpleNamespace(lower=lambda: lowered, jaxpr=None)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    moments = jax.ShapeDtypeStruct((8,), 'float32', sharding=sharding)
    with pytest.raises(RuntimeError, match='no communication is found in a train step of 8'):
        _ = roofline.Traced(computation, (), moments, 0.0, devices=8).step
    # Alone, or without an optimizer, there need be none.
    assert roofline.Traced(computation, (), moments, 0.0, devices=1).step.collectives == {}
    assert roofline.Traced(computation, (), (), 0.0, devices=8).step.collectives == {}
