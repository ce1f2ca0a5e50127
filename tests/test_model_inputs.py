"""What the recipes' public models read, to the letter of their model cards.

Each card is on huggingface.co under the model's name. The tokenizers are toys of the models'
families, with the special tokens, normalisers and templates of transformers' own classes.
"""

import pathlib

import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from jdkd import config as configs
from jdkd.configs import mta4dpr
from jdkd.models.config import TransformerConfig
from jdkd.models.families import FAMILIES
from jdkd.models.pretrained import Architecture
from jdkd.systems import loading
from jdkd.systems.encoders import Encoder
from jdkd.tokens.pairs import join_pairs
from jdkd.tokens.tokenizer import load_tokenizer

QUERY, TITLE, TEXT = 'red Fish', 'A Cat', 'the dog runs'
WORDS = (
    'red fish a cat the dog runs - : query passage represent this sentence for searching relevant '
    'passages'
).split()
BERT = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS]
MPNET = ['<s>', '<pad>', '</s>', '[UNK]', '<mask>', *WORDS]
XLM = ['<s>', '<pad>', '</s>', '<unk>', *[f'▁{w}' for w in WORDS], '▁Fish', '▁A', '▁Cat', '<mask>']


def wordpiece(directory, family, vocabulary):
    """A tokenizer as transformers makes it from the vocabulary of BERT, ELECTRA, MPNet, ..."""
    (directory / 'vocab.txt').write_text('\n'.join(vocabulary))
    cls = {'mpnet': transformers.MPNetTokenizerFast, 'electra': transformers.ElectraTokenizerFast}
    cls = cls.get(family, transformers.BertTokenizerFast)
    cls(str(directory / 'vocab.txt')).save_pretrained(directory)


def sentencepiece(directory):
    """XLM-RoBERTa's: words with the mark of a space before them, case kept, and its template."""
    fast = tokenizers.Tokenizer(models.Unigram([(w, -1.0) for w in XLM], unk_id=3))
    fast.normalizer = normalizers.NFKC()
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.add_special_tokens(['<s>', '<pad>', '</s>', '<unk>', '<mask>'])
    fast.post_processor = processors.TemplateProcessing(
        single='<s> $A </s>',
        pair='<s> $A </s> </s> $B </s>',
        special_tokens=[('<s>', 0), ('</s>', 2)],
    )
    fast.save(str(directory / 'tokenizer.json'))


def encoder(directory: pathlib.Path, name: str, recipe: str, family: str):
    """The encoder that a recipe describes, with a toy tokenizer of its family and no weights."""
    config = configs.resolve(mta4dpr.get_config(recipe))
    spec = config.student if name == 'student' else config.systems[name]
    vocabulary = {'mpnet': MPNET, 'xlm-roberta': XLM}.get(family, BERT)
    if family == 'xlm-roberta':
        sentencepiece(directory)
    else:
        wordpiece(directory, family, vocabulary)
    shape = TransformerConfig(
        family=family,
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        intermediate_size=8,
        max_positions=512,
    )
    source = Architecture(
        config=shape,
        tokenizer_dir=directory,
        pooling=None,
        normalize=False,
        projection=None,
        classifies=spec.kind == 'cross_encoder',
        labels=(),
        max_length=512,
        query_length=512,
        passage_length=512,
    )
    model = loading._make_module(spec, source)
    return Encoder(model, None, load_tokenizer(directory), spec, source), vocabulary


def written(tokens, vocabulary):
    return ' '.join(vocabulary[i] for i in tokens)


