"""Ids of odd tokenizers, beside transformers' AutoTokenizer."""

import json

import numpy as np
import pytest
import tokenizers
import transformers

from jdkd.tokens import tokenizer_files
from jdkd.tokens.tokenizer import load_tokenizer

WORDS = 'the cat sat on a mat Cat café Café cafe 北京 北 京 ##s , . [ ] SEP sep <new> new'
VOCABULARY = {
    word: i for i, word in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS.split()])
}
TEXTS = [
    'The Cat sat',
    'Café cafés CAFÉ',
    '北京 , cat',
    'the [SEP] cat <new> [MASK].',
    'a cat sat on the mat , the cat sat on a mat .',
    '',
]


def edit(file, **changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    content = {key: value for key, value in (content | changes).items() if value is not ...}
    file.write_text(json.dumps(content))


@pytest.fixture
def bert(tmp_path):
    """The files of a cased BERT, as transformers writes them."""
    tokenizer = transformers.BertTokenizerFast(vocab=VOCABULARY, do_lower_case=False)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    return tmp_path


def assert_equal_ids(directory):
    tokenizer = load_tokenizer(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for length in (64, 7):
        expected = theirs(TEXTS, truncation=True, max_length=length)['input_ids']
        store = tokenizer.encode(TEXTS, length)
        assert [store[i].tolist() for i in range(len(TEXTS))] == expected
    assert tokenizer.special == {
        role: getattr(theirs, f'{role}_token_id') for role in ('cls', 'sep', 'pad', 'mask')
    }
    return tokenizer


def token(content, **flags):
    plain = dict.fromkeys(('lstrip', 'rstrip', 'single_word', 'normalized', 'special'), False)
    return {'content': content, **plain, **flags}


CONFIG, MAP = 'tokenizer_config.json', 'special_tokens_map.json'


@pytest.mark.parametrize(
    ('file', 'changes', 'same'),
    [
        (CONFIG, {}, True),
        (CONFIG, {'do_lower_case': True}, False),
        (CONFIG, {'do_lower_case': ...}, False),  # The default of the class.
        (CONFIG, {'strip_accents': True}, False),
        (CONFIG, {'do_lower_case': True, 'strip_accents': False}, False),
        (CONFIG, {'tokenize_chinese_chars': False}, False),
        (CONFIG, {'truncation_side': 'left'}, False),
        (CONFIG, {'split_special_tokens': True}, False),
        (CONFIG, {'cls_token': '[SEP]'}, False),
        (CONFIG, {'extra_special_tokens': ['<new>']}, False),
        (CONFIG, {'additional_special_tokens': ['<new>']}, False),
        (CONFIG, {'added_tokens_decoder': {'18': token(',', lstrip=True)}}, False),
        (CONFIG, {'padding_side': 'left', 'model_max_length': 5, 'never_split': None}, True),
        (CONFIG, {'tokenizer_class': 'PreTrainedTokenizerFast', 'do_lower_case': True}, True),
        (CONFIG, {'tokenizer_class': 'DistilBertTokenizer', 'do_lower_case': True}, False),
        (CONFIG, {'tokenizer_class': 'MPNetTokenizer', 'pad_token': '[PAD]'}, False),
        (MAP, {'cls_token': '[SEP]'}, False),
        ('added_tokens.json', {'<more>': len(VOCABULARY)}, False),
        ('config.json', {'tokenizer_class': 'PreTrainedTokenizerFast'}, True),
        ('config.json', {'model_type': 'distilbert'}, True),
        ('tokenizer.json', {'truncation': None, 'padding': None}, True),
        (
            'tokenizer.json',
            {
                'truncation': {
                    'direction': 'Left',
                    'max_length': 3,
                    'strategy': 'LongestFirst',
                    'stride': 0,
                }
            },
            False,
        ),
        ('tokenizer.json', {'normalizer': {'type': 'Lowercase'}}, True),  # BERT's own is made anew.
        ('tokenizer.json', {'pre_tokenizer': {'type': 'Whitespace'}}, True),
    ],
)
def test_ids_are_those_of_transformers(bert, file, changes, same):
    before = load_tokenizer(bert).fingerprint
    edit(bert / file, **changes)
    assert (assert_equal_ids(bert).fingerprint == before) == same


def test_ids_of_a_directory_without_tokenizer_config(bert):
    (bert / CONFIG).unlink()
    assert_equal_ids(bert)
    edit(bert / 'config.json', tokenizer_class='BertTokenizerFast')
    assert_equal_ids(bert)


def test_ids_of_a_vocabulary_alone(bert):
    (bert / 'tokenizer.json').unlink()
    (bert / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
    for changes in ({}, {'do_lower_case': True, 'strip_accents': False}):
        edit(bert / CONFIG, **changes)
        assert_equal_ids(bert)


@pytest.mark.parametrize(
    'changes',
    [{}, {'add_prefix_space': True}, {'trim_offsets': False}, {'truncation_side': 'left'}],
)
def test_ids_of_byte_pairs(tmp_path, changes):
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    words = ['<s>', '<pad>', '</s>', '<unk>', '<mask>', *sorted(letters), 'Ġc', 'at', 'Ġcat']
    tokenizer = transformers.RobertaTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[('Ġ', 'c'), ('a', 't'), ('Ġc', 'at')],
    )
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "roberta"}')
    edit(tmp_path / CONFIG, **changes)
    assert_equal_ids(tmp_path)


def test_a_text_that_is_cut_on_the_left_is_cut_there_again(bert):
    edit(bert / CONFIG, truncation_side='left')
    tokenizer = load_tokenizer(bert)
    theirs = transformers.AutoTokenizer.from_pretrained(bert)
    expected = theirs(TEXTS, truncation=True, max_length=5, padding='max_length')['input_ids']
    store = tokenizer.encode(TEXTS, 9)
    rows = store.rows(np.arange(len(TEXTS)), 5, end=tokenizer.special['sep'])
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize(
    ('file', 'changes', 'message'),
    [
        (CONFIG, {'tokenizer_class': 'BertModel'}, "'BertModel', which is no tokenizer"),
        (CONFIG, {'tokenizer_class': 'os.system'}, "'os.system', which is no tokenizer"),
        ('config.json', {'tokenizer_class': 'Trainer'}, "'Trainer', which is no tokenizer"),
        (CONFIG, {'tokenizer_class': 'BertJapaneseTokenizer'}, 'no tokenizer that transformers c'),
        (CONFIG, {'cls_token': ['[CLS]']}, 'no tokenizer that transformers can read'),
        (CONFIG, {'truncation_side': 'middle'}, 'no tokenizer that transformers can read'),
        (CONFIG, {'unk_token': '[WHAT]', 'auto_map': {'AutoTokenizer': ['x.Y', None]}}, 'auto_map'),
    ],
)
def test_tokenizers_that_are_refused_by_name(bert, file, changes, message):
    edit(bert / file, **changes)
    with pytest.raises(ValueError, match=message):
        tokenizer_files.load(bert)
