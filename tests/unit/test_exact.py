"""Rank tests and exact intervals agree with scipy.stats, which they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from labvoice.runs import exact


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (5, 8), (8, 40), (9, 9), (30, 200)])
@pytest.mark.parametrize("ties", [False, True])
def test_mann_whitney_is_scipys(sizes: tuple[int, int], ties: bool) -> None:
    """Exact with few values, normal with many, and with ties."""
    rng = np.random.default_rng(sum(sizes))
    for shift in (0.0, 0.5, 2.0):
        base, new = rng.normal(size=sizes[0]), rng.normal(shift, size=sizes[1])
        if ties:
            base, new = np.round(base), np.round(new)
        for pair in ((base, new), (new, base)):
            assert exact.mann_whitney(*pair) == pytest.approx(stats.mannwhitneyu(*pair).pvalue)


def test_equal_values_differ_in_nothing() -> None:
    """Values that are all the same give a p-value of one, without a warning."""
    assert exact.mann_whitney([1, 1, 1], [1, 1]) == 1
    assert exact.signed_rank([0.0, 0.0]) == 1


@pytest.mark.parametrize("n", [1, 2, 5, 13, 20, 50, 51, 200])
def test_signed_rank_is_scipys(n: int) -> None:
    """Exact with few pairs, normal with many."""
    rng = np.random.default_rng(n)
    for shift in (0.0, 0.3, 1.0):
        values = rng.normal(shift, size=n)
        assert exact.signed_rank(values) == pytest.approx(stats.wilcoxon(values).pvalue)


@pytest.mark.parametrize("n", [6, 13, 60])
def test_signed_rank_of_ties_and_zeros_is_scipys(n: int) -> None:
    """Scipy tries every sign where pairs are few, and takes the normal limit where many."""
    values = np.random.default_rng(n).integers(-2, 4, size=n).astype(float)
    assert exact.signed_rank(values) == pytest.approx(stats.wilcoxon(values).pvalue)


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0), (0, 5, 0, 5), (3, 10, 0, 10), (10, 10, 0, 3), (40, 900, 12, 800)]
)
def test_more_often_is_fishers_test(counts: tuple[int, int, int, int]) -> None:
    """One-sided: the larger share is the new one."""
    k, n, base_k, base_n = counts
    table = [[k, n - k], [base_k, base_n - base_k]]
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    assert exact.more_often(*counts) == pytest.approx(expected)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 7), (7, 7), (1, 20), (19, 20), (333, 5000)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(k: int, n: int) -> None:
    """It is the interval that inverts the binomial test."""
    if n == 0:
        assert exact.exact_interval(k, n) == (0, 1)
        return
    expected = stats.binomtest(k, n).proportion_ci(0.95, "exact")
    assert exact.exact_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
