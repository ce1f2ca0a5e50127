"""The architectures of the public models that the recipes name, for plans without a network."""

import json
import pathlib

_BERT = {
    'model_type': 'bert',
    'vocab_size': 30522,
    'hidden_size': 768,
    'num_hidden_layers': 12,
    'num_attention_heads': 12,
    'intermediate_size': 3072,
    'max_position_embeddings': 512,
    'type_vocab_size': 2,
}
_DISTILBERT = {
    'model_type': 'distilbert',
    'vocab_size': 30522,
    'dim': 768,
    'n_layers': 6,
    'n_heads': 12,
    'hidden_dim': 3072,
    'max_position_embeddings': 512,
}
_MPNET = _BERT | {
    'model_type': 'mpnet',
    'vocab_size': 30527,
    'max_position_embeddings': 514,
    'pad_token_id': 1,
    'relative_attention_num_buckets': 32,
}
_SIMLM_RANKER = _BERT | {
    'model_type': 'electra',
    'embedding_size': 768,
    'architectures': ['ElectraForSequenceClassification'],
}
_BGE_RANKER = _BERT | {
    'model_type': 'xlm-roberta',
    'vocab_size': 250002,
    'max_position_embeddings': 514,
    'type_vocab_size': 1,
    'pad_token_id': 1,
    'architectures': ['XLMRobertaForSequenceClassification'],
}

# What decides shapes in the config.json of each, by its name on the hub.
CONFIGS = {
    'distilbert/distilbert-base-uncased': _DISTILBERT,
    'sentence-transformers/msmarco-distilbert-base-tas-b': _DISTILBERT,
    'intfloat/simlm-base-msmarco': _BERT,
    'intfloat/simlm-base-msmarco-finetuned': _BERT,
    'intfloat/e5-base-v2': _BERT,
    'BAAI/bge-base-en-v1.5': _BERT,
    'sentence-transformers/multi-qa-mpnet-base-dot-v1': _MPNET,
    'intfloat/simlm-msmarco-reranker': _SIMLM_RANKER,
    'BAAI/bge-reranker-base': _BGE_RANKER,
}


def write(name: str, directory: pathlib.Path) -> None:
    """Writes the config.json of a public model.

    Raises:
        KeyError: if it is not known here.
    """
    (directory / 'config.json').write_text(json.dumps(CONFIGS[name]), encoding='utf-8')
