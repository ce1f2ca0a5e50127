"""Overrides on the command line: the last one counts, None, numbers, and names with commas."""

import doctest
import re
import sys

import absl.flags
import pytest
from ml_collections import config_flags

from jdkd import config as configs
from jdkd import validation
from jdkd.config import overrides

FILE, EVAL = 'configs/mta4dpr.py', 'configs/eval.py'


@pytest.fixture(autouse=True)
def parsers(monkeypatch):
    """Flags that take None, as main registers them, for one test."""
    monkeypatch.setattr(
        config_flags.config_flags,
        '_FIELD_TYPE_TO_PARSER',
        dict(config_flags.config_flags._FIELD_TYPE_TO_PARSER),
    )
    configs.register_parsers()


def resolved(*argv, file=FILE):
    """The config as the command line makes it."""
    values = absl.flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        # Overrides are looked up there as soon as the flag is defined.
        patch.setattr(sys, 'argv', ['jdkd', *configs.check_overrides(argv, file)])
        config_flags.DEFINE_config_file('config', file, lock_config=True, flag_values=values)
        values(sys.argv)
    return configs.resolve(values.config)


def test_the_example_of_the_docstring():
    assert doctest.testmod(overrides).failed == 0


@pytest.mark.parametrize(
    ('argv', 'field', 'value'),
    [
        (['--config.rounds=3', '--config.rounds=4'], 'rounds', 4),
        (['--config.assistants=a', '--config.assistants=b,c'], 'assistants', ('b', 'c')),
        (['--config.measures', 'R@5', '--config.measures', 'MAP'], 'measures', ('MAP',)),
        (['--config.teacher.weights=1.,2.', '--config.teacher.weights=3.'], 'weights', (3.0,)),
        (['--config.dark.splice=.1,.2', '--config.dark.splice=.3,.4'], 'splice', (0.3, 0.4)),
        (['--noconfig.ignore_identical_ids', '--config.ignore_identical_ids'], 'ignore', True),
        (['--config.ignore_identical_ids', '--noconfig.ignore_identical_ids'], 'ignore', False),
        (['--config.loss.teacher=((0,1),(1,0))', '--config.loss.teacher=0.5'], 'loss', 0.5),
    ],
)
def test_the_last_override_of_a_field_counts(argv, field, value):
    config = resolved(*argv)
    found = {
        'weights': config.teacher.weights,
        'splice': config.dark.splice,
        'ignore': config.ignore_identical_ids,
        'loss': config.loss.teacher,
    }
    assert (found[field] if field in found else getattr(config, field)) == value


def test_other_words_of_the_command_line_stay_in_their_order():
    argv = [
        '--workdir=x',
        '--config.rounds',
        '3',
        '--mode',
        'train',
        '--config.rounds=4',
        '-v',
        '1',
    ]
    kept = ['--workdir=x', '--mode', 'train', '--config.rounds=4', '-v', '1']
    assert configs.check_overrides(argv, FILE) == kept


@pytest.mark.parametrize(
    'field', ['student.hidden_size', 'student.revision', 'student.normalize', 'student.label']
)
def test_none_leaves_a_field_open(field):
    config = resolved(f'--config.{field}=1', f'--config.{field}=None')
    assert getattr(config.student, field.partition('.')[2]) is None
    validation.validate(config)


