"""Paired significance tests between two systems on the same queries."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats


def paired_tests(
    ours: Mapping[str, Mapping[str, float]],
    theirs: Mapping[str, Mapping[str, float]],
    groups: Mapping[str, str] | None = None,
) -> dict[str, dict[str, float | int | None]]:
    """Tests the difference between two systems on each measure that both have.

    Two two-sided tests of the mean difference: the paired t-test, and Fisher's randomisation test,
    which flips the sign of each query's difference at random and assumes no distribution. Smucker
    et al. (CIKM 2007) recommend either for retrieval measures. The p-values are not corrected for
    multiple comparisons.

    Similar queries, such as questions on one article, have similar differences, which tests that
    assume independence overestimate. With `groups` the t-test has the cluster-robust variance
    (Liang and Zeger, 1986) and one degree of freedom less than there are groups, and the
    randomisation test flips the signs of whole groups. Groups of one query give the plain tests.

    Args:
        ours, theirs: {query id: {measure: value}}, for the same queries.
        groups: {query id: group}; each query that is missing here is its own group.

    Returns:
        For each measure `difference` (ours minus theirs); `p` of the t-test and `p_randomisation`,
        both None for fewer than two groups; and the numbers of queries on which ours is better,
        equal and worse: `wins`, `ties`, `losses`.

    Raises:
        ValueError: if there are no queries or the two systems have different ones.
    """
    if not ours or ours.keys() != theirs.keys():
        only = len(ours.keys() ^ theirs.keys())
        raise ValueError(
            f'a paired test needs the same queries on both sides: {len(ours)} and {len(theirs)} '
            f'were measured, {only} of them on one side only; measure both on one split.'
        )
    groups, tests = groups or {}, {}
    for measure in dict.fromkeys(measure for values in ours.values() for measure in values):
        shared = [q for q in ours if measure in ours[q] and measure in theirs[q]]
        if shared:
            differences = np.array([ours[q][measure] - theirs[q][measure] for q in shared])
            tests[measure] = _test(differences, [groups.get(q, q) for q in shared])
    return tests


def _test(differences: np.ndarray, groups: Sequence[str]) -> dict[str, float | int | None]:
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return {
        'difference': float(differences.mean()),
        **_p_values(differences, np.array([numbers[group] for group in groups])),
        'wins': int((differences > 0).sum()),
        'ties': int((differences == 0).sum()),
        'losses': int((differences < 0).sum()),
    }


def _p_values(differences: np.ndarray, group: np.ndarray) -> dict[str, float | None]:
    """Returns p-values of `[Q]` differences, given the `[Q]` numbers of their groups."""
    sums = np.bincount(group, differences)
    if len(sums) < 2:
        return {'p': None, 'p_randomisation': None}
    if not differences.any():  # The t statistic would be 0 / 0.
        return {'p': 1.0, 'p_randomisation': 1.0}
    randomised = scipy.stats.permutation_test(
        (sums,),
        np.mean,
        permutation_type='samples',
        vectorized=True,
        n_resamples=9999,
        batch=max(2**22 // len(sums), 1),  # Bounds the memory.
        rng=np.random.default_rng(0),
    )
    return {'p': t_test(differences, group), 'p_randomisation': float(randomised.pvalue)}


def t_test(differences: np.ndarray, group: np.ndarray) -> float:
    """Returns the two-sided p-value of a mean of differences that are independent between groups.

    `differences` `[Q]` are not all 0; `group` `[Q]` numbers at least two groups from 0.
    """
    residuals = np.bincount(group, differences - differences.mean())
    count = len(residuals)
    error = np.sqrt(count / (count - 1) * np.sum(residuals**2))
    if not error:  # All groups have the same mean.
        return float(not differences.sum())
    return float(2 * scipy.stats.t.sf(abs(differences.sum()) / error, count - 1))
