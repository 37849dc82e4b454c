"""Why a dispatch failed: one cause, named from evidence."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from labvoice.stack.livekit.log import LoggedJob


class Ending(Protocol):
    """How a job ended."""

    @property
    def reason(self) -> str:
        """In words."""

    @property
    def joined(self) -> bool:
        """Whether its agent was in the room before."""


class WorkerEvidence(Protocol):
    """What the diagnosis needs to know of a worker; a `WorkerStatus` will do."""

    @property
    def agent_name(self) -> str:
        """Name under which it is registered."""

    @property
    def load(self) -> float:
        """0 to 1."""

    @property
    def load_threshold(self) -> float:
        """At this load it takes no more."""

    @property
    def active_jobs(self) -> int:
        """Jobs that run now."""

    @property
    def rejections(self) -> dict[str, str]:
        """Reasons of refused requests, by dispatch id."""

    @property
    def endings(self) -> Mapping[str, Ending]:
        """How jobs ended, by dispatch id."""

    @property
    def failure(self) -> str:
        """Why its last job process could not start, with log lines; empty where it could."""


Evidence = Callable[[], Awaitable[Sequence[WorkerEvidence] | None]]
"""Asks the workers that can be asked; None where none can."""


@dataclass(frozen=True)
class ServerEvidence:
    """What a server of ours tells in its log.

    Attributes:
        names: Names of all registered workers, wherever they run.
        job: The job that was assigned last.
        lost: How the server gave up on the request, in its words; empty when it did not say.
    """

    names: Sequence[str] = field(default_factory=tuple)
    job: LoggedJob | None = None
    lost: str = ""


def diagnose(
    *,
    agent_name: str,
    room: str,
    dispatch_ids: Sequence[str],
    job: JobState | None,
    timeout_s: float,
    workers: Sequence[WorkerEvidence] | None,
    server: ServerEvidence | None = None,
) -> DispatchError:
    """Returns the error that names the cause.

    Args:
        agent_name: Name that was dispatched.
        room: Room that was dispatched to.
        dispatch_ids: Ids of the dispatches that were waited for, in order of the attempts.
        job: Last state of the assigned job; None when no worker was assigned.
        timeout_s: How long was waited, in seconds.
        workers: What the reachable workers say; None when none can be asked.
        server: What the server's log says; None when it is somebody else's.
    """
    same = [worker for worker in workers or () if worker.agent_name == agent_name]
    # Most telling first: what a worker said itself, then how far the job came.
    for worker in workers or ():
        for dispatch_id in dispatch_ids:
            if reason := worker.rejections.get(dispatch_id):
                return RejectedError(
                    f"the worker's request handler refused the job: {reason}",
                    "correct the room name or the metadata of the dispatch",
                )
    for worker in same:
        for dispatch_id in dispatch_ids:
            if ending := worker.endings.get(dispatch_id):
                return _of_ending(agent_name, room, ending)
    assigned = job is not None or (server is not None and server.job is not None)
    for worker in same:
        if worker.failure:
            return JoinTimeoutError(
                f"no process of {agent_name!r} could start for the job: {worker.failure}",
                "the lines name the model or the server that failed; `labvoice doctor` checks both",
            )
    if assigned:
        return _of_job(agent_name, room, job, server, timeout_s)
    return _of_nobody(agent_name, room, timeout_s, workers, same, server)


def _of_ending(agent_name: str, room: str, ending: Ending) -> DispatchError:
    """The worker itself told how the job ended."""
    if ending.joined:
        return AgentLostError(
            f"{agent_name!r} joined room {room!r} and left: {ending.reason}",
            "the worker's log has the whole story of the job",
        )
    return AgentLostError(
        f"the agent's job in room {room!r} ended before the agent stayed in the room: "
        f"{ending.reason}",
        "the worker's log has the traceback of the job",
    )


def _of_job(
    agent_name: str,
    room: str,
    job: JobState | None,
    server: ServerEvidence | None,
    timeout_s: float,
) -> DispatchError:
    """A worker took the job, and no agent stayed."""
    ended = server.job.ended if server is not None and server.job is not None else ""
    if job is not None and job.status in (JobStatus.JS_FAILED, JobStatus.JS_SUCCESS):
        ended = ended or f"{JobStatus.Name(job.status)} {job.error}".strip()
    if ended:
        return AgentLostError(
            f"the agent's job in room {room!r} ended before the agent stayed in the room: {ended}",
            "the worker's log has the traceback of the job",
        )
    return JoinTimeoutError(
        f"a worker took the job but {agent_name!r} was not in room {room!r} within {timeout_s:g} s",
        "the worker's log shows how far its entrypoint came",
    )


def _of_nobody(
    agent_name: str,
    room: str,
    timeout_s: float,
    workers: Sequence[WorkerEvidence] | None,
    same: Sequence[WorkerEvidence],
    server: ServerEvidence | None,
) -> DispatchError:
    """No worker took the job."""
    start = f"start one with `labvoice worker --agent-name {agent_name}`"
    if workers is None and server is None:
        return NoWorkerError(
            f"no worker took the dispatch of {agent_name!r} to room {room!r} "
            f"within {timeout_s:g} s",
            f"{start} and compare the names",
        )
    # Of somebody else's server, only this lab's own workers are known.
    none = "no worker" if server is not None else "none of this lab's workers"
    every = "every worker" if server is not None else "every worker of this lab"
    names = sorted(
        {worker.agent_name for worker in workers or ()} | set(server.names if server else ())
    )
    if not names:
        return NoWorkerError(
            f"no worker is registered, so nobody took the dispatch of {agent_name!r} "
            f"to room {room!r}"
            if server is not None
            else f"this lab has no worker, and no other one took the dispatch of {agent_name!r} "
            f"to room {room!r} within {timeout_s:g} s",
            start,
        )
    if agent_name not in names:
        near = difflib.get_close_matches(agent_name, names, n=1, cutoff=0.5)
        return NameMismatchError(
            f"{none} is registered as {agent_name!r}; registered: {', '.join(map(repr, names))}",
            f"did you mean {near[0]!r}?" if near else "dispatch one of the registered names",
        )
    if same and all(worker.load >= worker.load_threshold for worker in same):
        return WorkerFullError(
            f"{every} named {agent_name!r} is full: "
            + ", ".join(
                f"{worker.active_jobs} jobs, load {worker.load:.2f} of {worker.load_threshold:.2f}"
                for worker in same
            ),
            "start another worker, or raise LABVOICE_MAX_JOBS",
        )
    said = f"; the server says: {server.lost}" if server is not None and server.lost else ""
    if said and not same:
        return WorkerFullError(
            f"workers of {agent_name!r} are registered and none took the job{said}",
            "they run elsewhere: look at their load, and start another one",
        )
    return NoWorkerError(
        f"{len(same)} worker(s) of {agent_name!r} are registered and not full, "
        f"but none took the job within {timeout_s:g} s{said}",
        "the worker's log tells whether the job request arrived",
    )