def test_none_for_lists_of_names_and_weights_is_none_of_them():
    assert resolved('--config.assistants=None').assistants == ()
    assert resolved('--config.teacher.weights=None').teacher.weights is None
    assert resolved('--config.encoder.query_length=None', file=EVAL).encoder.query_length is None


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        (
            'student.query_length=None',
            'student.query_length is None, but must be a whole number, s',
        ),
        ('train_passage_length=None', 'train_passage_length is None, but must be a whole number'),
        ('index.leaves=None', 'index.leaves is None, but must be a number, such as 0.1; correct'),
        ('systems.bm25.k1=None', 'systems.bm25.k1 is None, but must be a number'),
        ('student.weights=None', 'student.weights is None, but must be text'),
        ('ignore_identical_ids=None', 'ignore_identical_ids is None, but must be True or False'),
        ('loss.teacher=None', 'loss.teacher is None, but must be a number or a tuple'),
        (
            'teacher.weights=a,b',
            'weights is .* must be a tuple of items that each are a number or N',
        ),
        ('measures=None', 'measures is empty; name at least one'),
    ],
)
def test_none_for_what_must_be_set_is_an_error(override, message):
    with pytest.raises(ValueError, match=message):
        validation.validate(resolved(f'--config.{override}'))


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('depth=ten', "--config.depth: 'ten' must be a whole number"),
        ('depth=1.5', "--config.depth: '1.5' must be a whole number"),
        ('depth=', "--config.depth: '' must be a whole number"),
        ('index.leaves=10%', "--config.index.leaves: '10%' must be a number"),
        ('ignore_identical_ids=maybe', "'maybe' must be true or false"),
        ('systems.minilm_ft.train.steps=many', "steps: 'many' must be a whole number"),
        ('student=None', '--config.student is a section, not None; override its fields'),
    ],
)
def test_a_value_of_another_type_is_an_error(override, message):
    with pytest.raises(ValueError, match=message):
        configs.check_overrides([f'--config.{override}'], FILE)


NAMES = [
    ('python_docs,beir:/a', ('python_docs', 'beir:/a')),
    ('"beir:/a,b",python_docs', ('beir:/a,b', 'python_docs')),
    ("'beir:/a,b', python_docs", ('beir:/a,b', 'python_docs')),
    ('beir:"/a,b",beir:/c', ('beir:/a,b', 'beir:/c')),
    ("beir:/Bob's,beir:/Al's", ("beir:/Bob's", "beir:/Al's")),
    ('beir:/a (b,c),beir:/d', ('beir:/a (b,c)', 'beir:/d')),
    (' beir:/a , ,', ('beir:/a',)),
]


@pytest.mark.parametrize(('text', 'names'), NAMES)
def test_names_with_commas_are_quoted(text, names):
    assert resolved(f'--config.collections={text}', file=EVAL).collections == names


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('nDCG@10,P(rel=2,judged_only=True)@10', ('nDCG@10', 'P(rel=2,judged_only=True)@10')),
        ("('nDCG@10','R@5')", ('nDCG@10', 'R@5')),
        ('nDCG(gains={0:0,1:3})@10', ('nDCG(gains={0:0,1:3})@10',)),
        ('1,07', ('1', '07')),
        ('nDCG(dcg="exp-log2")@10, MAP', ('nDCG(dcg="exp-log2")@10', 'MAP')),
    ],
)
def test_names_are_text_whatever_they_look_like(text, names):
    assert resolved(f'--config.measures={text}').measures == names


@pytest.mark.parametrize(('text', 'names'), [('bm25,minilm', ('bm25', 'minilm')), ('', ())])
@pytest.mark.parametrize(
    'field',
    [
        'assistants',
        'teacher.members',
        'candidates.retrievers',
        'align.to',
        'pseudo_labels.systems',
    ],
)
def test_systems_are_named_with_commas(field, text, names):
    config: object = resolved(f'--config.{field}={text}')
    for name in field.split('.'):
        config = getattr(config, name)
    assert config == names


@pytest.mark.parametrize('name', ['measures[0]', 'measures[9]', 'teacher.weights[0]'])
def test_an_item_of_a_tuple_is_no_field(name):
    field = name.partition('[')[0]
    with pytest.raises(ValueError, match=f'tuples are replaced as a whole; give --config.{field} '):
        configs.check_overrides([f'--config.{name}=1'], FILE)


@pytest.mark.parametrize('name', ['', 'student..label', 'num-layers', 'rounds ', '1x', 'x('])
def test_a_name_that_is_none_is_a_sentence(name):
    with pytest.raises(ValueError, match=f"has no field '{re.escape(name.strip())}'; "):
        configs.check_overrides([f'--config.{name}=1'], FILE)
