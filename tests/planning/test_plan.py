"""What a run costs: parts by hand, and a plan of a run on this machine's devices."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jdkd import config as configs
from jdkd.config import EncoderSpec
from jdkd.configs import mta4dpr
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder, Projection
from jdkd.models.transformer import Transformer, TransformerConfig
from jdkd.planning import chips, compiled, corpus_size, plan, roofline
from jdkd.planning.chips import CHIPS, Chip
from jdkd.runtime import mesh as meshes
from jdkd.systems import loading
from tests.helpers import processes, tiny, toy

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_a_missing_compiler_is_named():
    with pytest.raises(RuntimeError, match=r'pip install "jax\[tpu\]"'):
        chips.find_devices('v99:1x1')


@pytest.mark.parametrize('topology', ['h100:nine', 'l4:'])
def test_a_missing_gpu_compiler_or_a_wrong_number_of_gpus_is_named(topology, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setenv('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '')
    with pytest.raises(RuntimeError, match=rf"'{topology}' .* \"jdkd\[plan-gpu\]\" .* h100:8"):
        chips.find_devices(topology)


def test_gpus_are_described_as_xla_describes_them():
    lines = chips._target('h100').split('\n')
    # As XLA's own description of an H100 SXM has them.
    for line in (
        '  core_count: 132',
        '  fpus_per_core: 128',
        '  shared_memory_per_core: 233472',
        '  shared_memory_per_block_optin: 232448',
        '  l2_cache_size: 52428800',
        '  cuda_compute_capability { major: 9 minor: 0 }',
        'device_description_str: "NVIDIA H100 80GB HBM3"',
    ):
        assert line in lines
    # 64 float32 units of 108 cores, a product and a sum a cycle: 19.5 TFLOP/s on the data sheet.
    gpu = chips._GPUS['a100']
    assert 2e9 * gpu.cores * gpu.fpus * gpu.clock == pytest.approx(19.5e12, rel=0.01)
    assert all(chips.find_chip(f'{name}:1', []) for name in chips._GPUS)
    assert {gpu.kind for gpu in chips._GPUS.values()} <= chips._BY_KIND.keys()


def test_operations_are_counted_where_the_compiler_does_not(monkeypatch):
    mesh = meshes.make_mesh(2, 1, devices=jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec(None, 'data'))
    x = jax.ShapeDtypeStruct((5, 16, 64), jnp.float32, sharding=sharding)
    computation = jax.jit(lambda x: jax.lax.map(lambda part: part @ part.T, x)).trace(x)
    monkeypatch.setattr(jax.stages.Compiled, 'cost_analysis', lambda self: None)
    step = roofline.Traced(computation, (), (), 0.0, mesh.size).step
    assert step.flops == 5 * 2 * 16 * 64 * 16 / 2 and step.traffic == step.main_memory > 0


def test_local_devices_are_known_by_their_kind():
    gpu = types.SimpleNamespace(device_kind='NVIDIA H200')
    assert chips.find_chip(chips.LOCAL, [gpu]).bandwidth == 4800e9
    tpu = types.SimpleNamespace(device_kind='TPU v5 lite')
    assert chips.find_chip(chips.LOCAL, [tpu]) == CHIPS['v5e'] == chips.find_chip('v5e:2x4', [gpu])
    assert chips.find_chip(chips.LOCAL, jax.devices()) is None


def test_collectives_of_a_compiled_computation():
    mesh = meshes.make_mesh(4, 2)

    def place(x, *spec):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))

    def array(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def fn(x, a, b):
        return place(x), place(a @ b)

    inputs = array((32, 64), 'data'), array((8, 64), None, 'model'), array((64, 4), 'model')
    sums = compiled.collectives(jax.jit(fn).lower(*inputs).compile().as_text(), mesh.size)
    assert sums == {
        'all-gather': compiled.Collective(1, 4 * 32 * 64, 4 * 32 * 64 * 3 / 4),
        'all-reduce': compiled.Collective(1, 4 * 8 * 4, 2 * 4 * 8 * 4 / 2),
    }


@pytest.mark.parametrize(
    ('operation', 'size', 'sent'),
    [
        ('f32[8,128]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}', 4096, 6144),
        ('(bf16[8]{0:T(8)S(1)}, f32[2]{0}) all-reduce(%x, %y), replica_groups=[2,4]<=[8]', 24, 36),
        ("f32[64]{0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}", 256, 192),
        ('(f32[8]{0}, f32[64]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8]', 256, 224),
        ('f32[16]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}', 256, 192),
        ('u8[100]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}', 100, 100),
        ('f32[16]{0} all-to-all(%x), replica_groups={}, dimensions={0}', 64, 56),
    ],
)
def test_bytes_of_a_collective(operation, size, sent):
    (sums,) = compiled.collectives(f'%a = {operation}', 8).values()
    assert sums == compiled.Collective(1, size, sent)


def test_a_collective_within_one_device_is_none_and_one_in_two_places_is_one():
    alone = '%a = f32[8]{0} all-reduce(%x), replica_groups={{0},{1}}'
    twice = '\n'.join(
        f'%a.{i} = f32[8]{{0}} all-gather(%x), channel_id=3, replica_groups={{{{0,1}}}}'
        for i in range(2)
    )
    assert compiled.collectives(alone, 2) == {}
    assert compiled.collectives(twice, 2) == {'all-gather': compiled.Collective(1, 32, 16.0)}


# As the TPU compiler writes it: no known_trip_count, but a condition on the counter.
LOOP = """
%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(17), metadata={op_name="x"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %sum = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body, metadata={op_name="y"}
}
"""


def test_the_condition_of_a_loop_tells_its_trips():
    assert compiled.collectives(LOOP, 2) == {'all-reduce': compiled.Collective(17, 17 * 32, 544.0)}
    unknown = LOOP.replace('direction=LT', 'direction=NE')
    assert compiled.collectives(unknown, 2)['all-reduce'].count == 1


def test_loops_count_every_trip():
    mesh = meshes.make_mesh(2, 1, devices=jax.devices()[:2])

    def array(shape, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def step(count):
        x, w = array((count, 16, 64), None, 'data'), array((64, 64), 'data')
        computation = jax.jit(lambda x, w: jax.lax.map(lambda part: part @ w, x)).trace(x, w)
        return roofline.Traced(computation, w, (), 0.0, mesh.size).step

    once, often = step(1), step(50)
    product = 2 * 8 * 64 * 64  # On one of two devices.
    assert product <= once.flops < 1.1 * product and 50 * product <= often.flops < 55 * product
    assert often.main_memory > 50 * 2 * 4 * 8 * 64
    text = """
