"""Lengths that texts are cut to, where a config leaves that open."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from jdkd.config import Config, EncoderSpec

TOKENS_PER_WORD = 1.35  # The average of English text.
SAMPLE = 1000  # Texts whose words or tokens are counted.
_SHARE = 0.9  # Of the texts that are not cut.
_QUERIES, _PASSAGES = (32, 128), (16, 256)  # Tokens, at least and at most.
_TRAINED = 128  # Of passages in training, at most.
_FIRST_RUN = 80, 40  # Of the collection that jdkd is first tried on, for minutes on two cores.


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """At most `count` int64 rows of `total`, from the first to the last.

    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(0, total - 1, min(total, count)).astype(np.int64)


def count_words(texts: Sequence[str], sample: int) -> np.ndarray:
    """Words of up to `sample` evenly spaced texts."""
    rows = evenly_spaced(len(texts), sample)
    return np.array([len(texts[int(row)].split()) for row in rows])


def fit(
    config: Config,
    get_passage_tokens: Callable[[], np.ndarray],
    get_query_tokens: Callable[[], np.ndarray],
) -> Config:
    """Fills in the lengths that are 0: as many tokens as the collection needs (ours).

    Nine tenths of its passages are not cut, unless they are longer than 256 tokens. In training 128
    tokens suffice: most of the cost is there, and a student that has learned from these reads
    passages of twice as many as well. Those of `python_docs` are cut to 80, in training to 40.
    Nine tenths of the train queries are not cut either, unless they are longer than 128 tokens; 32
    at least are read. Prefixes that the config gives count.

    Args:
        get_passage_tokens: Returns `Tokenizer.count` of the collection's passages.
        get_query_tokens: The same of its train queries.
    """
    passage_tokens, query_tokens = map(functools.cache, (get_passage_tokens, get_query_tokens))
    is_first_run = config.collection.source == 'python_docs'

    def passage_length(spec):
        if is_first_run:
            return _FIRST_RUN[0]
        return _covering(passage_tokens(), spec.passage_prefix, *_PASSAGES)

    def filled(spec):
        if not isinstance(spec, EncoderSpec):
            return spec
        return spec.replace(
            query_length=spec.query_length
            or _covering(query_tokens(), spec.query_prefix, *_QUERIES),
            passage_length=spec.passage_length or passage_length(spec),
        )

    student = filled(config.student)
    longest = config.student.passage_length or (_FIRST_RUN[1] if is_first_run else _TRAINED)
    train = config.train_passage_length or longest
    return config.replace(
        student=student,
        systems={name: filled(spec) for name, spec in config.systems.items()},
        train_passage_length=min(train, student.passage_length),
    )


def _covering(counts: np.ndarray, prefix: str | None, shortest: int, longest: int) -> int:
    """Tokens that nine tenths of the texts have at most, within bounds, a multiple of 8."""
    if not len(counts):
        return shortest
    tokens = float(np.quantile(counts, _SHARE)) + TOKENS_PER_WORD * len((prefix or '').split())
    return min(max(-(-int(tokens) // 8) * 8, shortest), longest)
