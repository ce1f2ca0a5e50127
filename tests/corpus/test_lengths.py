"""Passage lengths that a config leaves open."""

import numpy as np
import pytest

from jdkd import config as configs
from jdkd import validation
from jdkd.commands import setup
from jdkd.config import BM25Spec, CollectionConfig, Config, EncoderSpec, StudentSpec
from jdkd.corpus import lengths
from tests.helpers import tiny


def open_config(source='beir:x', train=0, student=0):
    return Config(
        collection=CollectionConfig(source=source),
        student=StudentSpec(passage_length=student),
        systems={
            'bm25': BM25Spec(),
            'open': EncoderSpec(passage_length=0),
            'given': EncoderSpec(passage_length=24),
        },
        train_passage_length=train,
    )


def fitted(config, words):
    return lengths.fit(config, lambda: np.array(words))


@pytest.mark.parametrize(
    ('words', 'length', 'train'),
    [
        ([10] * 9 + [500], 88, 88),  # A quantile of 59 words: 81 tokens.
        ([20] * 20, 32, 32),  # 29 tokens.
        ([1, 2], 16, 16),
        ([120] * 5, 168, 128),
        ([300] * 5, 256, 128),
    ],
)
def test_nine_tenths_of_the_passages_fit(words, length, train):
    config = fitted(open_config(), words)
    assert (config.student.passage_length, config.train_passage_length) == (length, train)
    assert [config.systems[name].passage_length for name in ('open', 'given')] == [length, 24]


def test_pythons_documentation_is_cut_to_fixed_lengths_and_no_word_is_counted():
    config = lengths.fit(open_config('python_docs'), lambda: pytest.fail('counted'))
    assert (config.student.passage_length, config.train_passage_length) == (80, 40)


def test_what_the_config_gives_is_kept():
    assert fitted(open_config(train=20), [300]).train_passage_length == 20
    assert fitted(open_config(train=200), [20]).train_passage_length == 32
    config = fitted(open_config(student=200), [300])
    assert config.student.passage_length == config.train_passage_length == 200
    closed = Config(student=StudentSpec(passage_length=30), train_passage_length=20)
    assert lengths.fit(closed, lambda: pytest.fail('counted')) is closed


def test_a_run_is_opened_with_the_lengths_of_its_collection(tmp_path):
    tiny.write(tmp_path)
    config = tiny.get_config(str(tmp_path))
    config.student.passage_length = config.train_passage_length = 0
    config = configs.resolve(config)
    assert config.student.passage_length == 0
    run = setup.open_run(config, tmp_path / 'w')
    words = [len(text.split()) for text in run.passages]
    assert run.config.student.passage_length == run.config.train_passage_length == 16 > max(words)
    assert run.config.systems['dense'].passage_length == 12


def test_sizes_are_checked_again_with_the_lengths_of_the_collection(tmp_path):
    tiny.write(tmp_path)
    config = tiny.get_config(str(tmp_path))
    config.student.passage_length = config.train_passage_length = 0
    config.rows.shared = 8
    config = configs.resolve(config)
    validation.validate(config)
    with pytest.raises(ValueError, match='rows.shared=8 does not .* student.passage_length=16'):
        validation.before_work(setup.open_run(config, tmp_path / 'w'))
