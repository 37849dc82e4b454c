"""The service under load, with a restart: small, for what must hold and not for how fast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from labvoice.bench.base import RunOptions
from labvoice.bench.http import ServiceFacts, measure_load


async def test_load_and_a_restart_lose_nothing(tmp_path: Path) -> None:
    """Every dispatch that is offered is accepted once, and idle clients are still served."""
    run, facts = await measure_load(
        rate_hz=20, seconds=2, idle=20, restart_s=4, options=RunOptions(tmp_path / "http.jsonl")
    )
    assert facts.lost == facts.doubled == 0
    assert facts.accepted == 20 * 2 + 5 * 4
    assert facts.restarts == 1
    assert facts.idle_served_after == facts.idle_clients == 20
    assert facts.memory_after > facts.memory_before / 2 > 0
    assert facts.sound
    result = run.to_json()
    assert result["failed"] == 0
    assert set(result["arms"]) == {"load", "restart"}
    assert result["arms"]["load"]["stages"]["http_dispatch"]["n"] == 40
    assert result["arms"]["restart"]["stages"]["http_dispatch"]["n"] == 20
    # Dispatches under way at once are not independent: the second of load is the unit.
    assert set(run.frame.groupby("arm")["unit"].nunique()) == {2, 4}
    assert f"accepted {facts.accepted}, lost 0" in str(facts)


def test_what_was_lost_or_dropped_is_a_failure() -> None:
    """A lost or doubled dispatch and an idle client that was dropped each fail the benchmark."""
    good = ServiceFacts(
        offered_hz=20,
        idle_clients=10,
        idle_served_after=10,
        memory_before=1,
        memory_after=1,
        cpu_per_dispatch_s=0.001,
        restarts=1,
        accepted=60,
        lost=0,
        doubled=0,
    )
    assert good.sound
    for change in ({"lost": 1}, {"doubled": 1}, {"idle_served_after": 9}):
        assert not replace(good, **change).sound
