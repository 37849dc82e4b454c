"""Statistics: known values, intervals that cover, and calls as the unit."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from labvoice.runs import statistics
from tests.unit.recorded_runs import HOST, connect_run


def test_percentiles_are_linear_between_neighbours() -> None:
    """The percentile of four known values is where the linear method puts it."""
    assert statistics.percentile([1, 2, 3, 4], 50) == 2.5
    assert statistics.percentile([4, 1, 3, 2], 95) == pytest.approx(3.85)
    assert math.isnan(statistics.percentile([], 50))


def test_bootstrap_agrees_with_resampling_by_hand() -> None:
    """Cumulated counts give the same percentiles as really repeating the values."""
    rng = np.random.default_rng(3)
    values, units = rng.normal(size=30), np.repeat(np.arange(10), 3)
    draws = np.random.default_rng(5).multinomial(10, np.full(10, 0.1), size=50)
    for q in (50.0, 95.0):
        by_hand = [np.percentile(np.repeat(values, draw[units]), q) for draw in draws]
        fast = statistics.bootstrap_percentiles(values, units, q, resamples=50, seed=5)
        assert fast == pytest.approx(by_hand)


def test_bootstrap_of_many_values_agrees_with_resampling_by_hand() -> None:
    """Where values fill several blocks, each resample is still what repeating them gives."""
    rng = np.random.default_rng(3)
    values, units = rng.normal(size=10_000), np.repeat(np.arange(20), 500)
    values += rng.normal(size=20)[units]
    draws = np.random.default_rng(5).multinomial(20, np.full(20, 0.05), size=20)
    for q in (1.0, 50.0, 95.0):
        by_hand = [np.percentile(np.repeat(values, draw[units]), q) for draw in draws]
        fast = statistics.bootstrap_percentiles(values, units, q, resamples=20, seed=5)
        assert fast == pytest.approx(by_hand)


@pytest.mark.parametrize("q", [50.0, 95.0])
def test_bootstrap_of_many_units_has_the_spread_of_resampling(q: float) -> None:
    """The limit that stands for the bootstrap has the middle and the spread of real resamples."""
    rng = np.random.default_rng(4)
    units = np.repeat(np.arange(2000), 5)
    values = 1 + rng.normal(0, 0.1, 2000)[units] + rng.normal(0, 0.1, 10_000)
    draws = rng.multinomial(2000, np.full(2000, 1 / 2000), size=400)
    by_hand = [np.percentile(np.repeat(values, draw[units]), q) for draw in draws]
    limit = statistics.bootstrap_percentiles(values, units, q)
    assert np.mean(limit) == pytest.approx(np.mean(by_hand), abs=float(np.std(by_hand)) / 4)
    assert np.std(limit) == pytest.approx(np.std(by_hand), rel=0.15)


@pytest.mark.parametrize("units", [50, 100_000])
def test_bootstrap_of_a_million_values_needs_little_memory(units: int) -> None:
    """Memory does not grow with resamples × values, which were 16 GB here."""
    values = np.random.default_rng(9).normal(1, 0.1, 1_000_000)
    members = np.arange(values.size) % units
    tracemalloc.start()
    try:
        low, high = statistics.bootstrap_interval(values, members)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.999 < low < high < 1.001
    assert peak < 256 * 2**20


def test_intervals_cover_the_true_median() -> None:
    """Of 200 intervals of normal samples, about 95 % hold the median they were drawn around."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = statistics.bootstrap_interval(rng.normal(1.0, 0.2, 30), np.arange(30))
        held += low <= 1.0 <= high
    assert 178 <= held <= 200


def test_an_interval_is_the_same_each_time() -> None:
    """Two reports of one run show the same figures."""
    values, units = np.random.default_rng(2).normal(size=20), np.arange(20)
    first = statistics.bootstrap_interval(values, units)
    assert statistics.bootstrap_interval(values, units) == first


def test_calls_as_the_unit_give_wider_intervals_than_turns() -> None:
    """Turns that share their unit's mood do not pass for independent measurements."""
    rng = np.random.default_rng(6)
    units = np.repeat(np.arange(12), 10)
    values = 1 + np.repeat(rng.normal(0, 0.1, 12), 10) + rng.normal(0, 0.02, 120)
    by_unit = statistics.bootstrap_interval(values, units)
    by_turn = statistics.bootstrap_interval(values, np.arange(120))
    assert by_unit[1] - by_unit[0] > 2 * (by_turn[1] - by_turn[0])


def test_one_call_has_no_interval() -> None:
    """A single unit says nothing about how units scatter."""
    assert all(map(math.isnan, statistics.bootstrap_interval([1.0, 2.0], ["a", "a"])))


def test_the_rank_test_is_scipys_on_one_value_per_call() -> None:
    """With one turn in each unit it is Mann–Whitney; with several, that of their medians."""
    rng = np.random.default_rng(8)
    base, new = rng.normal(1, 0.1, 15), rng.normal(1.05, 0.1, 12)
    ratio = statistics.compare_medians(base, np.arange(15), new, np.arange(12))
    assert ratio.p_value == pytest.approx(stats.mannwhitneyu(base, new).pvalue)
    thrice = statistics.compare_medians(
        np.repeat(base, 3), np.repeat(np.arange(15), 3), np.repeat(new, 3), np.repeat(range(12), 3)
    )
    assert thrice.p_value == pytest.approx(ratio.p_value)
    assert thrice.ratio == pytest.approx(np.median(new) / np.median(base))


