"""What models are given of texts and pairs, beside what their files say."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

import jdkd
from jdkd.config import EncoderSpec
from jdkd.models.cross_encoder import CrossEncoder
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import mesh as meshes
from jdkd.systems.encoders import read_encoder
from tests.helpers import toy

CONFIG = 'tokenizer_config.json'


def edit(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


@pytest.fixture
def cross(tmp_path):
    toy.write_model(tmp_path / 'model', CrossEncoder(toy.TRANSFORMER, 'linear'))
    return tmp_path / 'model'


@pytest.fixture
def dual(tmp_path):
    toy.write_model(tmp_path / 'model', DualEncoder(toy.TRANSFORMER))
    return tmp_path / 'model'


def load(directory, kind='cross_encoder', lengths=(8, 12)):
    spec = EncoderSpec(weights=str(directory), kind=kind)
    spec = spec.replace(query_length=lengths[0], passage_length=lengths[1])
    return read_encoder(spec, meshes.make_mesh())


@pytest.mark.parametrize(
    ('single', 'pair', 'theirs'),
    [
        (
            '[CLS] $A [SEP]',
            '[CLS] $A [SEP] $B [SEP]',
            '[CLS]:0 [UNK]:0 [SEP]:0 [UNK]:0 [SEP]:0, ',
        ),
        ('[CLS] $A [SEP]', '[CLS] $A [SEP] [SEP] $B:1 [SEP]:1', '[SEP]:0 [SEP]:0 [UNK]:1'),
        ('$A [SEP]', '$A [SEP] $B:1 [SEP]:1', 'types [UNK]:0 [SEP]:0 [UNK]:1 [SEP]:1, where'),
        ('[CLS]:1 $A:1 [SEP]:1', '[CLS]:1 $A:1 [SEP]:1 $B:1 [SEP]:1', r'types [CLS]:1 [UNK]:1'),
    ],
)
def test_pairs_that_a_tokenizer_joins_otherwise_are_refused(cross, single, pair, theirs):
    load(cross)
    tokenizer = tokenizers.Tokenizer.from_file(str(cross / 'tokenizer.json'))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
    )
    tokenizer.save(str(cross / 'tokenizer.json'))
    with pytest.raises(ValueError, match='correct post_processor in its tokenizer.json') as error:
        load(cross)
    assert theirs in str(error.value)


def test_token_types_that_the_model_is_not_given_are_refused(cross):
    edit(cross / CONFIG, model_input_names=['input_ids', 'attention_mask'])
    with pytest.raises(ValueError, match=r'\[UNK\]:0 \[SEP\]:0, where jdkd .* model_input_names'):
        load(cross)


def test_one_token_type_is_not_enough_for_pairs(tmp_path):
    config = dataclasses.replace(toy.TRANSFORMER, type_vocab_size=1)
    toy.write_model(tmp_path / 'model', CrossEncoder(config, 'linear'))
    with pytest.raises(ValueError, match='an embedding of one token type'):
        load(tmp_path / 'model')


def test_padding_is_the_tokenizers(dual):
    """As of multilingual-e5-small, whose config.json names another token."""
    texts = ['red cat', 'dog bird fish runs sleeps', 'blue']
    expected = jdkd.load(dual).encode(texts)
    edit(dual / 'config.json', pad_token_id=5)  # The word "cat".
    retriever = jdkd.load(dual)
    assert retriever.encoder.model.transformer.pad_id == 0
    np.testing.assert_allclose(retriever.encode(texts), expected, atol=1e-6)


def test_padding_with_the_end_of_texts_is_refused(dual):
    edit(dual / CONFIG, pad_token='[SEP]')
    with pytest.raises(ValueError, match=r"ends a text with the token that it pads with, '\[SEP\]"):
        load(dual, 'dual_encoder')


@pytest.mark.parametrize('lengths', [(1, 8), (8, 1)])
def test_lengths_without_room_for_special_tokens(dual, lengths):
    with pytest.raises(ValueError, match='_length=1 has no room for the 2 special tokens'):
        load(dual, 'dual_encoder', lengths)
    load(dual, 'dual_encoder', (2, 2))


def test_lengths_without_room_for_a_text_beside_its_prompt(tmp_path):
    """The prompt is the checkpoint's own: with it, all queries would be one."""
    dual = tmp_path / 'prompted'
    toy.write_model(dual, DualEncoder(toy.TRANSFORMER, 'mean', True), query_prompt='red cat ')
    message = r"query_length=4 .* beside its prefix 'red cat ', of 2 tokens, and the 2 special"
    with pytest.raises(ValueError, match=message):
        load(dual, 'dual_encoder', (4, 4))
    load(dual, 'dual_encoder', (5, 4))


def test_a_long_token_is_shown_in_part(dual):
    content = json.loads((dual / 'tokenizer.json').read_text())
    content['model']['vocab']['\x1b' + 'x' * 10**5] = 70
    (dual / 'tokenizer.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has a token 70, '.x1bxxx") as error:
        load(dual, 'dual_encoder')
    assert len(str(error.value)) < 700
