"""Whether two systems differ: paired tests over the same queries."""

from collections.abc import Mapping

import numpy as np
import scipy.stats

_RESAMPLES = 9999


def compare(
    ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float | int | None]]:
    """Compares two systems query by query, on the measures that both have.

    Two tests of the mean difference, both two-sided: the paired t-test and Fisher's randomisation
    test, which flips the sign of each query's difference at random and assumes no distribution.
    Smucker et al. (CIKM 2007) recommend either for measures of retrieval. The values are those of
    one comparison: who makes many of them should correct for it.

    Args:
        ours: {query id: {measure: value}}.
        theirs: The same queries of the other system.

    Returns:
        For each measure `difference` (ours less theirs), `p` of the t-test, `p_randomisation`
        (None of both for fewer than two queries), and in how many queries ours is better, equal
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
    differences: dict[str, list[float]] = {}
    for query_id, values in ours.items():
        for measure in values.keys() & theirs[query_id].keys():
            difference = values[measure] - theirs[query_id][measure]
            differences.setdefault(measure, []).append(difference)
    order = dict.fromkeys(measure for values in ours.values() for measure in values)
    return {m: _compare(np.array(differences[m])) for m in order if m in differences}


def _compare(differences: np.ndarray) -> dict[str, float | int | None]:
    return {
        'difference': float(differences.mean()),
        **_p_values(differences),
        'wins': int((differences > 0).sum()),
        'ties': int((differences == 0).sum()),
        'losses': int((differences < 0).sum()),
    }


def _p_values(differences: np.ndarray) -> dict[str, float | None]:
    if len(differences) < 2:
        return {'p': None, 'p_randomisation': None}
    if not differences.any():  # Where the t statistic is 0 / 0.
        return {'p': 1.0, 'p_randomisation': 1.0}
    spread = differences.std(ddof=1)
    # All alike: t is infinite.
    p = float(scipy.stats.ttest_1samp(differences, 0).pvalue) if spread else 0.0
    randomised = scipy.stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type='samples',
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(2**22 // len(differences), 1),  # Bounds its memory.
        rng=np.random.default_rng(0),
    )
    return {'p': p, 'p_randomisation': float(randomised.pvalue)}