%body (p: (f32[8])) -> (f32[8]) {
  %r = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (b: (f32[8])) -> (f32[8]) {
  %w = (f32[8]{0}) while(%b), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %s = f32[8]{0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%add
}
"""
    assert compiled.collectives(text, 2) == {'all-reduce': compiled.Collective(4, 4 * 32, 4 * 32.0)}


def test_main_memory_leaves_out_traffic_within_the_chip():
    text = """
%body (p: (f32[8])) -> (f32[8]) {
  %p = (f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=0
  %twice = f32[8]{0} add(%x, %x)
  ROOT %t = (f32[8]{0}) tuple(%twice)
}

ENTRY %main (a: f32[64], b: (f32[8])) -> f32[4] {
  %a = f32[64]{0:T(256)} parameter(0)
  %b = (f32[8]{0}) parameter(1)
  %s = ((f32[64]{0:T(256)}), f32[16]{0:T(256)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:16]}
  %near = f32[16]{0:T(256)S(1)} slice-done(%s)
  %inside = f32[16]{0:T(256)S(1)} negate(%near)
  %w = (f32[8]{0}) while(%b), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[4]{0} fusion(%inside, %a), kind=kLoop
}
"""
    slice_, loop, fusion = 4 * 16, 3 * 4 * (8 + 8 + 8), 4 * (4 + 64)
    assert compiled.main_memory(text) == slice_ + loop + fusion


def test_the_roofline_by_hand():
    chip = Chip(flops=100.0, memory=1000, bandwidth=10.0, links=4.0)
    moved = {'all-reduce': compiled.Collective(1, 8, 12.0)}
    step = roofline.Step(
        {'total': 10}, 300.0, 90.0, 20.0, moved, model_flops=240.0, compile_seconds=0.0
    )
    # 3 s of computation, 2 s of memory, and 3 s of links after the longer of the two.
    assert step.seconds(chip) == {'computation': 3.0, 'memory': 2.0, 'links': 3.0, 'bound': 6.0}
    assert step.utilisation(chip) == 240 / (6 * 100)


@pytest.mark.parametrize('gated', [False, True])
def test_operations_counted_by_hand_are_those_that_are_compiled(gated):
    config = TransformerConfig(
        vocab_size=50,
        hidden_size=256,
        num_layers=2,
        num_heads=4,
        intermediate_size=1024,
        max_positions=64,
        gated=gated,
    )
    model = Transformer(config)
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    ours = roofline.forward_flops(config, np.full(4, 64))

    def loss(params, tokens):
        return model.apply(params, tokens).sum()

    for fn, times in ((loss, 1), (jax.grad(loss), 3)):
        cost = jax.jit(fn).lower(params, tokens).compile().cost_analysis()
        # Theirs has norms, activations and softmax too.
        assert times * ours < cost['flops'] < 1.15 * times * ours


@pytest.mark.parametrize(
    ('model', 'overrides'),
    [
        (DualEncoder(toy.TRANSFORMER, 'mean', True), {}),
        (DualEncoder(toy.TRANSFORMER, 'cls', False, Projection(6)), {'layers': (0,)}),
        (CrossEncoder(toy.TRANSFORMER, 'linear'), {'kind': 'cross_encoder'}),
        (DualEncoder(toy.TRANSFORMER, 'cls', True), {'kind': 'cross_encoder'}),
        (DualEncoder(toy.TRANSFORMER, 'cls', True), {'hidden_size': 4}),
    ],
)
def test_a_model_sketched_without_tensors_is_the_one_that_is_read(tmp_path, model, overrides):
    toy.write_model(tmp_path / 'model', model)
    lengths = {'query_length': 8, 'passage_length': 16}
    spec = EncoderSpec(weights=str(tmp_path / 'model'), **lengths, **overrides)
    read, params, _ = loading.read_model(spec, 0)
    (tmp_path / 'model' / 'model.safetensors').unlink()
    sketched, shapes = loading.sketch_model(spec)
    assert sketched == read
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)


def test_numbers_in_the_config_are_not_counted():
    config = configs.resolve(mta4dpr.get_config('msmarco'))
    size = corpus_size.measure(config, None, meshes.make_mesh())
    assert (size.passages, size.train + size.held_out, size.test) == (8841823, 507220, 6980)
    assert size.held_out == 4281
    lengths = size.passage_lengths((4096,), 144)
    assert lengths.max() == 144 and 70 < lengths.mean() < 76
    sample = size.query_sample()  # Of 9 tokens on average, none with fewer than 8.
    assert 9 < sample.mean() < 11 and len(sample) == 4096
    assert len(dataclasses.replace(size, query_tokens=None).query_sample()) == 0


def test_queries_alone_are_not_enough():
    config = mta4dpr.get_config('tiny')
    config.plan.train_queries = 10
    with pytest.raises(ValueError, match='need plan.passages'):
        corpus_size.measure(configs.resolve(config), None, meshes.make_mesh())


def test_passages_alone_are_not_enough_and_pseudo_queries_count():
    config = mta4dpr.get_config('tiny')
    config.plan.passages = 100
    with pytest.raises(ValueError, match='plan.passages needs plan.train_queries'):
        corpus_size.measure(configs.resolve(config), None, meshes.make_mesh())
    config.collection.pseudo_queries.count, config.collection.eval_fraction = 50, 0.1

    def queries():
        size = corpus_size.measure(configs.resolve(config), None, meshes.make_mesh())
        return size.train, size.held_out

    assert queries() == (45, 5)
    config.plan.train_queries = 30
    assert queries() == (77, 3)


def test_labels_are_counted_of_the_queries_that_may_get_one(tmp_path):
    config = mta4dpr.get_config('tiny')
    config.plan.update(passages=100, train_queries=30)
    config.collection.pseudo_queries.count, config.collection.eval_fraction = 50, 0.1
    config.collection.label_share = 1 / 3
    size = corpus_size.measure(configs.resolve(config), None, meshes.make_mesh())
    assert size.labels == (9, 18) and size.unlabelled == 50 + 18
    config.collection.pseudo_queries.positive = True
    size = corpus_size.measure(configs.resolve(config), None, meshes.make_mesh())
    assert size.labels == (50 + 9, 18) and size.unlabelled == 18
    tiny.write(tmp_path)
    run = tiny.open_run(tiny.get_config(str(tmp_path)), tmp_path / 'w')
    own = run.train.is_labelled
    assert corpus_size.of_run(run).labels == (own.sum(), (~own).sum()) and not own.all()


def test_a_workdir_without_its_pseudo_queries_is_not_read(tmp_path):
    """They would be made there, where a run may be at work."""
    (tmp_path / 'collection').mkdir()
    config = mta4dpr.get_config('tiny')
    config.plan.update(passages=100, train_queries=30)
    config.collection.pseudo_queries.count = 50
    size = corpus_size.measure(configs.resolve(config), tmp_path, meshes.make_mesh())
    assert size.passages == 100 and [path.name for path in tmp_path.iterdir()] == ['collection']


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    home = tmp_path_factory.mktemp('plan')
    params = toy.write_model(home / 'model', DualEncoder(toy.TRANSFORMER, 'mean', True))
    toy.write_collection(home / 'corpus')
    (home / 'config.py').write_text(
        f"""
import ml_collections
from jdkd.configs import mta4dpr

def get_config():
    c = mta4dpr.get_config('tiny')
    c.collection.source = 'beir:{home}/corpus'
    c.collection.options = ml_collections.ConfigDict()
    c.student.layers = ()
    for entry in (c.systems.minilm, c.systems.cross, c.student):
        entry.weights = '{home}/model'
        entry.passage_length = 24
    c.train_passage_length = 8
    c.teacher.members = ('bm25', 'cross')
    c.assistants = ('minilm', 'bm25')
    c.align.to = ('minilm',)
    c.index.mining = 'exact'
    return c
"""
    )
    workdir = home / 'run'
    args = ['--mode=plan', '--topology=local', f'--config={home}/config.py']
    eight = processes.environment(devices=8)
    done = processes.run_jdkd(*args, f'--workdir={workdir}', env=eight)
    assert done.returncode == 0, done.stderr[-3000:]
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    return json.loads((workdir / plan.FILE).read_text()), done.stdout, size


def test_a_plan_counts_the_steps_of_each_phase(planned):
    plan_json, shown, _ = planned
    assert (
        plan_json['chips'] == 8
        and plan_json['texts']['passages'] == 30
        and plan_json['rounds'] == 2
    )
    stages = {stage['name']: stage for stage in plan_json['stages']}
    assert list(stages) == [
        'train cross',
        'encode with minilm',
        'score with cross',
        'encode with student',
        'search',
        'align student',
        'train student',
    ]
    assert all(name in shown for name in stages)
    count = {name: round(s['steps'] * s['items_per_step']) for name, s in stages.items()}
    # 30 passages, 2 train queries, 2 of D_eval and 4 test queries; lists of 3 + 2 candidates.
    lists = 10 * 8 + 8  # Of D_eval a whole batch.
    assert count == {
        'train cross': 2 * 8,  # Of 150 steps, ten passes over the queries.
        # Once more as training cuts passages: at 8 tokens nine tenths of the work.
        'encode with minilm': 38 + 27 + 2 * lists * 2,
        # The pool that negatives are drawn from, of train and D_eval, is scored too: a positive and
        # 30 passages, as many again in round 1, and the lists that weights are fitted to.
        'score with cross': 30 * (2 + 4) + (31 + 30) * (2 + 2) + 8 * 3 + 2 * lists * 5,
        'encode with student': 4 * 38,
        'search': (2 + 2) * 2,  # Of minilm and the student, and after each round.
        'align student': 32,
        'train student': 2 * 10 * 8,
    }
    # An unknown chip has no time bound.
    assert 'chip_hours' not in plan_json and stages['train student']['hours'] is None


def test_a_plan_has_memory_and_communication_of_a_step(planned):
    plan_json, _, params = planned
    step = plan_json['stages'][-1]
    memory = step['memory']
    assert memory['parameters'] == params
    assert 2 * params <= memory['optimizer'] < 2 * params + 100
    assert memory['total'] >= 3 * params + memory['temporaries']
    # The gradients of all devices are summed.
    assert step['collectives']['all-reduce']['size'] >= params
    assert plan_json['disk']['checkpoints'] > 0 and plan_json['host']['import'] > 0


def test_a_plan_counts_the_work_of_the_host(planned):
    plan_json, shown, _ = planned
    work = {row['name']: row for row in plan_json['host_work']['work']}
    assert work['search with BM25']['units'] == 8 * 30
    assert plan_json['host_hours'] == sum(row['hours'] for row in work.values()) > 0
    assert all(f'\n{name} ' in shown for name in work)
    assert 'transient, GiB: ' in shown and 'throughputs of ' in shown
    # Without the devices' hours there is no sum.
    assert f'host: {plan_json["host_hours"]:.3g} hours' in shown and 'hours' not in plan_json
