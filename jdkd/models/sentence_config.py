"""Reads the settings that sentence-transformers keeps beside an encoder and a model.

`read_settings` reads sentence_bert_config.json of an encoder, and `read_model_config`
config_sentence_transformers.json of a model. A setting that changes embeddings and that jdkd does
not apply is refused by name.
"""

import dataclasses
import pathlib
from typing import Any

from jdkd.runtime.checkpoint_files import read_json, reading
from jdkd.runtime.messages import brief, shown

SIMILARITIES = ('cosine', 'dot', 'euclidean', 'manhattan')
_KINDS = ('SentenceTransformer', 'CrossEncoder')  # Classes that models are saved from.
# The first that is there and not empty counts.
_FILES = tuple(
    f'sentence_{kind}_config.json'
    for kind in ('bert', 'roberta', 'distilbert', 'camembert', 'albert', 'xlm-roberta', 'xlnet')
)
_LENGTHS = {'text': 'max_seq_length', 'query': 'query_length', 'passage': 'document_length'}
# Values that are a text encoder's, of a dual-encoder or a cross-encoder.
_FIXED: dict[str, tuple[Any, ...]] = {
    'transformer_task': ('feature-extraction', 'sequence-classification'),
    'module_output_name': ('token_embeddings', 'scores'),
    'modality_config': tuple(
        {'text': {'method': 'forward', 'method_output_name': output}}
        for output in ('last_hidden_state', 'logits')
    ),
}
# Arguments of transformers that change how a model computes, not what.
_INERT = (
    *('attn_implementation', 'device_map', 'dtype', 'low_cpu_mem_usage', 'torch_dtype'),
    *('trust_remote_code', 'use_cache', 'use_fast', 'use_safetensors', 'padding_side'),
)
_ARGUMENTS = tuple(
    f'{part}_{suffix}'
    for part in ('model', 'tokenizer', 'processor', 'config')
    for suffix in ('args', 'kwargs')
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are cut, in tokens; None where sentence_bert_config.json does not tell."""

    text: int | None = None  # Any text.
    query: int | None = None  # Queries, in place of `text`.
    passage: int | None = None
    do_lower_case: bool = False


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model does with texts and embeddings."""

    query_prompt: str = ''
    passage_prompt: str = ''
    # Of the prompt for passages: sentence-transformers itself only takes the one named `document`.
    passage_prompt_name: str = 'document'
    similarity: str | None = None  # One of `SIMILARITIES`; None, where none is named, is 'cosine'.
    reads_pairs: bool = False  # Whether it is a cross-encoder.


def read_settings(encoder: pathlib.Path) -> Settings:
    """Reads sentence_bert_config.json, also under the names that it had before.

    Raises:
        ValueError: if it is damaged, or has a setting that changes embeddings and that jdkd lacks.
    """
    contents = ((encoder / name, read_json(encoder / name)) for name in _FILES)
    file, raw = next(((file, raw) for file, raw in contents if raw), (encoder, {}))
    for key, value in raw.items():
        if key in (*_LENGTHS.values(), 'do_lower_case', 'unpad_inputs') or not value:
            continue
        is_inert = key in _ARGUMENTS and isinstance(value, dict) and value.keys() <= {*_INERT}
        if not is_inert and value not in _FIXED.get(key, ()):
            raise ValueError(
                f'{file} has {brief(key)}={shown(value)}, which jdkd does not support; '
                'give a checkpoint without it.'
            )
    lengths = {name: check_length(file, raw, key) for name, key in _LENGTHS.items()}
    return Settings(**lengths, do_lower_case=bool(raw.get('do_lower_case')))


def check_length(file: pathlib.Path, raw: dict[str, Any], key: str) -> int | None:
    """Returns a number of tokens in a file; None if it has none.

    Raises:
        ValueError: if it is no such number.
    """
    limit = raw.get(key)
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
        raise ValueError(f'{file} has {key}={shown(limit)}; it must be a number of tokens.')
    # A tokenizer without a limit has 1e30 here.
    return int(min(limit, 2**31))


def read_model_config(file: pathlib.Path) -> ModelConfig:
    """Reads config_sentence_transformers.json; a model without one has no prompts.

    Raises:
        ValueError: if it is damaged, or has a setting that changes scores and that jdkd lacks.
    """
    raw = read_json(file) or {}
    kind = raw.get('model_type') or _KINDS[0]
    if kind not in _KINDS:
        raise ValueError(
            f'{file} has model_type={shown(kind)}; give a checkpoint of a {" or ".join(_KINDS)}.'
        )
    reads_pairs = kind == 'CrossEncoder'
    prompts = raw.get('prompts') or {}
    names = ('document', 'passage', 'corpus')  # In the order in which `encode_document` tries them.
    with reading(file):
        query, name = prompts.get('query'), next(filter(prompts.get, names), 'document')
        passage = prompts.get(name)
        if reads_pairs:  # It only begins its queries, and only with the default prompt.
            query, passage, name = prompts.get(raw.get('default_prompt_name')), '', 'document'
    for prompt in (query, passage):
        if not isinstance(prompt or '', str):
            raise ValueError(f'{file} has the prompt {shown(prompt)}; a prompt must be a string.')
    similarity = raw.get('similarity_fn_name')
    if similarity is not None and similarity not in SIMILARITIES:
        raise ValueError(
            f'{file} has similarity_fn_name={shown(similarity)}; it must be one of '
            f'{", ".join(SIMILARITIES)}.'
        )
    if raw.get('truncate_dim') is not None:
        raise ValueError(
            f'{file} has truncate_dim={shown(raw["truncate_dim"])}, which jdkd does not support; '
            'remove it to use all dimensions.'
        )
    return ModelConfig(query or '', passage or '', name, similarity, reads_pairs)
