"""The failover bench: kills the agent of a call and measures the time to its replacement."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, Unpack, get_args

from labvoice.bench.arms import Arm
from labvoice.bench.base import (
    RunKeywords,
    RunOptions,
    Trial,
    dispatched_target,
    measure_calls,
    refuse_speakers,
)
from labvoice.caller.call import Call
from labvoice.dispatch import rooms
from labvoice.errors import DuplicateAgentError, UsageError
from labvoice.protocol.vocabulary import Mark
from labvoice.runs.run import Run
from labvoice.targets.target import Target

if TYPE_CHECKING:
    from labvoice.lab import Lab

Kill = Literal["job", "worker", "hang"]
KILLS: Final[tuple[Kill, ...]] = get_args(Kill)
"""`job`: the job's process by SIGKILL; `worker`: the worker's, whose job processes end with it;
`hang`: the job's process by SIGSTOP."""

_OTHERS_KILLS: Final[tuple[Kill, ...]] = ("job", "hang")
"""For an agent that is not labvoice's: its only worker is not restarted."""
_OTHERS_TIMEOUT_S: Final = 90.0
"""LiveKit notices such an agent's loss after some 21 s, and its supervisor is sure 12 s later."""
_IDLE_TIMEOUT_S: Final = 150.0
"""A killed worker loads its models again before the next trial."""


def parse_kills(text: str, agent: Target | None = None) -> list[Kill]:
    """Reads a list such as `job,worker`.

    Args:
        text: The list; empty for all that can be.
        agent: The agent that is killed, where it is not labvoice's.

    Raises:
        UsageError: A kind is unknown.
    """
    if not text:
        return list(KILLS if agent is None else _OTHERS_KILLS)
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
    lab: Lab,
    trials: int = 10,
    *,
    kills: str = "",
    agent: Target | None = None,
    **given: Unpack[RunKeywords],
) -> Run:
    """Kills agents in their calls, the kinds of death taking turns in every round.

    Args:
        lab: With two workers or more.
        trials: How many of each kind of death.
        kills: Kinds of death with commas: job, worker, hang; all that can be when not given. Each
            is an arm of the run.
        agent: A script or command whose agent is killed; labvoice's own when not given.

    Raises:
        UsageError: A number is out of range, or the lab does not replace lost agents.
        RunFileError: The run file exists already.
    """
    chosen, options = parse_kills(kills, agent), RunOptions(**given)
    options.rounds(trials)
    refuse_speakers(options)
    if lab.supervisor is None or not lab.supervisor.running:
        raise UsageError("this lab does not replace lost agents", "use `Lab(supervise=True)`")
    if agent is None and len(lab.pool.workers) < 2:
        raise UsageError("a pool of one worker cannot take over", "use `Lab(workers=2)`")
    settings = lab.settings
    arms = [Arm(kind, columns={"kill": kind}) for kind in chosen]
    if agent is not None:
        arms = await _arms_of(lab, agent, arms)
    return await measure_calls(
        lab,
        "failover",
        trials,
        arms,
        options,
        lambda this, call, _: _kill(lab, this, call),
        config={
            "workers": len(lab.pool.workers) if agent is None else 1,
            "failover_after_s": settings.failover_after_s,
            "agent_name": settings.agent_name if agent is None else str(arms[0].agent_name),
        },
        idle_timeout_s=_IDLE_TIMEOUT_S,
    )


async def _arms_of(lab: Lab, agent: Target, arms: Sequence[Arm]) -> list[Arm]:
    """Starts an agent that is not labvoice's, and returns the arms with it.

    Raises:
        UsageError: Nothing of it can be killed, or nobody can replace it.
    """
    if not agent.starts_worker:
        raise UsageError(
            f"{str(agent)!r} is no worker that this lab starts and kills",
            "name a script or a command; labvoice's own needs no --agent",
        )
    if wrong := {arm.name for arm in arms} - set(_OTHERS_KILLS):
        raise UsageError(
            f"{min(wrong)!r} is for labvoice's own workers: nobody starts another's again",
            f"--kill {','.join(_OTHERS_KILLS)}",
        )
    called = await dispatched_target(lab, agent)
    about = {"agent": str(agent)}
    return [
        dataclasses.replace(arm, agent_name=called, target=agent, columns={**arm.columns, **about})
        for arm in arms
    ]


async def _kill(lab: Lab, this: Trial, call: Call) -> str:
    kind, fault = this.arm, None
    try:
        await call.connect()
        await call.hear_greeting()
        lost = call.worker
        if kind == "worker":
            fault = lab.faults.kill_worker(call)
        else:
            fault = lab.faults.hang_job(call) if kind == "hang" else lab.faults.kill_job(call)
        this.mark(Mark("agent_killed", fault.at_s))
        if not lost:
            await call.wait_for_replacement(_OTHERS_TIMEOUT_S)
        else:
            await call.wait_for_replacement()
            this.note(
                lost_worker_id=lost["worker_id"],
                worker_id=call.worker["worker_id"],
                job_id=call.worker["job_id"],
            )
        there = await rooms.participants(lab.dispatcher.api, call.room_name)
        agents = [each.identity for each in there if rooms.is_agent(each)]
        if len(agents) > 1:
            raise DuplicateAgentError(f"{len(agents)} agents are in the room: {', '.join(agents)}")
        recovery_s = call.marks["replacement_listening"] - fault.at_s
        words = f"another agent listens after {recovery_s:.2f} s"
        if "apology_heard" not in call.marks:
            return words
        return f"{words}, heard after {call.marks['apology_heard'] - fault.at_s:.2f} s"
    finally:
        if fault is not None:
            fault.kill()  # a process that only hangs
