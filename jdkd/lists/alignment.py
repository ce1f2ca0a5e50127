"""Draws the texts that alignment trains on: lists of a query and some passages."""

import dataclasses
import math

import numpy as np

from jdkd.config import AlignConfig
from jdkd.lists import candidates


@dataclasses.dataclass(frozen=True)
class AlignmentSize:
    """How many texts an alignment takes."""

    per_query: int  # Passages beside the query of a list.
    batch_size: int  # Lists of a batch.
    steps: int


def plan_size(passages: int, queries: int, config: AlignConfig, parts: int) -> AlignmentSize:
    """Sizes lists so that passages come about as often as queries.

    Args:
        passages, queries: Number of texts of each kind.
        config: How often an average text comes, in about how large batches, in how many steps.
        parts: Parts that a batch must divide into.
    """
    per_query = min(max(round(passages / queries), 1), max(config.batch_size // parts - 1, 1))
    lists = max(config.batch_size // (1 + per_query) // parts, 1) * parts
    steps = math.ceil(config.epochs * (passages + queries) / (lists * (1 + per_query)))
    steps = max(steps, config.min_steps, 1)
    return AlignmentSize(per_query, lists, min(steps, config.max_steps or steps))


def draw(
    passages: np.ndarray, num_queries: int, size: AlignmentSize, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `[M]` rows of queries and `[M, per_query]` of `passages`, M = steps * batch_size.

    The passages of a list need not be relevant to its query. No text comes again before all of its
    kind have come.
    """
    rng = candidates.item_rng(seed, 0, candidates.ALIGN, '')

    def repeat(rows, count):
        epochs = math.ceil(count / len(rows))
        return np.concatenate([rng.permutation(rows) for _ in range(epochs)])[:count]

    count = size.steps * size.batch_size
    rows = repeat(passages, count * size.per_query).reshape(count, size.per_query)
    return repeat(np.arange(num_queries), count).astype(np.int32), rows.astype(np.int32)
