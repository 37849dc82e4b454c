"""The simulation of capacity: known results of queues, and the cost of a call from a run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.capacity import (
    check,
    cost,
    erlang_b,
    fleet,
    predicted_p95,
    refused_share,
    slots_for,
    sojourns,
)
from tests.unit.test_load import level


def test_a_job_alone_takes_its_work_and_two_share_one_core() -> None:
    """Nobody takes more than one core; on one core two of equal work take twice as long."""
    assert sojourns([0.0], [2.0], 4).tolist() == [2.0]
    assert sojourns([0.0, 0.0], [2.0, 2.0], 4).tolist() == [2.0, 2.0]
    assert sojourns([0.0, 0.0], [2.0, 2.0], 1).tolist() == [4.0, 4.0]
    assert sojourns([0.0, 1.0], [2.0, 0.5], 1).tolist() == [2.5, 1.0]


def test_one_core_at_random_is_the_known_queue() -> None:
    """The mean stay under processor sharing is work / (1 - load), as for M/M/1."""
    rng = np.random.default_rng(1)
    count, load = 20_000, 0.5
    stay = sojourns(np.cumsum(rng.exponential(1.0, count)), rng.exponential(load, count), 1)
    assert stay.mean() == pytest.approx(load / (1 - load), rel=0.06)


def test_erlangs_formula_has_its_known_values() -> None:
    """One slot and one erlang refuse half; ten erlangs on ten slots 21.46 %."""
    assert erlang_b(1, 1) == 0.5
    assert erlang_b(10, 10) == pytest.approx(0.2146, abs=1e-4)
    assert erlang_b(10, slots_for(10, 0.01)) <= 0.01 < erlang_b(10, slots_for(10, 0.01) - 1)


def test_the_simulation_agrees_with_erlang() -> None:
    """The share refused does not depend on the distribution of the lengths, only on their mean."""
    assert refused_share(50, 50, hours=20) == pytest.approx(erlang_b(50, 50), rel=0.1)


def test_a_surge_is_refused_until_new_workers_are_there() -> None:
    """With more slots free before it, fewer calls are refused."""
    tight, roomy = (
        refused_share(50, slots, hours=0.5, surge=2, grow_after_s=60) for slots in (60, 125)
    )
    assert tight > roomy


def test_the_cost_of_a_call_is_the_slope_over_the_levels() -> None:
    """What is used without a call is apart, and the callers' own share is left out."""
    levels = [
        level(n, 1.0, cpu={"worker": 0.1 + 0.2 * n, "server": 0.05 * n, "callers": 9.0})
        for n in (1, 2, 4)
    ]
    found = cost(levels)
    assert found.cores == pytest.approx({"worker": 0.2, "server": 0.05, "model": 0.0})
    assert found.total == pytest.approx(0.25)
    assert found.idle == pytest.approx(0.1)
    assert any("workers" in line for line in fleet(1000, 4, found))


def test_the_predicted_latency_rises_with_the_load_and_has_no_bound_beyond_the_cores() -> None:
    """At more work than the cores do, there is no steady state."""
    of = {"period_s": 10.0, "p50_s": 0.8, "p95_s": 1.0, "work_s": 0.5, "free": 1.5}
    assert predicted_p95(1, **of) == pytest.approx(1.0, abs=0.02)  # as it was measured alone
    assert predicted_p95(1, **of) < predicted_p95(20, **of) < predicted_p95(28, **of)
    assert math.isinf(predicted_p95(31, **of))


def test_a_run_is_predicted_from_its_first_level() -> None:
    """The first level is what it was measured as, and the knee is where the cores end."""
    levels = [level(n, p95_s, cpu={"worker": 0.2 * n}) for n, p95_s in ((1, 0.8), (4, 0.9), (8, 2))]
    config = {"limit_s": 1.2, "rate_per_min": 6}
    bend, lines = check(levels, config, cost(levels), media=0.0, waiting_s=0.3, cores=1)
    assert bend in (1, 4)
    assert "| 0.80 | 0.8" in lines[0]
    assert len(lines) == 3
    assert lines[-1].endswith("no end |")
