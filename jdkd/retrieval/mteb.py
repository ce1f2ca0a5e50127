"""A loaded dual-encoder as a model of mteb, whose own code then measures it.

    import jdkd, mteb
    from jdkd.retrieval.mteb import MTEBEncoder

    student = jdkd.load('runs/a/student')
    result = mteb.evaluate(MTEBEncoder(student), mteb.get_tasks(tasks=['SciFact']))

Muennighoff et al., 2023, https://arxiv.org/abs/2210.07316; https://github.com/embeddings-benchmark.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jdkd.runtime import stages


class _Retriever(Protocol):
    """What is needed of `jdkd.Retriever`."""

    @property
    def encoder(self) -> Any: ...
    def encode(self, texts: Sequence[Any], *, kind: Any = 'passage') -> np.ndarray: ...


class MTEBEncoder:
    """Embeds what mteb gives it, as queries or as passages of title and text.

    Scores are inner products, which are cosines where the model normalises.

    Args:
        retriever: What `jdkd.load` returns.
        name: Shown in mteb's results, `organisation/model`.
        revision: Beside the name, what mteb finds cached results by; None for a digest of the
            parameters, the model, the tokenizer, and how texts are read.

    Raises:
        ImportError: if mteb is missing.
    """

    def __init__(
        self, retriever: _Retriever, name: str = 'jdkd/student', revision: str | None = None
    ):
        self._retriever = retriever
        self.mteb_model_meta = _library().ModelMeta.create_empty(
            {
                'name': name,
                'revision': revision or _digest(retriever.encoder),
                'similarity_fn_name': 'dot',
            }
        )

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Embeddings `[n, dim]` float32 of the texts of all batches.

        Where `prompt_type` is mteb's `query`, texts get the query's prompt, length and tower;
        passages are read in the format of the checkpoint, with their titles.
        """
        kind = 'query' if prompt_type == _library().PromptType.query else 'passage'
        return np.concatenate(
            [self._retriever.encode(_texts(batch, kind), kind=kind) for batch in inputs]
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores `[n, m]` of two arrays of embeddings."""
        return _library().dot_score(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Scores `[n]` of the rows of two arrays of embeddings."""
        return _library().pairwise_dot_score(embeddings1, embeddings2)


class _Library:
    """The parts of mteb that are used."""

    def __init__(self):
        from mteb.models.model_meta import ModelMeta
        from mteb.similarity_functions import dot_score, pairwise_dot_score
        from mteb.types import PromptType

        self.ModelMeta, self.PromptType = ModelMeta, PromptType
        self.dot_score, self.pairwise_dot_score = dot_score, pairwise_dot_score


def _library() -> _Library:
    try:
        return _Library()
    except ImportError as error:
        raise ImportError(f"MTEBEncoder needs mteb ({error}): pip install 'jdkd[mteb]'.") from None


def _texts(batch: Mapping[str, Any], kind: str) -> list[Any]:
    if kind == 'passage' and 'title' in batch and 'body' in batch:
        return list(zip(batch['title'], batch['body'], strict=True))
    return list(batch['text'])


def _digest(encoder: Any) -> str:
    """sha256 of all that decides on embeddings."""
    read = encoder.spec.replace(weights='', revision=None)  # Wherever they come from.
    parts = [read.to_dict(), repr(encoder.model), encoder.tokenizer.fingerprint]
    sha = hashlib.sha256(stages.digest(parts).encode())
    for leaf in jax.tree.leaves(encoder.params):
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()[:40]
