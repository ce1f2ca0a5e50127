"""Small models of sentence-transformers on disk, for tests that run it beside jdkd."""

import json

import sentence_transformers
import torch
import transformers

WORDS = '[PAD] [UNK] [CLS] [SEP] [MASK] a cat sat on the mat query passage : , dog'.split()
TEXTS = ['a cat sat on the mat', 'The dog', '', 'cat ' * 30]
LENGTH = 12


def shake(module):
    """Else biases are 0 and norms 1: nothing to mix up."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return module


def write_bert(home):
    """Writes directories of a BERT and of a sequence classifier, as transformers does."""
    (home / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')
    tokenizer = transformers.BertTokenizerFast(vocab=str(home / 'vocab.txt'))
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=20,
        num_labels=1,
    )
    for name in ('BertModel', 'BertForSequenceClassification'):
        shake(getattr(transformers, name)(config)).save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)


def save(bert, directory, pooling='mean', dense=None, normalize=False, **kwargs):
    """A model of modules, written by sentence-transformers."""
    modules = sentence_transformers.sentence_transformer.modules
    encoder = modules.Transformer(str(bert / 'BertModel'), max_seq_length=LENGTH)
    chain = [encoder, modules.Pooling(16, pooling)]
    if dense is not None:
        chain.append(shake(modules.Dense(16, 6, **dense)))
    if normalize:
        chain.append(modules.Normalize())
    model = sentence_transformers.SentenceTransformer(modules=chain, device='cpu', **kwargs)
    model.save(str(directory))
    return model


def theirs(directory):
    return sentence_transformers.SentenceTransformer(str(directory), device='cpu')


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
