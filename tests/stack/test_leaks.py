"""The search for leaks, over a few real calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from labvoice.bench import leaks as bench
from labvoice.bench.base import RunOptions
from labvoice.errors import UsageError
from labvoice.lab import Lab


async def test_a_few_calls_leave_nothing_behind(lab: Lab, tmp_path: Path) -> None:
    """Every figure is there twice; neither rooms, processes nor files are left, but recordings."""
    run, frame = await bench.leaks(lab, 2, RunOptions(tmp_path / "leaks.jsonl", warmup=1))
    assert set(frame.index) == set(bench.TOLERANCES)
    assert list(frame.columns) == ["before", "halfway", "after", "change", "allowed", "ok"]
    assert dict(frame["allowed"]) == bench.TOLERANCES  # whatever the number of calls
    assert (frame["before"].drop("server_rooms") > 0).all()
    assert frame.loc[["server_rooms", "worker_processes", "worker_files"], "ok"].all(), frame
    assert [path.parent for path in run.recordings["path"]] == [tmp_path / "leaks"] * 3
    assert run.complete


async def test_no_call_is_refused(lab: Lab, tmp_path: Path) -> None:
    """A number that makes no sense is an error of use."""
    with pytest.raises(UsageError, match="no call"):
        await bench.leaks(lab, 0, RunOptions(tmp_path / "leaks.jsonl"))
