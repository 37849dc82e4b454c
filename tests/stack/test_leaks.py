"""The search for leaks, over a few real calls."""

from __future__ import annotations

import pytest

from labvoice.bench import leaks as bench
from labvoice.errors import UsageError
from labvoice.lab import Lab


async def test_a_few_calls_leave_nothing_behind(lab: Lab) -> None:
    """Every figure is there twice, and neither rooms, processes nor files are left over."""
    frame = await bench.leaks(lab, 2, warmup=1)
    assert set(frame.index) == set(bench.TOLERANCES)
    assert list(frame.columns) == ["before", "halfway", "after", "change", "allowed", "ok"]
    assert dict(frame["allowed"]) == bench.TOLERANCES  # whatever the number of calls
    assert (frame["before"].drop("server_rooms") > 0).all()
    assert frame.loc[["server_rooms", "worker_processes", "worker_files"], "ok"].all(), frame


async def test_no_call_is_refused(lab: Lab) -> None:
    """A number that makes no sense is an error of use."""
    with pytest.raises(UsageError, match="no call"):
        await bench.leaks(lab, 0)
