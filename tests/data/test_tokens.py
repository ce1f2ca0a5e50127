"""Tokenised once, and text again from ids."""

import json

import numpy as np
import pytest
import tokenizers

from jdkd.data import tokens


@pytest.fixture
def tokenizer(tmp_path):
    words = '[PAD] [CLS] [SEP] [MASK] [UNK] max _ len ##gth of list . a'.split()
    model = tokenizers.models.WordPiece(
        {word: i for i, word in enumerate(words)}, unk_token='[UNK]'
    )
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    fast.decoder = tokenizers.decoders.WordPiece()
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)]
    )
    fast.add_special_tokens(words[:5])
    fast.save(str(tmp_path / 'tokenizer.json'))
    names = {'cls_token': '[CLS]', 'sep_token': '[SEP]', 'pad_token': '[PAD]'}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(names | {'mask_token': '[MASK]'}))
    return tokens.load(tmp_path)


def test_rows_are_padded_and_cut_with_their_separator(tokenizer):
    found = tokenizer.encode(['a list', 'length of a list of a list', ''], 6)
    np.testing.assert_array_equal(
        found, [[1, 12, 10, 2, 0, 0], [1, 7, 8, 9, 12, 2], [1, 2, 0, 0, 0, 0]]
    )
    assert found.dtype == np.uint16


def test_decoding_gives_words_and_identifiers_back(tokenizer):
    ids = tokenizer.encode(['max_length of a list', 'a list'], 12)
    assert tokenizer.decode(ids) == ['max_length of a list', 'a list']


def test_masks_read_as_another_tokenizer_wants(tokenizer):
    ids = np.array([[1, 12, 3, 10, 2, 0]])
    assert tokenizer.decode(ids, mask='<mask>') == ['a <mask> list']
    assert tokenizer.decode(ids)[0].split() == ['a', 'list']


def test_equal_tokenizers_have_equal_fingerprints(tokenizer):
    assert tokens.load(tokenizer.directory).fingerprint == tokenizer.fingerprint


def test_prefixes():
    assert tokens.prefixed('query: ', ['a', 'b']) == ['query: a', 'query: b']
    assert tokens.prefixed('', ['a']) == ['a']
