"""Tokenised once, and text again from ids."""

import json

import numpy as np
import pytest
import tokenizers

from jdkd.runtime import stages
from jdkd.tokens.store import TokenStore
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


def test_rows_are_padded_and_cut_with_their_separator(tokenizer):
    found = tokenizer.encode(['a list', 'length of a list of a list', ''], 6)
    np.testing.assert_array_equal(
        found.rows(np.arange(3)), [[1, 12, 10, 2, 0, 0], [1, 7, 8, 9, 12, 2], [1, 2, 0, 0, 0, 0]]
    )
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found.lengths, [4, 6, 2])
    np.testing.assert_array_equal(found[0], [1, 12, 10, 2])


def test_rows_of_a_store_have_any_shape_and_length(tokenizer):
    store = tokenizer.encode(['a list', 'length of a list of a list', ''], 6)
    np.testing.assert_array_equal(
        store.rows([[1, 0], [2, 1]], 3),
        [[[1, 7, 8], [1, 12, 10]], [[1, 2, 0], [1, 7, 8]]],
    )
    # Cut rows end as whole ones do; [1, 2] is whole.
    np.testing.assert_array_equal(
        store.rows([1, 0, 2], 3, end=2), [[1, 7, 2], [1, 12, 2], [1, 2, 0]]
    )
    np.testing.assert_array_equal(store.rows([0, 1], 8, end=2)[:, 4:], [[0] * 4, [12, 2, 0, 0]])


def test_a_padding_token_that_a_text_spells_out_is_text(tokenizer):
    store = tokenizer.encode(['a [PAD] list [PAD]', '[PAD]'], 8)
    np.testing.assert_array_equal(store.lengths, [6, 3])
    rows = store.rows([0, 1])
    np.testing.assert_array_equal(rows, [[1, 12, 0, 10, 0, 2, 0, 0], [1, 0, 2, 0, 0, 0, 0, 0]])
    again = TokenStore.from_rows(rows, 0)
    np.testing.assert_array_equal(again.ids, store.ids)
    np.testing.assert_array_equal(again.offsets, store.offsets)


def test_a_written_store_equals_one_in_memory_also_after_a_kill(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr('jdkd.tokens.tokenizer._CALL_TEXTS', 4)
    monkeypatch.setattr('jdkd.tokens.tokenizer._PART_TEXTS', 8)
    words = 'max len of list . a'.split()
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(words, rng.integers(0, 12))) for _ in range(27)]
    expected = tokenizer.encode([f'a list {text}' for text in texts], 9)

    taken = []

    class Texts(list):
        """Notes which texts were taken; the machine goes down at the given one."""

        down_at = None

        def __getitem__(self, rows):
            if rows.start == self.down_at:
                raise KeyboardInterrupt
            taken.append(rows.start)
            return super().__getitem__(rows)

    def stage(texts):
        stages.build_stage(
            tmp_path / 'store',
            {},
            lambda out: tokenizer.write_store(out, texts, 9, prefix='a list ', desc='test'),
            resumable=True,
        )

    texts = Texts(texts)
    texts.down_at = 20
    with pytest.raises(KeyboardInterrupt):
        stage(texts)
    texts.down_at = None
    stage(texts)
    assert taken == [0, 4, 8, 12, 16, 16, 20, 24]  # what was written is not tokenised again
    found = tokenizer.load_store(tmp_path / 'store', 9)
    assert sorted(p.name for p in (tmp_path / 'store').iterdir()) == [
        'ids.npy',
        'manifest.json',
        'offsets.npy',
    ]
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert found.dtype == np.uint16 and found.length == 9


def test_decoding_gives_words_and_identifiers_back(tokenizer):
    ids = tokenizer.encode(['max_length of a list', 'a list'], 12).rows([0, 1])
    assert tokenizer.decode(ids) == ['max_length of a list', 'a list']


def test_masks_read_as_another_tokenizer_wants(tokenizer):
    ids = np.array([[1, 12, 3, 10, 2, 0]])
    assert tokenizer.decode(ids, mask='<mask>') == ['a <mask> list']
    assert tokenizer.decode(ids)[0].split() == ['a', 'list']


def test_equal_tokenizers_have_equal_fingerprints(tokenizer):
    assert load_tokenizer(tokenizer.directory).fingerprint == tokenizer.fingerprint