# Recipe and name of the system, family, query and passage as read with and without a title, token
# types of the passage, pooling and whether the embedding is normalised.
DUAL = [
    (
        'msmarco',
        'simlm',  # tokenizer(query); tokenizer(title or '-', text_pair=passage)
        'bert',
        '[CLS] red fish [SEP]',
        '[CLS] a cat [SEP] the dog runs [SEP]',
        '[CLS] - [SEP] the dog runs [SEP]',
        [0, 0, 0, 1, 1, 1, 1],
        ('cls', True),
    ),
    (
        'msmarco',
        'student',  # as SimLM
        'bert',
        '[CLS] red fish [SEP]',
        '[CLS] a cat [SEP] the dog runs [SEP]',
        '[CLS] - [SEP] the dog runs [SEP]',
        [0, 0, 0, 1, 1, 1, 1],
        ('cls', True),
    ),
    (
        'msmarco',
        'e5',  # 'query: ' and 'passage: '; average_pool, F.normalize
        'bert',
        '[CLS] query : red fish [SEP]',
        '[CLS] passage : a cat the dog runs [SEP]',
        '[CLS] passage : the dog runs [SEP]',
        [0] * 7,
        ('mean', True),
    ),
    (
        'nq',
        'bge',  # an instruction before queries alone; [:, 0], normalised
        'bert',
        '[CLS] represent this sentence for searching relevant passages : red fish [SEP]',
        '[CLS] a cat the dog runs [SEP]',
        '[CLS] the dog runs [SEP]',
        [0] * 5,
        ('cls', True),
    ),
    (
        'nq',
        'mpnet',  # cls_pooling, dot product
        'mpnet',
        '<s> red fish </s>',
        '<s> a cat the dog runs </s>',
        '<s> the dog runs </s>',
        [0] * 5,
        ('cls', False),
    ),
    (
        'beir=some/corpus',
        'student',  # TAS-B: cls_pooling, dot product
        'distilbert',
        '[CLS] red fish [SEP]',
        '[CLS] a cat the dog runs [SEP]',
        '[CLS] the dog runs [SEP]',
        [0] * 5,
        ('cls', False),
    ),
]


@pytest.mark.parametrize('case', DUAL, ids=lambda case: f'{case[0]}-{case[1]}')
def test_dual_encoders_read_what_their_cards_say(tmp_path, case):
    recipe, name, family, query, titled, untitled, types, output = case
    reader, vocabulary = encoder(tmp_path, name, recipe, family)
    assert written(reader.encode_queries([QUERY])[0], vocabulary) == query
    store = reader.encode_passages([(TITLE, TEXT), TEXT])
    size = len(vocabulary)
    assert [written(store[i] % size, vocabulary) for i in (0, 1)] == [titled, untitled]
    assert (store[1] // size).tolist() == types
    assert (reader.model.pooling, reader.model.normalize) == output


RERANKERS = [
    (
        'msmarco',  # tokenizer(query, text_pair=f'{title}: {passage}'), the title '-' by default
        'electra',
        '[CLS] red fish [SEP] a cat : the dog runs [SEP]',
        '[CLS] red fish [SEP] - : the dog runs [SEP]',
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1],
    ),
    (
        'nq',  # tokenizer([[query, passage]])
        'xlm-roberta',
        '<s> ▁red ▁Fish </s> </s> ▁A ▁Cat ▁the ▁dog ▁runs </s>',
        '<s> ▁red ▁Fish </s> </s> ▁the ▁dog ▁runs </s>',
        None,  # The family has none.
    ),
]


@pytest.mark.parametrize('case', RERANKERS, ids=lambda case: case[0])
def test_rerankers_read_what_their_cards_say(tmp_path, case):
    recipe, family, titled, untitled, types = case
    reader, vocabulary = encoder(tmp_path, 'ranker', recipe, family)
    passages, query = reader.encode_passages([(TITLE, TEXT), TEXT]), reader.encode_queries([QUERY])
    for row, expected in enumerate([titled, untitled]):
        (tokens,), (found_types,) = join_pairs(
            query[0][None], passages[row][None], reader.tokenizer.special['pad'], reader.separators
        )
        assert written(tokens, vocabulary) == expected
    assert FAMILIES[family].segments == (types is not None)
    assert types in (None, found_types.tolist())
    assert reader.model.head == 'linear'  # Its own logit, without a sigmoid.


def test_lengths_are_those_of_the_cards():
    systems = configs.resolve(mta4dpr.get_config('msmarco')).systems
    assert (systems['simlm'].query_length, systems['simlm'].passage_length) == (32, 144)
    ranker = systems['ranker']
    assert ranker.query_length + ranker.passage_length == 192  # max_length of its pairs
