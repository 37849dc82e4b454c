"""Rank tests and exact intervals as of scipy.stats, which takes longer to import than pandas.

Each agrees with its namesake there (tests/unit/test_exact.py).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

_FEW: Final = 8
"""Up to so many values on one side the Mann-Whitney test is exact, as in scipy.stats."""
_MANY: Final = 50
"""Beyond so many pairs the signed-rank test takes the normal limit, as in scipy.stats."""
_Floats = npt.NDArray[np.float64]


def mann_whitney(base: npt.ArrayLike, new: npt.ArrayLike) -> float:
    """Returns the two-sided p-value of the Mann-Whitney test of two samples.

    Args:
        base: Shape (n,), n at least 1.
        new: Shape (m,), m at least 1.
    """
    first, second = np.ravel(base), np.ravel(new)
    n, m = sorted((first.size, second.size))
    ranks, ties = _ranks(np.concatenate((first, second)))
    above = float(ranks[: first.size].sum()) - first.size * (first.size + 1) / 2
    low = min(above, n * m - above)
    if n <= _FEW and ties.max() == 1:
        return min(1.0, 2 * _share_of_orders(n, m, round(low)))
    every = n + m
    variance = n * m / 12 * (every + 1 - float((ties**3 - ties).sum()) / (every * (every - 1)))
    distance = n * m / 2 - low - 0.5  # continuity
    return _two_sided(distance / math.sqrt(variance)) if variance > 0 else 1.0


def _share_of_orders(n: int, m: int, most: int) -> float:
    """Returns the share of orders of n and m values whose U is at most the given one."""
    counts = [1, *[0] * most]
    for each in range(1, n + 1):  # the Gaussian binomial coefficient, factor by factor
        for u in range(most, m + each - 1, -1):
            counts[u] -= counts[u - m - each]
        for u in range(each, most + 1):
            counts[u] += counts[u - each]
    return sum(counts) / math.comb(n + m, n)


def signed_rank(differences: npt.ArrayLike) -> float:
    """Returns the two-sided p-value of Wilcoxon's signed-rank test; zeros are left out.

    Args:
        differences: Shape (n,), n at least 1.
    """
    values = np.ravel(differences)
    values = values[values != 0]
    if not values.size:
        return 1.0
    ranks, ties = _ranks(np.abs(values))
    n, above = values.size, float(ranks[values > 0].sum())
    if n > _MANY:
        variance = (n * (n + 1) * (2 * n + 1) - float((ties**3 - ties).sum()) / 2) / 24
        return _two_sided(abs(above - n * (n + 1) / 4) / math.sqrt(variance))
    doubled = np.rint(2 * ranks).astype(int)  # ranks of ties end in .5
    counts = np.zeros(doubled.sum() + 1)
    counts[0] = 1
    for rank in doubled:
        counts[rank:] = counts[rank:] + counts[:-rank]
    low = round(min(2 * above, doubled.sum() - 2 * above))
    below = float(counts[: low + 1].sum())
    return min(1.0, 2 * below / math.pow(2, n))


def more_often(k: int, n: int, base_k: int, base_n: int) -> float:
    """Returns the one-sided p-value of Fisher's exact test that k of n is the larger share."""
    total = k + base_k
    orders = sum(
        math.comb(n, each) * math.comb(base_n, total - each) for each in range(k, min(n, total) + 1)
    )
    return orders / math.comb(n + base_n, total)


@cache
def exact_interval(k: int, n: int) -> tuple[float, float]:
    """Returns Clopper and Pearson's 95 % interval of a share: exact, and never too narrow.

    Args:
        k: How often something happened.
        n: Of how many times; of none, the interval is from 0 to 1.
    """
    low = _share_with_tail(k, n) if k else 0.0
    high = 1 - _share_with_tail(n - k, n) if k < n else 1.0
    return low, high


def _share_with_tail(k: int, n: int) -> float:
    """Returns the share at which k or more of n happen with a probability of 2.5 %."""
    times = np.arange(k, n + 1)
    orders = np.array(
        [math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1) for x in times.tolist()]
    )
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        logs = orders + times * math.log(share) + (n - times) * math.log1p(-share)
        if float(np.exp(logs).sum()) < 0.025:
            low = share
        else:
            high = share
    return (low + high) / 2


def _ranks(values: _Floats) -> tuple[_Floats, _Floats]:
    """Returns the ranks, of ties their mean, and how many values each distinct one has."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places], counts.astype(np.float64)


def _two_sided(distance: float) -> float:
    """Returns how often a normal variable is so many deviations from its mean, or farther."""
    return min(1.0, math.erfc(distance / math.sqrt(2)))
