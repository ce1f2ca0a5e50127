"""Features of the records that training reads."""

import numpy as np

from jdkd.lists import candidates
from jdkd.run import Run


def record_features(run: Run, lists: candidates.Lists, positives) -> dict[str, np.ndarray]:
    """Features of a record that do not depend on scores.

    Args:
        run: For the text groups.
        lists: Candidate lists.
        positives: Rows of each query's positives.
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
