import pathlib

import ml_collections
import pytest

from jdkd import config as configs
from jdkd.config import BM25Spec, Config, EncoderSpec, EvalConfig, LossConfig, ScoresSpec, schema
from jdkd.configs import ablation, adam, common, mta4dpr
from jdkd.configs import eval as eval_config


@pytest.mark.parametrize('make', [mta4dpr.get_config, adam.get_config, ablation.get_config])
def test_a_config_survives_the_way_through_its_dict(make):
    config = configs.resolve(make())
    assert isinstance(config, Config)
    again = schema.read(Config, config.to_dict())
    assert again == config and configs.digest(again) == configs.digest(config)
    assert list(config.to_dict()) == sorted(config.to_dict())


def test_values_are_those_of_the_config_dict():
    c = mta4dpr.get_config()
    resolved = configs.resolve(c).to_dict()
    frozen = ml_collections.FrozenConfigDict(c.copy_and_resolve_references()).to_dict()
    assert resolved == frozen


def test_systems_are_read_by_their_kind():
    c = mta4dpr.get_config()
    c.systems.ranker = common.scores('ranker.trec')
    systems = configs.resolve(c).systems
    kinds = {name: type(spec) for name, spec in systems.items()}
    assert kinds == {
        'bm25': BM25Spec,
        'cross': EncoderSpec,
        'minilm': EncoderSpec,
        'minilm_ft': EncoderSpec,
        'ranker': ScoresSpec,
    }
    assert systems['ranker'].path == 'ranker.trec' and list(systems) == sorted(systems)


def test_an_unknown_kind_is_named_with_those_there_are():
    c = mta4dpr.get_config()
    c.systems.minilm.kind = 'splade'
    with pytest.raises(ValueError, match="systems.minilm.kind is 'splade'; use one of bm25, dual"):
        configs.resolve(c)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'epochs': 3}, "no field 'epochs'"),
        ({'loss': {'hinge': 1.0}}, "no field 'loss.hinge'"),
        ({'systems': {'a': {'kind': 'bm25', 'k2': 1.0}}}, "no field 'systems.a.k2'"),
        ({'loss': 3}, 'loss=3 must be a section'),
        ({'systems': {'a': 'bm25'}}, "systems.a.kind is 'None'; use one of bm25"),
    ],
)
def test_what_a_config_does_not_have_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        schema.read(Config, values)


def test_a_sections_errors_by_hand():
    config = Config(rounds=-1, batch_size=True, loss=LossConfig(distance='l2'), replay=float('nan'))
    assert list(schema.errors(config)) == [
        "loss.distance is 'l2'; use one of kl, margin_mse.",
        'rounds=-1 must be at least 0.',
        'batch_size=True must be at least 1.',
        'replay=nan must be within 0 and 1.',
    ]
    # None leaves a field open.
    assert not list(schema.errors(EncoderSpec(hidden_size=None, scale=None), 'student.'))
    spec = EncoderSpec(hidden_size=0, pooling='sum', train=EncoderSpec().train.replace(scale=0.0))
    assert list(schema.errors(spec, 'student.')) == [
        'student.hidden_size=0 must be at least 1.',
        "student.pooling is 'sum'; use one of mean, cls, max.",
        'student.train.scale=0.0 must be above 0.',
    ]


def test_fields_keep_their_types_on_the_command_line():
    c = common.get_config()
    c.loss.teacher = ((0.0, 1.0), (1.0, 0.5))  # A schedule may hold either.
    c.loss.teacher = 0.5
    c.teacher.weights = (0.5, 0.5)
    with pytest.raises(TypeError):
        c.teacher.weights = 'half'
    with pytest.raises(TypeError):
        c.rounds = 'two'
    encoder = common.encoder('weights')
    encoder.hidden_size = 192
    with pytest.raises(TypeError):
        encoder.hidden_size = 'wide'


def test_a_config_is_frozen():
    config = configs.resolve(mta4dpr.get_config())
    with pytest.raises(AttributeError):
        config.rounds = 3
    assert config.replace(rounds=3).rounds == 3 and config.rounds == 2


def test_the_reference_names_every_field_once():
    paths = [path for path, *_ in schema.reference(Config)]
    assert len(paths) == len(set(paths))
    c = configs.resolve(common.get_config())
    assert {'loss.teacher', 'rows.shared', 'student.train.learning_rate', 'systems'} <= set(paths)
    assert set(c.to_dict()) <= set(paths)
    assert all(comment for *_, comment in schema.reference(Config))
    assert {path for path, *_ in schema.reference(EvalConfig)} >= set(
        configs.resolve(eval_config.get_config()).to_dict()
    )


def test_the_packaged_configs_are_the_top_level_ones():
    import jdkd.configs

    top = pathlib.Path(__file__).parents[2] / 'configs'
    (packaged,) = map(pathlib.Path, jdkd.configs.__path__)
    assert packaged.resolve() == top.resolve()
