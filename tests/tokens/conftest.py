"""A small WordPiece tokenizer in a directory of its own."""

import json

import pytest
import tokenizers

from jdkd.tokens.tokenizer import load_tokenizer


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
    return load_tokenizer(tmp_path)
