"""The failover benchmark: kills the agent of a call and measures how soon another one listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

from livekit import api
from livekit.protocol.models import ParticipantInfo

from labvoice.bench.base import CallSource, columns, outcome_of, run_path
from labvoice.caller.call import Call
from labvoice.dispatch import Dispatcher
from labvoice.errors import DuplicateAgentError, LabvoiceError, UsageError
from labvoice.runs import host
from labvoice.runs.run import Run, RunWriter
from labvoice.stack.workers.pool import Pool

Kill = Literal["job", "worker", "hang"]
KILLS: Final[tuple[Kill, ...]] = get_args(Kill)
"""`job`: the job's process by SIGKILL; `worker`: the worker's, whose job processes end with it;
`hang`: the job's process by SIGSTOP."""

_IDLE_TIMEOUT_S: Final = 150.0
"""A worker that was killed loads its models anew before the next trial."""


def parse_kills(text: str) -> list[Kill]:
    """Reads a list such as `job,worker`.

    Raises:
        UsageError: A kind is unknown, or none is given.
    """
    found: list[Kill] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        kind = next((each for each in KILLS if each == word), None)
        if kind is None:
            raise UsageError(f"unknown kind of death {word!r}", f"one of: {', '.join(KILLS)}")
        found.append(kind)
    if not found:
        raise UsageError("no kind of death is given", f"some of: {', '.join(KILLS)}")
    return found


async def failover(
    source: CallSource,
    trials: int = 10,
    *,
    kills: Sequence[Kill] = KILLS,
    out: Path | None = None,
    command: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Run:
    """Measures failovers, one after the other, the kinds of death in turn.

    Args:
        source: A lab with two workers or more.
        trials: How many of each kind.
        kills: The kinds; each is an arm of the run.
        out: The run file; one in `runs/` named by the time when not given.
        command: The command line to show as the way to reproduce the run.
        progress: Told a line for every trial.

    Raises:
        UsageError: A number makes no sense, or the lab does not replace lost agents.
        RunFileError: The run file exists already.
    """
    if trials < 1 or not kills:
        raise UsageError("a run needs at least one trial", "pass `--trials 1` or more")
    if not source.supervised:
        raise UsageError("nobody replaces lost agents here", "use `Lab(supervise=True)`")
    if len(source.pool.workers) < 2:
        raise UsageError("a pool of one worker cannot take over", "use `Lab(workers=2)`")
    settings = source.settings
    path = out or run_path("failover")
    config = {
        "command": command,
        "trials": trials,
        "workers": len(source.pool.workers),
        "failover_after_s": settings.failover_after_s,
        "agent_name": settings.agent_name,
    }
    arms: dict[str, dict[str, Any]] = {k: {**columns(settings), "kill": k} for k in kills}
    facts = await asyncio.to_thread(host.facts, source.server_version)
    with RunWriter(path, kind="failover", config=config, arms=arms, host_facts=facts) as run:
        for trial in range(trials * len(kills)):
            await source.pool.wait_idle(_IDLE_TIMEOUT_S)
            kind = kills[trial % len(kills)]
            words = await _trial(source, run, trial, kind)
            progress(f"failover {kind} {trial // len(kills) + 1}/{trials}: {words}")
    return Run.load(path)


async def _trial(source: CallSource, run: RunWriter, trial: int, kind: Kill) -> str:
    def on_mark(name: str, at_s: float, clock: str, error_s: float) -> None:
        whose: Literal["caller", "worker"] = "worker" if clock == "worker" else "caller"
        run.mark(trial, name, at_s, clock=whose, uncertainty_s=error_s)

    call = source.new_call(on_mark=on_mark)
    run.trial(trial, call.room_name, kind)
    victim = 0
    try:
        await call.connect()
        await call.hear_greeting()
        lost = call.worker
        victim = lost["pid"] if kind != "worker" else _pid_of(source.pool, lost["worker_id"])
        killed_s = asyncio.get_running_loop().time()
        os.kill(victim, signal.SIGSTOP if kind == "hang" else signal.SIGKILL)
        run.mark(trial, "agent_killed", killed_s)
        await call.wait_for_replacement()
        run.note(
            trial,
            lost_worker_id=lost["worker_id"],
            worker_id=call.worker["worker_id"],
            job_id=call.worker["job_id"],
        )
        await _check_alone(source.dispatcher, call)
        run.outcome(trial, "ok")
        recovery_s = call.marks["replacement_listening"] - killed_s
        silence_s = call.marks["apology_heard"] - killed_s
        return f"another agent listens after {recovery_s:.2f} s, heard after {silence_s:.2f} s"
    except LabvoiceError as error:
        run.outcome(trial, outcome_of(error), detail=error.observed)
        return error.observed
    finally:
        await source.end_call(call)
        if victim and kind == "hang":
            with contextlib.suppress(ProcessLookupError):  # its worker was faster
                os.kill(victim, signal.SIGKILL)


def _pid_of(pool: Pool, worker_id: str) -> int:
    return next(w.process.pid for w in pool.workers if w.worker_id == worker_id)


async def _check_alone(dispatcher: Dispatcher, call: Call) -> None:
    """Checks that the room has exactly one agent.

    Raises:
        DuplicateAgentError: It has more.
    """
    request = api.ListParticipantsRequest(room=call.room_name)
    listed = await dispatcher.api.room.list_participants(request)
    agents = [p.identity for p in listed.participants if p.kind == ParticipantInfo.Kind.AGENT]
    if len(agents) > 1:
        raise DuplicateAgentError(f"{len(agents)} agents are in the room: {', '.join(agents)}")
