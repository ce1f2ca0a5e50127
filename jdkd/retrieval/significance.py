"""Whether two systems differ: paired tests over the same queries."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

_RESAMPLES = 9999


def compare(
    ours: Mapping[str, Mapping[str, float]],
    theirs: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, str] | None = None,
) -> dict[str, dict[str, float | int | None]]:
    """Compares two systems query by query, on the measures that both have.

    Two tests of the mean difference, both two-sided: the paired t-test and Fisher's randomisation
    test, which flips the sign of each query's difference at random and assumes no distribution.
    Smucker et al. (CIKM 2007) recommend either for measures of retrieval. The values are those of
    one comparison: who makes many of them should correct for it.

    Queries that are alike, such as questions on one article, differ alike, and tests that take
    them for independent find too much. With `groups` the t-test has the cluster-robust variance
    (Liang and Zeger, 1986) and one degree of freedom less than groups, and the signs of a whole
    group are flipped. With groups of one query both are the tests above.

    Args:
        ours: {query id: {measure: value}}.
        theirs: The same queries of the other system.
        groups: {query id: its group}; those that are not in it are groups of their own.

    Returns:
        For each measure `difference` (ours less theirs), `p` of the t-test, `p_randomisation`
        (None of both for fewer than two groups), and in how many queries ours is better, equal
        or worse: `wins`, `ties`, `losses`.

    Raises:
        ValueError: if there are no queries or the systems were measured on others.
    """
    if not ours or ours.keys() != theirs.keys():
        only = len(ours.keys() ^ theirs.keys())
        raise ValueError(
            f'a paired test needs the same queries on both sides: {len(ours)} and {len(theirs)} '
            f'were measured, {only} of them on one side only; measure both on one split.'
        )
    groups = groups or {}
    differences: dict[str, list[tuple[str, float]]] = {}
    for query_id, values in ours.items():
        for measure in values.keys() & theirs[query_id].keys():
            difference = values[measure] - theirs[query_id][measure]
            group = groups.get(query_id, query_id)
            differences.setdefault(measure, []).append((group, difference))
    order = dict.fromkeys(measure for values in ours.values() for measure in values)
    return {m: _compare(*zip(*differences[m], strict=True)) for m in order if m in differences}


def _compare(groups: Sequence[str], values: Sequence[float]) -> dict[str, float | int | None]:
    differences = np.array(values)
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return {
        'difference': float(differences.mean()),
        **_p_values(differences, np.array([number[group] for group in groups])),
        'wins': int((differences > 0).sum()),
        'ties': int((differences == 0).sum()),
        'losses': int((differences < 0).sum()),
    }


def _p_values(differences: np.ndarray, group: np.ndarray) -> dict[str, float | None]:
    """Of `[Q]` differences, given the `[Q]` numbers of their groups."""
    sums = np.bincount(group, differences)
    if len(sums) < 2:
        return {'p': None, 'p_randomisation': None}
    if not differences.any():  # Where the t statistic is 0 / 0.
        return {'p': 1.0, 'p_randomisation': 1.0}
    randomised = scipy.stats.permutation_test(
        (sums,),
        np.mean,
        permutation_type='samples',
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(2**22 // len(sums), 1),  # Bounds its memory.
        rng=np.random.default_rng(0),
    )
    return {'p': t_test(differences, group), 'p_randomisation': float(randomised.pvalue)}


def t_test(differences: np.ndarray, group: np.ndarray) -> float:
    """Two-sided p of the mean of differences that are independent between groups alone.

    Args:
        differences: `[Q]`, not all 0.
        group: `[Q]` numbers from 0, of two groups at least.
    """
    residuals = np.bincount(group, differences - differences.mean())
    count = len(residuals)
    error = np.sqrt(count / (count - 1) * np.sum(residuals**2))
    if not error:  # All groups are alike.
        return float(not differences.sum())
    return float(2 * scipy.stats.t.sf(abs(differences.sum()) / error, count - 1))
