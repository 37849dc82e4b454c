"""Parses workers and jobs from the log of the lab's own LiveKit server."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from labvoice.stack.processes import new_lines

_KEPT: Final = 4000
_DISORDER_S: Final = 1.0
"""How far lines of several servers may be out of order."""


class Message(StrEnum):
    """What the server says of workers and jobs.

    LiveKit 1.13.5: pkg/agent/client.go, pkg/agent/worker.go, pkg/service/agentservice.go,
    pkg/service/server.go.
    """

    STARTING = "starting LiveKit server"
    REGISTERED = "worker registered"
    CLOSING = "closing worker"
    NO_WORKER = "not dispatching agent job since no worker is available"
    NO_CAPACITY = "no worker available to handle job"
    REQUEST_FAILED = "failed to send job request"
    ASSIGN_FAILED = "failed to assign job to worker"
    ASSIGNED = "assigned job to worker"
    ENDED = "job ended"


_LINE = re.compile(rf"^(\S+)\t.*\t({'|'.join(Message)})\t(\{{.*\}})$")


@dataclass(frozen=True)
class LogEvent:
    """One relevant log line."""

    at_s: float
    message: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        error = self.fields.get("error")
        return f"{self.message}: {error}" if error else self.message


@dataclass(frozen=True)
class LoggedJob:
    """A job that the server assigned to a worker.

    Attributes:
        job_id: Its id.
        worker_id: Of the worker that took it.
        ended: How it ended, as text; empty while it runs.
    """

    job_id: str
    worker_id: str
    ended: str = ""


class LiveKitLog:
    """Reads the log as it grows.

    Args:
        paths: The log of a server that this lab has started, or those of its nodes.
    """

    def __init__(self, *paths: Path) -> None:
        self._positions = dict.fromkeys(paths, 0)
        self._events: deque[LogEvent] = deque(maxlen=_KEPT)
        self._workers: dict[Path, dict[str, str]] = {path: {} for path in paths}
        self._node_id = ""

    def workers(self) -> dict[str, str]:
        """Agent names of the registered workers, wherever they run, by worker id."""
        self._read()
        return {each: name for of_one in self._workers.values() for each, name in of_one.items()}

    def node_id(self) -> str:
        """Id that the server took at its latest start; empty before it has one."""
        self._read()
        return self._node_id

    def lost(self, room: str, agent_name: str, since_s: float) -> LogEvent | None:
        """Returns the line by which the server gave up on a dispatch to this room, if it did.

        A dispatch also asks for workers of the job types JT_PUBLISHER and JT_PARTICIPANT, which the
        lab does not have; their failure is ignored.
        """
        return self._last((Message.NO_WORKER, Message.NO_CAPACITY), room, agent_name, since_s)

    def failed_requests(self, agent_name: str, since_s: float) -> list[LogEvent]:
        """Returns the lines about failed job requests; the server does not name the room."""
        self._read()
        return [
            event
            for event in self._events
            if event.message == Message.REQUEST_FAILED
            and event.at_s >= since_s
            and event.fields.get("agentName") == agent_name
        ]

    def job(self, room: str, agent_name: str, since_s: float) -> LoggedJob | None:
        """Returns the job that was assigned last, if any was."""
        assigned = self._last((Message.ASSIGNED,), room, agent_name, since_s)
        if assigned is None:
            return None
        job_id = str(assigned.fields.get("jobID"))
        return LoggedJob(job_id, str(assigned.fields.get("workerID")), self.ended(job_id))

    def ended(self, job_id: str) -> str:
        """Returns how a job ended, as text; empty while it runs."""
        self._read()
        return next(
            (
                f"{event.fields.get('status')} {event.fields.get('error', '')}".strip()
                for event in self._events
                if event.message == Message.ENDED and event.fields.get("jobID") == job_id
            ),
            "",
        )

    def _last(
        self, messages: tuple[str, ...], room: str, agent_name: str, since_s: float
    ) -> LogEvent | None:
        self._read()
        for event in reversed(self._events):
            if event.at_s < since_s - _DISORDER_S:
                return None
            if (
                event.at_s >= since_s
                and event.message in messages
                and event.fields.get("room") == room
                and event.fields.get("agentName", "") == agent_name
                and event.fields.get("jobType") == "JT_ROOM"
            ):
                return event
        return None

    def _read(self) -> None:
        found: list[LogEvent] = []
        for path, position in self._positions.items():
            try:
                lines, self._positions[path] = new_lines(path, position)
            except OSError:
                continue  # the server's folder was removed: it has been stopped
            for line in lines:
                if event := parse(line):
                    found.append(event)
                    _take(event, self._workers[path])
                    if event.message == Message.STARTING:
                        self._node_id = str(event.fields.get("nodeID", ""))
        self._events.extend(sorted(found, key=lambda event: event.at_s))


def _take(event: LogEvent, workers: dict[str, str]) -> None:
    """Changes the registered workers of one server by what its log says."""
    worker_id = str(event.fields.get("workerID"))
    if event.message == Message.STARTING:
        workers.clear()  # a killed server logs no deregistration
    elif event.message == Message.REGISTERED:
        workers[worker_id] = str(event.fields.get("agentName", ""))
    elif event.message == Message.CLOSING:
        workers.pop(worker_id, None)


def parse(line: str) -> LogEvent | None:
    """Parses one line of the log; None if it is not about workers or jobs."""
    found = _LINE.match(line)
    if found is None:
        return None
    at, message, text = found.groups()
    try:
        return LogEvent(datetime.fromisoformat(at).timestamp(), message, json.loads(text))
    except ValueError:
        return None
