"""Why a dispatch failed: one cause, named from evidence."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from livekit.protocol.agent import JobState, JobStatus

from labvoice.errors import (
    AgentLostError,
    DispatchError,
    JoinTimeoutError,
    NameMismatchError,
    NoWorkerError,
    RejectedError,
    WorkerFullError,
)


class WorkerEvidence(Protocol):
    """What the diagnosis needs to know of a worker; a `WorkerStatus` will do."""

    @property
    def agent_name(self) -> str:
        """Name under which it is registered."""

    @property
    def load(self) -> float:
        """0 to 1."""

    @property
    def active_jobs(self) -> int:
        """Jobs that run now."""

    @property
    def rejections(self) -> dict[str, str]:
        """Reasons of refused requests, by dispatch id."""


Evidence = Callable[[], Awaitable[Sequence[WorkerEvidence]]]
"""Asks the workers that can be asked."""


def diagnose(
    *,
    agent_name: str,
    room: str,
    dispatch_ids: Sequence[str],
    job: JobState | None,
    timeout_s: float,
    workers: Sequence[WorkerEvidence] | None,
) -> DispatchError:
    """Returns the error that names the cause.

    Args:
        agent_name: Name that was dispatched.
        room: Room that was dispatched to.
        dispatch_ids: Ids that the server gave, in order of the attempts.
        job: Last state of the assigned job; None when no worker was assigned.
        timeout_s: How long was waited, in seconds.
        workers: What the reachable workers say; None when none can be asked.
    """
    if job is not None:
        if job.status in (JobStatus.JS_FAILED, JobStatus.JS_SUCCESS):
            how = "failed" if job.status == JobStatus.JS_FAILED else "ended"
            return AgentLostError(
                f"the agent's job in room {room!r} {how} before the agent stayed in the room"
                + (f": {job.error}" if job.error else ""),
                "the worker's log has the traceback of the job",
            )
        return JoinTimeoutError(
            f"a worker took the job but {agent_name!r} was not in room {room!r} "
            f"within {timeout_s:g} s",
            "the worker's log shows how far its entrypoint came",
        )
    if workers is None:
        return NoWorkerError(
            f"no worker took the dispatch of {agent_name!r} to room {room!r} "
            f"within {timeout_s:g} s",
            f"start one with `labvoice worker --agent-name {agent_name}` and compare the names",
        )
    for worker in workers:
        for dispatch_id in dispatch_ids:
            if reason := worker.rejections.get(dispatch_id):
                return RejectedError(
                    f"the worker's request handler refused the job: {reason}",
                    "correct the room name or the metadata of the dispatch",
                )
    names = sorted({worker.agent_name for worker in workers})
    if not names:
        return NoWorkerError(
            f"no worker is registered, so nobody took the dispatch of {agent_name!r} "
            f"to room {room!r}",
            f"start one with `labvoice worker --agent-name {agent_name}`",
        )
    if agent_name not in names:
        near = difflib.get_close_matches(agent_name, names, n=1, cutoff=0.5)
        return NameMismatchError(
            f"no worker is registered as {agent_name!r}; registered: {', '.join(map(repr, names))}",
            f"did you mean {near[0]!r}?" if near else "dispatch one of the registered names",
        )
    same = [worker for worker in workers if worker.agent_name == agent_name]
    if all(worker.load >= 1 for worker in same):
        return WorkerFullError(
            f"every worker of {agent_name!r} is full: "
            + ", ".join(f"{worker.active_jobs} jobs, load {worker.load:.2f}" for worker in same),
            "start another worker, or raise LABVOICE_MAX_JOBS",
        )
    return NoWorkerError(
        f"{len(same)} worker(s) of {agent_name!r} are registered and not full, "
        f"but none took the job within {timeout_s:g} s",
        "the worker's log tells whether the job request arrived",
    )
