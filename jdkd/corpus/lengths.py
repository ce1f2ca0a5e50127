"""Lengths that passages are cut to, where a config leaves that open."""

from collections.abc import Callable, Sequence

import numpy as np

from jdkd.config import Config, EncoderSpec

TOKENS_PER_WORD = 1.35  # The average of English text.
SAMPLE = 1000  # Passages whose words are counted.
_SHARE = 0.9  # Of the passages that are not cut.
# Tokens, at most: of passages, and of those in training.
_LONGEST, _TRAINED = 256, 128
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


def fit(config: Config, get_words: Callable[[], np.ndarray]) -> Config:
    """Fills in the passage lengths that are 0: as many tokens as the collection needs (ours).

    Nine tenths of its passages are not cut, unless they are longer than 256 tokens. In training 128
    tokens suffice: most of the cost is there, and a student that has learned from these reads
    passages of twice as many as well. Those of `python_docs` are cut to 80, in training to 40.

    Args:
        get_words: Returns the word counts of a sample of the collection's passages.
    """
    specs = {'': config.student, **config.systems}
    is_open = [isinstance(s, EncoderSpec) and not s.passage_length for s in specs.values()]
    if not any(is_open) and config.train_passage_length:
        return config
    length, trained = _FIRST_RUN
    if config.collection.source != 'python_docs':
        tokens = TOKENS_PER_WORD * float(np.quantile(get_words(), _SHARE)) + 2
        length, trained = min(max(-(-int(tokens) // 8) * 8, 16), _LONGEST), _TRAINED

    def filled(spec):
        own = isinstance(spec, EncoderSpec) and not spec.passage_length
        return spec.replace(passage_length=length) if own else spec

    student = filled(config.student)
    train = config.train_passage_length
    if not train:
        train = config.student.passage_length or min(length, trained)
    return config.replace(
        student=student,
        systems={name: filled(spec) for name, spec in config.systems.items()},
        train_passage_length=min(train, student.passage_length),
    )
