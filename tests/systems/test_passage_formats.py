"""How models read the title and the text of a passage: joined, by a colon, or as a pair."""

import types

import jax
import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

import jdkd
from jdkd.config import EncoderSpec
from jdkd.corpus.passages import Passages
from jdkd.lists.candidates import Lists
from jdkd.lists.slices import SlicedTexts
from jdkd.models import export
from jdkd.models.dual_encoder import DualEncoder
from jdkd.runtime import mesh, stages
from jdkd.systems import encoders, loading
from jdkd.validation import fields
from tests.helpers import toy

TITLES, TEXTS = ['Cat', '', ' red bird'], ['dog runs', 'fish', 'cat cat cat cat cat']
WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK]'.split() + toy.WORDS + ['-', ':']
CONFIG = toy.TRANSFORMER.__class__(**{**vars(toy.TRANSFORMER), 'vocab_size': len(WORDS) + 3})


def ids(text):
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A BERT of random weights with the tokenizer of its family, exported."""
    home = tmp_path_factory.mktemp('model')
    tokenizer = home / 'tokenizer'
    tokenizer.mkdir()
    (tokenizer / 'vocab.txt').write_text('\n'.join(WORDS))
    fast = transformers.BertTokenizerFast(str(tokenizer / 'vocab.txt'))
    fast.save_pretrained(tokenizer)
    toy.write_model(
        home / 'bert',
        DualEncoder(CONFIG, 'cls', True),
        tokenizer_dir=tokenizer,
        passage_format='pair',
    )
    return home / 'bert'


def read(model, **overrides):
    spec = EncoderSpec(weights=str(model), query_length=8, passage_length=8, **overrides)
    return encoders.read_encoder(spec, mesh.make_mesh())


def fake_run(directory):
    return types.SimpleNamespace(
        workdir=directory,
        passages=Passages.from_columns('abc', TITLES, TEXTS),
        collection=types.SimpleNamespace(fingerprint='c'),
        stage=lambda path, *args, **kwargs: stages.build_stage(directory / path, *args, **kwargs),
    )


def split(store, row, size):
    """Ids and token types of a text."""
    return (store[row] % size).tolist(), (store[row] // size).tolist()


def test_a_pair_has_the_ids_and_types_of_transformers(model, tmp_path):
    store = read(model, passage_format='pair').passage_tokens(fake_run(tmp_path))
    assert store.dtype == np.uint16
    theirs = transformers.AutoTokenizer.from_pretrained(model)
    for row, (title, text) in enumerate(zip(TITLES, TEXTS, strict=True)):
        expected = theirs(title or '-', text_pair=text, max_length=8, truncation=True)
        found = split(store, row, CONFIG.vocab_size)
        assert found == (expected['input_ids'], expected['token_type_ids'])
    assert split(store, 0, CONFIG.vocab_size) == (
        ids('[CLS] cat [SEP] dog runs [SEP]'),
        [0, 0, 0, 1, 1, 1],
    )
    assert split(store, 1, CONFIG.vocab_size)[0] == ids('[CLS] - [SEP] fish [SEP]')


def test_formats_are_told_apart_in_the_same_run(model, tmp_path):
    run = fake_run(tmp_path)
    for kind, expected in (
        ('joined', ['[CLS] cat dog runs [SEP]', '[CLS] fish [SEP]']),
        ('colon', ['[CLS] cat : dog runs [SEP]', '[CLS] - : fish [SEP]']),
        ('pair', ['[CLS] cat [SEP] dog runs [SEP]', '[CLS] - [SEP] fish [SEP]']),
    ):
        encoder = read(model, passage_format=kind)
        store = encoder.passage_tokens(run)
        assert [split(store, i, CONFIG.vocab_size)[0] for i in (0, 1)] == [*map(ids, expected)]
        # The same texts by themselves, as a notebook gives them.
        again = encoder.encode_passages([('Cat', 'dog runs'), 'fish'])
        assert all((again[i] == store[i]).all() for i in (0, 1))
        assert encoder.text_room(8) == 8 - len(expected[1].split()) + 1


def test_dark_examples_keep_the_title_of_the_passage_that_they_are_made_of(model, tmp_path):
    # 'Cat dog runs' with its text masked, and with words of 'red bird cat ...' across its title.
    slices = np.array(
        [(0, 0, 4), (-1, 4, 7), (0, 7, 12), (0, 0, 7), (2, 4, 12), (0, 7, 12), (1, 0, 4)], np.int32
    )
    dark = SlicedTexts(slices, np.array([[3, 3, 1]], np.int32))
    lists = Lists(np.zeros(1, np.int32), np.zeros((1, 1), np.int32), dark)
    store = read(model, passage_format='pair').dark_tokens(fake_run(tmp_path), lists)
    assert [split(store, i, CONFIG.vocab_size) for i in range(3)] == [
        (ids('[CLS] cat [SEP] [MASK] runs [SEP]'), [0, 0, 0, 1, 1, 1]),
        (ids('[CLS] cat [SEP] dog bird cat runs [SEP]'), [0, 0, 0, 1, 1, 1, 1, 1]),
        (ids('[CLS] - [SEP] fish [SEP]'), [0, 0, 0, 1, 1]),
    ]


def test_pairs_are_embedded_as_by_transformers_and_sentence_transformers(model):
    retriever = jdkd.load(model)  # The export says that passages are pairs.
    found = retriever.encode([*zip(TITLES[::2], TEXTS[::2], strict=True), 'fish'])
    pairs = [('Cat', 'dog runs'), ('red bird', 'cat cat cat cat cat'), ('-', 'fish')]
    theirs = transformers.AutoModel.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    batch = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors='pt')
    with torch.no_grad():
        expected = torch.nn.functional.normalize(theirs(**batch).last_hidden_state[:, 0])
        untyped = theirs(**batch | {'token_type_ids': 0 * batch['token_type_ids']})
    np.testing.assert_allclose(found, expected, atol=2e-5)
    plain = torch.nn.functional.normalize(untyped.last_hidden_state[:, 0])
    assert np.abs(found - np.asarray(plain)).max() > 0.01  # Types matter.
    library = sentence_transformers.SentenceTransformer(str(model), device='cpu')
    np.testing.assert_allclose(found, library.encode(pairs), atol=2e-5)
    # Queries are single texts.
    queries = retriever.encode(['red cat'], kind='query')
    np.testing.assert_allclose(queries, library.encode(['red cat']), atol=2e-5)


@pytest.mark.slow
def test_packed_rows_keep_the_types_of_their_texts(model):
    encoder = read(model, passage_format='pair')
    store = encoder.encode_passages([('cat', 'dog'), ('red', 'blue fish')])
    row = np.concatenate([store[0], store[1]]).astype(np.int32)[None]
    segments = np.repeat([1, 2], store.lengths)[None].astype(np.int32)
    params = jax.device_get(encoder.params)
    apply = encoder.model.apply
    packed = apply({'params': params}, row, segments, num_segments=2)[0]
    alone = [apply({'params': params}, store[i].astype(np.int32)[None])[0] for i in (0, 1)]
    np.testing.assert_allclose(packed, alone, atol=2e-5)


def test_a_cut_pair_ends_with_a_separator_of_its_second_text(model):
    encoder = read(model, passage_format='pair')
    store = encoder.encode_passages([('cat', 'dog runs blue')])
    row = store.rows(np.array([0]), 5, end=encoder.passage_end)[0]
    assert (row % CONFIG.vocab_size).tolist() == ids('[CLS] cat [SEP] dog [SEP]')
    assert (row // CONFIG.vocab_size).tolist() == [0, 0, 0, 1, 1]


def test_a_cross_encoder_cannot_read_a_pair_as_its_passage(model):
    spec = EncoderSpec(weights=str(model), kind='cross_encoder', passage_format='pair')
    with pytest.raises(ValueError, match='passage_format=pair is for dual-encoders'):
        loading.sketch_model(spec)
    (error,) = fields.spec_errors('systems.ranker', spec)
    assert error.startswith('systems.ranker: passage_format=pair is for dual-encoders')


def test_an_export_with_an_unknown_format_is_refused(model, tmp_path):
    (tmp_path / export.MARKER).write_text('{"passage_format": "\\u001btriple"}')
    with pytest.raises(ValueError, match=r"passage_format '\\x1btriple'; use one of joined, colon"):
        export.read_passage_format(tmp_path)
    assert export.read_passage_format(tmp_path / 'elsewhere') is None
    assert export.read_passage_format(model) == 'pair'


def test_passages_are_read_as_the_entry_says_or_else_the_export(tmp_path):
    (tmp_path / export.MARKER).write_text('{"passage_format": "colon"}')
    for asked, directory, expected in (
        (None, tmp_path, 'colon'),
        ('pair', tmp_path, 'pair'),
        (None, tmp_path / 'elsewhere', 'joined'),
    ):
        spec = EncoderSpec(passage_format=asked)
        assert loading._with_format(spec, directory).passage_format == expected


def test_a_border_never_shifts_characters():
    passages = Passages.from_columns('abcd', [' a', '', 'c ', 'd'], ['b ', ' x', '  y', ' '])
    bordered = encoders.Layout('pair').bordered(passages)
    assert [*map(len, bordered)] == [*map(len, passages)]
    assert [len(text) for text in bordered[1:3]] == [len(text) for text in passages[1:3]]
    found = encoders.Layout('pair', 'p: ').inputs(passages)[:]
    assert found == [('p: a', 'b'), ('p: -', 'x'), ('p: c', 'y'), ('p: -', 'd')]
