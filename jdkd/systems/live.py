"""Systems asked a question that is in no split: nothing of it is kept."""

import numpy as np

from jdkd.retrieval import encode, index
from jdkd.retrieval.index import Ranking
from jdkd.systems.encoders import CrossEncoderSystem, DualEncoderSystem, Encoder
from jdkd.systems.lexical import BM25System
from jdkd.systems.system import System
from jdkd.tokens.store import TokenStore


def rank(system: System, question: str, depth: int) -> Ranking:
    """The collection ranked for one question, exactly: `passages` and `scores` are `[1, depth]`.

    Raises:
        ValueError: if the system cannot search for what it has not seen.
    """
    match system:
        case BM25System():
            return system.model.search([question], depth)
        case DualEncoderSystem():
            return index.exact_search(_embedding(system, question), system.passages, depth)
    raise ValueError(f"system '{system.name}' cannot search for a new question.")


def score(system: System, question: str, passages: np.ndarray) -> np.ndarray:
    """Raw scores `[n]` float32 of one question with passages.

    Args:
        system: The scorer.
        question: Any text.
        passages: `[n]` rows of the collection.

    Raises:
        ValueError: if the system has imported scores, which cannot be had for a new question.
    """
    match system:
        case BM25System(model=model):
            return model.list_scores(model.query_terms([question]), passages[None])[0]
        case DualEncoderSystem():
            return system.passages[passages] @ _embedding(system, question)[0]
        case CrossEncoderSystem(encoder=encoder, run=run):
            return encode.score_pairs(
                encoder.model,
                encoder.params,
                _tokens(encoder, question),
                np.zeros(len(passages), np.int32),
                encoder.passage_tokens(run),
                passages,
                separators=encoder.separators,
                mesh=run.mesh,
                desc=f'{system.name}: pairs',
            )
    raise ValueError(f"system '{system.name}' has imported scores: none for a new question.")


def _tokens(encoder: Encoder, question: str) -> TokenStore:
    spec = encoder.spec
    return encoder.tokenizer.encode([spec.query_prefix + question], spec.query_length)


def _embedding(system: DualEncoderSystem, question: str) -> np.ndarray:
    """`[1, dim]` float32."""
    return system.embed(_tokens(system.encoder, question), 'question', tower='query')
