"""Features of training records that do not depend on scores."""

from collections.abc import Sequence

import numpy as np

from jdkd.lists.candidates import Lists
from jdkd.run import Run


def record_features(
    run: Run, lists: Lists, positives: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns {feature: `[M, ...]` int32}: query, passages and text groups of candidate lists.

    `relevant` holds the text groups of the query's `positives`, padded with -1.
    """
    group = run.collection.group
    relevant = np.full((len(lists), run.max_relevant), -1, np.int32)
    for row, query in zip(relevant, lists.query, strict=True):
        groups = np.unique(group[positives[query]])
        row[: len(groups)] = groups
    return {
        'query_row': lists.query,
        'passages': lists.passages,
        'group': group[lists.passages],
        'relevant': relevant,
    }
