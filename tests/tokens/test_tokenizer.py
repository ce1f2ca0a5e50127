"""Texts to ids: in memory, in a resumable stage, and from damaged files."""

import json

import numpy as np
import pytest

from jdkd.runtime import stages
from jdkd.tokens.tokenizer import load_tokenizer
from tests.helpers import toy


def test_a_written_store_equals_one_in_memory_also_after_a_kill(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr('jdkd.tokens.tokenizer._CALL_TEXTS', 4)
    monkeypatch.setattr('jdkd.tokens.tokenizer._PART_TEXTS', 8)
    words = 'max len of list . a'.split()
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(words, rng.integers(0, 12))) for _ in range(27)]
    expected = tokenizer.encode(texts, 9)

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
        return stages.build_stage(
            tmp_path / 'store',
            {},
            lambda out: tokenizer.write_store(out, texts, 9, desc='test'),
            resumable=True,
        )

    texts = Texts(texts)
    texts.down_at = 20
    with pytest.raises(KeyboardInterrupt):
        stage(texts)
    texts.down_at = None
    found = stage(texts)['result']
    # Two tokens of the nine are special ones.
    assert found == {'texts': 27, 'cut': sum(len(text.split()) > 7 for text in texts)}
    assert 0 < found['cut'] < 27
    assert taken == [0, 4, 8, 12, 16, 16, 20, 24]  # what was written is not tokenised again
    store = tokenizer.load_store(tmp_path / 'store', 9)
    assert sorted(p.name for p in (tmp_path / 'store').iterdir()) == [
        'ids.npy',
        'manifest.json',
        'offsets.npy',
    ]
    np.testing.assert_array_equal(store.ids, expected.ids)
    np.testing.assert_array_equal(store.offsets, expected.offsets)
    assert store.dtype == np.uint16 and store.length == 9


def test_the_mask_is_found_in_a_text(tokenizer, tmp_path):
    plain = load_tokenizer(toy.write_tokenizer(tmp_path / 'plain'))  # It is but a word of these.
    for reader in (tokenizer, plain):
        ids = reader.fast.encode(f'a {reader.mask}.', add_special_tokens=False).ids
        assert ids[1] == reader.special['mask'] and len(ids) == 3


def test_equal_tokenizers_have_equal_fingerprints(tokenizer):
    assert load_tokenizer(tokenizer.directory).fingerprint == tokenizer.fingerprint


def test_special_tokens_and_ids_are_those_of_the_files(tokenizer):
    assert tokenizer.special == {'cls': 1, 'sep': 2, 'pad': 0, 'mask': 3}
    assert tokenizer.last_id == 12


def test_large_vocabularies_take_32_bits(tokenizer):
    path = tokenizer.directory / 'tokenizer.json'
    content = json.loads(path.read_text())
    fingerprints = {tokenizer.fingerprint}
    for last, dtype in ((2**16 - 1, np.uint16), (2**16, np.int32)):
        content['model']['vocab']['a'] = last
        path.write_text(json.dumps(content))
        loaded = load_tokenizer(tokenizer.directory)
        assert loaded.last_id == last and loaded.encode(['a'], 4).dtype == dtype
        np.testing.assert_array_equal(loaded.encode(['a'], 4)[0], [1, last, 2])
        fingerprints.add(loaded.fingerprint)
    assert len(fingerprints) == 3


def test_encoding_truncates_each_call_by_itself(tokenizer):
    text = ['a list of a list']
    np.testing.assert_array_equal(tokenizer.encode(text, 4)[0], [1, 12, 10, 2])
    assert len(tokenizer.fast.encode(text[0]).ids) == 7
    assert len(tokenizer.encode(text, 9)[0]) == 7


def test_a_missing_special_token_is_named(tokenizer):
    (tokenizer.directory / 'tokenizer_config.json').unlink()
    path = tokenizer.directory / 'tokenizer.json'
    path.write_text(path.read_text().replace('[MASK]', '[BLANK]'))
    with pytest.raises(ValueError, match=r'no mask token \(\[MASK\] or <mask>\); name it as mask_'):
        load_tokenizer(tokenizer.directory)


def test_damaged_and_missing_files_are_named(tokenizer, tmp_path):
    (tokenizer.directory / 'tokenizer.json').write_text('{"model": 1')
    with pytest.raises(ValueError, match='tokenizer.json is no tokenizer that can be used'):
        load_tokenizer(tokenizer.directory)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='has no tokenizer.json and no vocabulary'):
        load_tokenizer(tmp_path / 'empty')
