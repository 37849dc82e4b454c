"""Diagnosis of a failed dispatch: one cause, from evidence."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from livekit.protocol.agent import JobState, JobStatus

from labvoice.dispatch.media import media_hint
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
from labvoice.stack.workers.worker import Ending, WorkerStatus

Evidence = Callable[[], Awaitable[Sequence[WorkerStatus] | None]]
"""Returns the status of the reachable workers; None if none can be asked."""


@dataclass(frozen=True)
class ServerEvidence:
    """What the log of the lab's own LiveKit server shows.

    Attributes:
        names: Names of all registered workers, wherever they run.
        job: The job that was assigned last.
        lost: The server's message when it gave up on the request; empty if it did not.
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
    workers: Sequence[WorkerStatus] | None,
    server: ServerEvidence | None = None,
    media: Sequence[str] | None = None,
) -> DispatchError:
    """Returns the error that names the cause.

    Args:
        dispatch_ids: Ids of the dispatches, in order of the attempts.
        job: Last state of the assigned job; None if no worker was assigned.
        workers: Status of the reachable workers; None if none can be asked.
        server: What the server's log shows; None for an external server.
        media: Addresses of the server's media, if an agent's signalling is connected and its media
            is not; None otherwise.
    """
    same = [worker for worker in workers or () if worker.agent_name == agent_name]
    # Most specific first: what a worker reported, then how far the job came.
    for worker in workers or ():
        for dispatch_id in dispatch_ids:
            if reason := worker.rejections.get(dispatch_id):
                return RejectedError(
                    f"the worker's request handler refused the job: {reason}",
                    "correct the room name or the metadata of the dispatch",
                )
    if media is not None:
        return JoinTimeoutError(
            f"{agent_name!r} reached the server, but media cannot pass between it and its worker: "
            f"it was not in room {room!r} within {timeout_s:g} s",
            media_hint(media),
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
                "the log lines name the model or server that failed; `labvoice doctor` checks both",
            )
    if assigned:
        return _of_job(agent_name, room, job, server, timeout_s)
    return _of_nobody(agent_name, room, timeout_s, workers, same, server)


def _of_ending(agent_name: str, room: str, ending: Ending) -> DispatchError:
    """The worker reported how the job ended."""
    if ending.joined:
        return AgentLostError(
            f"{agent_name!r} joined room {room!r} and left: {ending.reason}",
            "see the worker's log for the job",
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
    """A worker took the job, but no agent stayed."""
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
    workers: Sequence[WorkerStatus] | None,
    same: Sequence[WorkerStatus],
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
    # On an external server, only this lab's own workers are known.
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
            "they run elsewhere: check their load, or start another worker",
        )
    return NoWorkerError(
        f"{len(same)} worker(s) of {agent_name!r} are registered and not full, "
        f"but none took the job within {timeout_s:g} s{said}",
        "the worker's log shows whether the job request arrived",
    )