def test_the_ratios_interval_holds_the_true_ratio() -> None:
    """Two samples whose medians stand as 1 to 1.5 give an interval around 1.5, clear of 1."""
    rng = np.random.default_rng(9)
    ratio = statistics.compare_medians(
        rng.normal(1, 0.05, 40), np.arange(40), rng.normal(1.5, 0.05, 40), np.arange(40)
    )
    low, high = ratio.ci95
    assert 1 < low < 1.5 < high
    assert ratio.p_value < 0.001


def test_delays_of_exactly_zero_bound_no_ratio() -> None:
    """A base whose median may be zero gives no interval, and no division by zero."""
    base, new = [0.0, 0.0, 0.1, 0.1, 0.1], [0.1] * 5
    assert math.isnan(statistics.compare_medians(base, range(5), new, range(5)).ci95[0])
    assert math.isnan(statistics.compare_medians([0.0] * 5, range(5), new, range(5)).ratio)
    same = statistics.compare_medians(new, range(5), new, range(5))
    assert same.ci95 == pytest.approx((1.0, 1.0))
    assert same.p_value == 1


def test_rounds_compare_like_with_like() -> None:
    """What differs from round to round hides a small difference from medians, not from rounds."""
    rng = np.random.default_rng(10)
    base = np.where(np.arange(20) % 2, 0.7, 1.2) + rng.normal(0, 0.01, 20)
    new = 1.05 * base + rng.normal(0, 0.01, 20)
    rounds = np.arange(20)
    apart = statistics.compare_medians(base, rounds, new, rounds)
    paired = statistics.compare_rounds(base, rounds, new[::-1], rounds[::-1])
    assert apart.ci95[0] < 0.9 < 1.2 < apart.ci95[1]
    assert 1.03 < paired.ci95[0] < 1.05 < paired.ci95[1] < 1.07
    assert paired.ratio == pytest.approx(np.median(new / base))
    assert paired.p_value == pytest.approx(stats.wilcoxon(np.log(new / base)).pvalue)
    assert paired.p_value < 0.001 < apart.p_value


def test_a_round_of_which_one_side_failed_does_not_count() -> None:
    """Only whole rounds are compared, several turns of a round as one; without any, nothing is."""
    base, new = [1.0, 1.2, 2.0, 9.0], [3.0, 2.2, 9.0]
    half = statistics.compare_rounds(base, [0, 0, 1, 2], new, [1, 0, 3])
    assert half.ratio == pytest.approx(1.75)  # of 2.2/1.1 and 3/2
    one = statistics.compare_rounds([2.0], [0], [1.0], [0])
    assert one.ratio == 0.5
    assert math.isnan(one.ci95[0])
    assert math.isnan(one.p_value)
    assert math.isnan(statistics.compare_rounds([1.0], [0], [1.0], [1]).ratio)
    assert math.isnan(statistics.compare_rounds([0.0], [0], [1.0], [0]).ratio)
    assert statistics.compare_rounds(new, range(3), new, range(3)).p_value == 1


def test_a_quiet_run_of_enough_trials_has_no_warning(tmp_path: Path) -> None:
    """Nothing is said where there is nothing to say."""
    run = connect_run(tmp_path / "run.jsonl", trials=60)
    figures = {key: of for key, of in run.stage_summaries.items() if key[0] != "dispatch"}
    assert statistics.instability_warnings(run.frame, run.attempts, HOST, figures) == []


def test_a_loaded_host_is_named(tmp_path: Path) -> None:
    """A load above 0.7 a core at the start is told."""
    run = connect_run(tmp_path / "run.jsonl", trials=12, host={**HOST, "load_1m": 1.9})
    assert any("a load of 1.9 on 2 cores" in words for words in run.warnings)


def test_wide_intervals_and_few_calls_are_named() -> None:
    """A median that could be a fifth off, and a handful of trials, are told in words."""
    frame = pd.DataFrame(
        {
            "stage": "join",
            "duration_s": [0.2, 0.3, 0.5, 0.8, 1.1],
            "outcome": "ok",
            "arm": "default",
            "warmup": False,
            "plausible": True,
            "upset": False,
            "turn": pd.NA,
            "trial": range(5),
            "unit": list("abcde"),
            "ready_by": None,
        }
    )
    attempts = pd.DataFrame({"outcome": ["ok"] * 5})
    figures = {("join", "default"): statistics.summarise(frame)}
    few, wide = statistics.instability_warnings(frame, attempts, HOST, figures)
    assert few.startswith("Only 5 calls were measured")
    assert wide.startswith("join is uncertain")

    burst = frame.assign(unit=list("aaabb"))
    few, *_ = statistics.instability_warnings(burst, attempts, HOST, figures)
    assert few.startswith("Only 2 events of 5 calls together were measured")
