"""Load through the real stack: callers in processes of their own call agents that echo."""

from __future__ import annotations

from pathlib import Path

import psutil

from labvoice.lab import Lab


async def test_callers_are_spread_over_dask_workers(lab: Lab, tmp_path: Path) -> None:
    """Three callers on two Dask workers are one run, with place and clock of each; none stays."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    run = await lab.bench.load(
        3, rate=10, seconds=6, echo=True, warmup=0, out=tmp_path / "load.jsonl"
    )
    (level,) = run.levels
    assert (level.callers, level.turns, level.joins, level.failed_joins) == (3, 3, 3, 0)
    assert level.lost == 0, run
    assert run.complete
    assert run.header.loop == "open"
    notes = run.notes.dropna(subset="dask_worker")
    assert notes["dask_worker"].nunique() == run.header.config["dask_workers"] == 2
    assert set(notes["dask_host"]) == {"127.0.0.1"}
    # Processes of one machine have one monotonic clock.
    assert (notes["dask_offset_s"].abs() <= notes["dask_uncertainty_s"]).all()
    assert {"worker", "server", "model", "callers"} == set(level.cpu)
    clicks = run.marks[run.marks["mark"] == "click"]
    assert len(clicks) == 3
    assert sorted(run.clicks.diff().dropna().round(3)) == [2.0, 2.0]  # the intended starts
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    workers = {worker.process.pid for worker in lab.pool.workers}
    names = [psutil.Process(pid).cmdline() for pid in left if pid not in workers]
    assert not [line for line in names if any("distributed" in word for word in line)]
