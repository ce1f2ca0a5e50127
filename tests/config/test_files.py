"""Configs: what may be overridden, what is said otherwise, what the workdir keeps."""

import sys

import absl.flags
import ml_collections
import pytest
from ml_collections import config_flags

from jdkd import config as configs
from jdkd import validation
from jdkd.config import schema
from jdkd.configs import adam, common, mta4dpr

FILE = 'configs/mta4dpr.py'


@pytest.mark.parametrize(
    'argv',
    [
        [],
        ['--config', FILE, '--config.rounds=3'],
        [f'--config={FILE}:tiny', '--config.systems.minilm_ft.train.steps=2', '--workdir=x'],
        ['--config.loss.teacher', '0', '--config.teacher.weights=1.,30.'],
    ],
)
def test_fields_that_exist(argv):
    configs.check_overrides(argv, FILE)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--config.loss.techer=0'], "no field 'loss.techer'; did you mean loss.teacher"),
        (['--config.los.teacher=0'], "no field 'los.teacher'; did you mean loss.teacher"),
        (['--config.student.layer=1'], 'did you mean student.layers'),
        (['--config=configs/none.py'], "there is no config file 'configs/none.py'"),
        ([f'--config={FILE}:huge'], "has no variant 'huge'; use tiny, msmarco, nq or beir=PATH"),
    ],
)
def test_fields_that_do_not_exist(argv, message):
    with pytest.raises(ValueError, match=message):
        configs.check_overrides(argv, FILE)


def test_names_on_the_command_line_are_split():
    config = mta4dpr.get_config()
    config.teacher.members = ('bm25,minilm', 'cross')
    config.candidates.retrievers = ('bm25,minilm',)
    assert configs.resolve(config).teacher.members == ('bm25', 'minilm', 'cross')
    assert configs.resolve(config).candidates.retrievers == ('bm25', 'minilm')


def test_a_mapping_where_names_belong_is_not_reduced_to_its_keys():
    config = configs.resolve(ml_collections.ConfigDict({'teacher': {'members': {'bm25': 0.3}}}))
    (error,) = schema.type_errors(config)
    assert error.startswith("teacher.members is {'bm25': 0.3}, but must be a tuple of items")


def overridden(*args):
    """The config as the command line makes it."""
    values = absl.flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        # Overrides are looked up there as soon as the flag is defined.
        patch.setattr(sys, 'argv', ['jdkd', *args])
        config_flags.DEFINE_config_file('config', FILE, lock_config=True, flag_values=values)
        values(sys.argv)
    return values.config


def test_a_schedule_on_the_command_line():
    config = overridden(
        '--config.loss.teacher=0.5',
        '--config.loss.assistant=0',
        '--config.loss.temperature=((0, 4), (0.5, 1.))',
        '--config.self_paced.share=1',
    )
    found = configs.resolve(config)
    validation.validate(found)
    assert found.loss.teacher == 0.5 and found.loss.assistant == 0
    assert found.loss.temperature == ((0, 4), (0.5, 1.0))
    assert found.self_paced.share == 1 and found.loss.contrastive == 1


def test_a_schedule_comes_back_from_the_workdir(tmp_path):
    config = mta4dpr.get_config()
    config.loss.teacher = ((0.0, 1.0), (1.0, 0.25))
    config = configs.resolve(config)
    configs.save(tmp_path, config)
    found = configs.load(tmp_path)
    assert found == config and found.loss.teacher == ((0.0, 1.0), (1.0, 0.25))


def test_steps_follow_an_override():
    config = mta4dpr.get_config()
    config.rounds, config.steps_per_round = 3, 7
    config.systems.minilm_ft.train.steps = 9
    found = configs.resolve(config)
    assert found.optimizer.total_steps == 21
    assert found.systems['minilm_ft'].train.total_steps == 9


def test_the_workdirs_config_comes_back(tmp_path):
    config = configs.resolve(mta4dpr.get_config('tiny'))
    configs.save(tmp_path / 'run', config)
    configs.save(tmp_path / 'run', config)
    found = configs.load(tmp_path / 'run')
    assert found == config
    assert configs.digest(found) == configs.digest(config)


def test_a_workdir_of_another_config_is_refused(tmp_path):
    configs.save(tmp_path, configs.resolve(mta4dpr.get_config()))
    other = mta4dpr.get_config()
    other.loss.teacher = 0.25
    with pytest.raises(ValueError, match=r'loss.teacher is 1.0 there and 0.25 here'):
        configs.save(tmp_path, configs.resolve(other))


def test_an_empty_workdir_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no run'):
        configs.load(tmp_path)


def test_defaults_are_our_reading_of_the_papers():
    c = common.get_config()
    assert (c.selection.fusion, c.selection.distance, c.selection.per) == ('subsets', 'kl', 'batch')
    assert (c.loss.contrastive, c.loss.teacher, c.loss.assistant, c.loss.dark) == (1, 1, 1, 1)
    assert (c.loss.in_batch, c.loss.distance, c.loss.temperature) == (0, 'kl', 1)
    assert (c.dark.reinforced, c.dark.noisy) == (4, 2)
    assert c.dark.splice == c.dark.mask == (0.1, 0.5)
    assert c.self_paced.weighting == 'hard'
    assert c.self_paced.share == ((0, 0.5), (1, 1))
    assert c.compare == 'MRR@10' and 0 < c.replay < 1


def test_adam_has_one_teacher_and_no_assistants():
    config = configs.resolve(adam.get_config())
    assert config.assistants == () and config.rounds == 1 and config.dark.noisy
