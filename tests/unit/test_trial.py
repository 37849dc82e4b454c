"""A trial of a run: whatever ends it, its outcome and those of its turns are written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from livekit import api

from labvoice.bench.base import trial
from labvoice.errors import AgentLostError, NoWorkerError
from labvoice.runs.run import Run, RunWriter


async def run_of(
    path: Path, error: BaseException | None, *, connected: bool = True, done: int = 0
) -> Run:
    """Records one trial of two turns that ends with this error."""
    with RunWriter(path, kind="turns") as run:
        try:
            async with trial(run, 0, "room", "default", round_number=3, said=["one", "two"]) as now:
                if connected:
                    now.outcome("ok")
                for turn in range(done):
                    now.outcome("ok", turn=turn)
                if error is not None:
                    raise error
        except (ZeroDivisionError, asyncio.CancelledError):
            pass
    return Run.load(path)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NoWorkerError("nobody is registered"), "no_worker"),
        (api.TwirpError("unavailable", "busy", status=503), "error"),
        (ZeroDivisionError(), "error"),
        (asyncio.CancelledError(), "error"),
    ],
)
async def test_a_connection_that_fails_has_its_outcome_and_so_have_its_turns(
    tmp_path: Path, error: BaseException, outcome: str
) -> None:
    """An error of a call, of the server, of the program, and a cancellation leave their rows."""
    run = await run_of(tmp_path / "run.jsonl", error, connected=False)
    assert list(run.outcomes["outcome"]) == [outcome] * 3
    assert list(run.outcomes["turn"].fillna(-1)) == [-1, 0, 1]
    assert run.outcomes["detail"].str.startswith("not tried: ").tolist() == [False, True, True]
    assert len(run.attempts) == 2  # the turns; the connection is the same failure


async def test_a_turn_that_fails_leaves_a_row_for_the_one_that_was_never_tried(
    tmp_path: Path,
) -> None:
    """The connection stays ok, the turn under way has the cause, and the next one says so."""
    run = await run_of(tmp_path / "run.jsonl", AgentLostError("it left"))
    assert list(run.outcomes["outcome"]) == ["ok", "agent_lost", "agent_lost"]
    assert list(run.outcomes["detail"]) == ["", "it left", "not tried: it left"]
    rows = run.frame[run.frame["turn"].notna()]
    assert set(rows["round"]) == {3}
    assert list(rows["said"].unique()) == ["one", "two"]


async def test_what_fails_after_all_turns_leaves_a_line(tmp_path: Path) -> None:
    """The turns stay what they are, and the trial's notes have the failure."""
    run = await run_of(tmp_path / "run.jsonl", AgentLostError("it left"), done=2)
    assert set(run.outcomes["outcome"]) == {"ok"}
    assert list(run.notes["failure"].dropna()) == ["it left"]


async def test_a_trial_that_ends_well_is_ok(tmp_path: Path) -> None:
    """Without an outcome of its own the connection is ok."""
    run = await run_of(tmp_path / "run.jsonl", None, connected=False, done=2)
    assert set(run.outcomes["outcome"]) == {"ok"}
