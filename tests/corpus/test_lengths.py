"""Lengths that a config leaves open."""

import json

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


def fitted(config, words, query_words=()):
    return lengths.fit(config, tokens(words), tokens(query_words))


def tokens(words):
    """Of texts of so many words, as English has them."""
    return lambda: 1.35 * np.array(words) + 2 if words else np.zeros(0)


def not_counted():
    pytest.fail('counted')


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


@pytest.mark.parametrize(
    ('words', 'length'),
    [
        ([8] * 20, 32),
        ([30] * 9 + [400], 96),  # A quantile of 67 words: 92.4 tokens.
        ([40] * 20, 56),  # 56 tokens.
        ([300] * 5, 128),
        ([], 32),
    ],
)
def test_nine_tenths_of_the_train_queries_fit(words, length):
    config = open_config(student=20, train=20)
    config = config.replace(
        student=config.student.replace(query_length=0),
        systems={
            'open': EncoderSpec(passage_length=20, query_length=0),
            'given': EncoderSpec(passage_length=20, query_length=9),
        },
    )
    config = lengths.fit(config, not_counted, tokens(words))
    specs = config.student, config.systems['open'], config.systems['given']
    assert [spec.query_length for spec in specs] == [length, length, 9]
    assert [spec.passage_length for spec in specs] == [20, 20, 20]


def test_prefixes_that_the_config_gives_count():
    config = open_config()
    spec = config.student.replace(query_length=0, query_prefix='a ' * 10, passage_prefix='b ' * 10)
    config = fitted(config.replace(student=spec), [20] * 20, [30] * 20)
    # 40 words, 56 tokens; 30 words, 42.5 tokens.
    assert (config.student.query_length, config.student.passage_length) == (56, 48)
    assert config.systems['open'].passage_length == 32


def test_pythons_documentation_is_cut_to_fixed_lengths_and_no_word_is_counted():
    config = lengths.fit(open_config('python_docs'), not_counted, not_counted)
    assert (config.student.passage_length, config.train_passage_length) == (80, 40)


def test_what_the_config_gives_is_kept():
    assert fitted(open_config(train=20), [300]).train_passage_length == 20
    assert fitted(open_config(train=200), [20]).train_passage_length == 32
    config = fitted(open_config(student=200), [300])
    assert config.student.passage_length == config.train_passage_length == 200
    closed = Config(student=StudentSpec(passage_length=30), train_passage_length=20)
    assert lengths.fit(closed, not_counted, not_counted) == closed


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


def test_the_queries_of_a_run_are_its_train_queries(tmp_path):
    tiny.write(tmp_path)
    path = tmp_path / 'toy/queries.jsonl'
    queries = [json.loads(line) for line in path.read_text().splitlines()]
    qrels = (tmp_path / 'toy/qrels/train.tsv').read_text().splitlines()
    train = {line.split()[0] for line in qrels}
    for query in queries:
        # A tokenizer sees two tokens where no space tells words apart.
        query['text'] += '-word' * (40 if query['_id'] in train else 200)
    path.write_text(''.join(json.dumps(query) + '\n' for query in queries))
    config = tiny.get_config(str(tmp_path))
    config.student.query_length = 0
    run = setup.open_run(configs.resolve(config), tmp_path / 'w')
    words = [len(text.replace('-', ' - ').split()) for text in run.train.texts]
    expected = np.quantile(words, 0.9) + 2
    assert 80 < expected <= run.config.student.query_length < expected + 8
    assert run.config.systems['dense'].query_length == 8


def test_sizes_are_checked_again_with_the_lengths_of_the_collection(tmp_path):
    tiny.write(tmp_path)
    config = tiny.get_config(str(tmp_path))
    config.student.passage_length = config.train_passage_length = 0
    config.rows.shared = 8
    config = configs.resolve(config)
    validation.validate(config)
    with pytest.raises(ValueError, match='rows.shared=8 does not .* student.passage_length=16'):
        validation.before_work(setup.open_run(config, tmp_path / 'w'))
