"""A collection and models small enough to compute by hand."""

import json

import jax
import numpy as np
import tokenizers

from jdkd.models import export
from jdkd.models.transformer import TransformerConfig

TIMES = {'lists_per_second', 'wait_seconds'}  # Metrics that no two runs share.
WORDS = 'cat dog bird fish runs sleeps sings swims red blue'.split()
TRANSFORMER = TransformerConfig(
    vocab_size=5 + len(WORDS),
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    intermediate_size=12,
    max_positions=40,
)


def write_tokenizer(directory):
    """A tokenizer of WORDS in a new directory, which it returns."""
    directory.mkdir()
    vocab = {w: i for i, w in enumerate([*'[PAD] [UNK] [CLS] [SEP] [MASK]'.split(), *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='[CLS] $A [SEP]',
        pair='[CLS] $A [SEP] $B:1 [SEP]:1',
        special_tokens=[('[CLS]', 2), ('[SEP]', 3)],
    )
    tokenizer.save(str(directory / 'tokenizer.json'))
    # As BERT's, transformers would read only its vocabulary.
    inputs = ['input_ids', 'token_type_ids', 'attention_mask']
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '[PAD]'}
    config['model_input_names'] = inputs
    (directory / 'tokenizer_config.json').write_text(json.dumps(config))
    return directory


def write_model(directory, model, *, max_length=24, seed=0, tokenizer_dir=None, **kwargs):
    """A checkpoint with random parameters; returns them."""
    directory.mkdir(parents=True)
    source = tokenizer_dir or write_tokenizer(directory.with_name(f'{directory.name}_tokenizer'))
    row = np.ones((1, 4), np.int32)
    rows = (row, row) if hasattr(model, 'head') else (row,)
    params = model.init(jax.random.key(seed), *rows)['params']
    # As initialised it hardly tells one text from another.
    params = jax.tree.map(lambda x: np.asarray(x) * (10 if x.ndim > 1 else 1), params)
    export.export_sentence_transformer(
        directory,
        model=model,
        params=params,
        tokenizer_dir=source,
        max_length=max_length,
        model_card='',
        **kwargs,
    )
    return params


def write_towers(directory, model):
    """A checkpoint of two towers, each of which is a checkpoint beside it, `_query`, `_passage`."""
    towers = {
        name: write_model(directory.with_name(f'{directory.name}_{name}'), model, seed=seed)
        for seed, name in enumerate(('query', 'passage'), 1)
    }
    export.export_sentence_transformer(
        directory,
        model=model,
        params=towers,
        tokenizer_dir=directory.with_name(f'{directory.name}_query_tokenizer'),
        max_length=24,
        model_card='',
    )


def write_collection(directory, *, passages=30, splits=('train', 'test'), seed=0):
    """A directory in BEIR layout: passages of two to six words, four queries a split, graded."""
    rng = np.random.default_rng(seed)

    def text(low, high):
        return ' '.join(rng.choice(WORDS, rng.integers(low, high)))

    (directory / 'qrels').mkdir(parents=True)
    lines = [{'_id': f'p{i}', 'title': '', 'text': text(2, 7)} for i in range(passages)]
    (directory / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    queries, rows = [], {split: ['query-id\tcorpus-id\tscore'] for split in splits}
    for split in splits:
        for i in range(4):
            queries.append({'_id': f'{split}{i}', 'text': text(2, 4)})
            for passage in rng.choice(passages, 5, replace=False):
                rows[split].append(f'{split}{i}\tp{passage}\t{rng.integers(1, 3)}')
        (directory / 'qrels' / f'{split}.tsv').write_text('\n'.join(rows[split]))
    (directory / 'queries.jsonl').write_text('\n'.join(map(json.dumps, queries)))
    return directory
