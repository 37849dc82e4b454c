"""Load through the real stack: callers in processes of their own call agents that echo."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import psutil
import soundfile

from labvoice.lab import Lab
from labvoice.runs import host
from tests.stack.talking import LISTENS


def dask_processes() -> list[str]:
    """Command lines of this process's children that Dask has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return [line for line in found if "multiprocessing.spawn" in line]


@LISTENS
async def test_callers_are_spread_over_dask_workers(lab: Lab, tmp_path: Path) -> None:
    """Three callers on two Dask workers are one run, with place and clock of each; none stays."""
    run = await lab.bench.load(
        3, rate=10, seconds=6, echo=True, warmup=0, out=tmp_path / "load.jsonl"
    )
    (level,) = run.levels
    assert (level.callers, level.turns, level.joins, level.failed_joins) == (3, 3, 3, 0), run
    assert level.lost == 0, run
    assert run.complete
    assert run.header.loop == "open"
    notes = run.notes.dropna(subset="dask_worker")
    assert len(notes) == 3
    workers = min(3, host.cores())
    assert notes["dask_worker"].nunique() == run.header.config["dask_workers"] == workers
    assert set(notes["dask_host"]) == {"127.0.0.1"}
    # Processes of one machine have one monotonic clock.
    assert (notes["dask_offset_s"].abs() <= notes["dask_uncertainty_s"] + 1e-6).all()
    assert set(level.cpu) == {"worker", "server", "model", "callers"}
    assert list(run.clicks.diff().dropna().round(3)) == [2.0, 2.0]  # the intended starts
    heard = run.frame[run.frame["stage"] == "voice_to_voice"]
    assert heard["duration_s"].notna().all()
    assert dask_processes() == []
    assert sorted(run.recordings["trial"]) == [0, 1, 2]
    for path, start_s in zip(run.recordings["path"], run.recordings["start_s"], strict=True):
        assert path.parent == tmp_path / "load"
        sound, rate = soundfile.read(path)
        assert 0 < start_s < 5  # from the intended start
        assert len(sound) / rate > 6
        assert (np.abs(sound).max(axis=0) > 0.1).all()  # the caller's tone, and its echo
