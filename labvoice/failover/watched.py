"""What the supervisor knows of one agent, and how long it has been silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from livekit.protocol.agent import JobStatus
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.rooms import ATTRIBUTE_AGENT_NAME, is_agent
from labvoice.errors import MetadataError
from labvoice.protocol.metadata import (
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_HEARTBEAT,
    ATTRIBUTE_HISTORY,
    ATTRIBUTE_LEAVING,
    ATTRIBUTE_METADATA,
    ATTRIBUTE_WORKER_ID,
    ChatTurn,
    parse_metadata,
    unpack_history,
)

_START_S: Final = 5.0
"""Time that a joined agent has until its first heartbeat, in seconds."""
_COLD_S: Final = 60.0
"""A job whose agent is not there yet may load its models for so long: the server calls it
running as soon as it asks a worker (LiveKit `pkg/agent/worker.go`, AssignJob)."""
_LOOK_S: Final = 0.6
"""Looks further apart than this count as so long apart: silence takes several looks."""


def is_ours(participant: ParticipantInfo) -> bool:
    """Whether a participant is an agent of labvoice's; never true of a human."""
    return (
        is_agent(participant)
        and ATTRIBUTE_DISPATCH_ID in participant.attributes
        and ATTRIBUTE_HEARTBEAT in participant.attributes
    )


class Watched:
    """One agent as it was last seen.

    Silence is the time between looks that saw no new heartbeat, each look dated when its question
    was sent. What passes while nobody looks, for the supervisor's own process or the server is
    held up, counts for little: silence that was not observed is no evidence.

    Args:
        room: Name of its room.
        participant: As the server describes it.
        now_s: Monotonic seconds.

    Attributes:
        room: As given.
        identity: Of its participant.
        agent_name: Name under which it was dispatched.
        dispatch_id: The dispatch that brought it.
        worker_id: The worker that runs it.
        metadata: Of its dispatch, as far as its attributes tell.
        begun: Whether there was an agent at all: a job had been given to a worker.
        history: What was said, as far as it told.
        leaving: Why it leaves; empty unless it does on purpose.
        ours: Whether it is labvoice's, as far as is known; another's metadata is its own.
    """

    def __init__(self, room: str, participant: ParticipantInfo, now_s: float) -> None:
        self.room = room
        self.identity = participant.identity
        self.agent_name = participant.attributes.get(ATTRIBUTE_AGENT_NAME, "")
        self.dispatch_id = participant.attributes.get(ATTRIBUTE_DISPATCH_ID, "")
        self.worker_id = participant.attributes.get(ATTRIBUTE_WORKER_ID, "")
        self.metadata = participant.attributes.get(ATTRIBUTE_METADATA, "")
        self.begun = True
        self.history: list[ChatTurn] = []
        self.leaving = ""
        self.ours = True
        self._heartbeat = ""
        self._looked_s = now_s
        self._silent_s = 0.0
        self._seen_s = now_s

    @classmethod
    def from_dispatch(
        cls,
        room: str,
        dispatch: AgentDispatch,
        now_s: float,
        is_dead: Callable[[str], bool],
        *,
        wall_s: float,
    ) -> Watched | None:
        """Returns the lost agent of a dispatch; None when its job ended well, or may just begin.

        Args:
            room: Name of the room, in which no agent of that name is.
            dispatch: One of the room's.
            now_s: Monotonic seconds.
            is_dead: Whether the process of a job, by its id, is known to be gone.
            wall_s: Wall-clock seconds at the same instant, as the server dates its jobs.
        """
        job = dispatch.state.jobs[-1] if dispatch.state.jobs else None
        since_ns = dispatch.state.created_at
        if job is None and not dispatch.agent_name:
            return None  # the server gives one to every room, whether or not a worker serves it
        if job is not None:
            if job.state.status == JobStatus.JS_SUCCESS:
                return None
            since_ns = job.state.started_at or since_ns
            if job.state.status == JobStatus.JS_FAILED or is_dead(job.id):
                since_ns = 0
        if wall_s - since_ns / 1e9 < _COLD_S:
            return None
        lost = ParticipantInfo(
            identity=f"agent-{job.id}" if job is not None else "",
            attributes={
                ATTRIBUTE_AGENT_NAME: dispatch.agent_name,
                ATTRIBUTE_DISPATCH_ID: dispatch.id,
                ATTRIBUTE_METADATA: dispatch.metadata,
            },
        )
        found = cls(room, lost, now_s)
        try:
            resume = parse_metadata(dispatch.metadata).resume
        except MetadataError:
            resume = None
        found.history = resume.history if resume is not None else []
        found.begun = job is not None or resume is not None
        return found

    @property
    def job_id(self) -> str:
        """Id of its job."""
        return self.identity.removeprefix("agent-")

    def update(self, participant: ParticipantInfo, now_s: float) -> None:
        """Takes in a look at it, whose question was sent at that monotonic time."""
        attributes = participant.attributes
        if attributes.get(ATTRIBUTE_HEARTBEAT, "") != self._heartbeat:
            self._heartbeat = attributes.get(ATTRIBUTE_HEARTBEAT, "")
            self._silent_s = 0.0
        else:
            self._silent_s += min(now_s - self._looked_s, _LOOK_S)
        self._looked_s = self._seen_s = now_s
        if history := attributes.get(ATTRIBUTE_HISTORY):
            self.history = unpack_history(history)
        self.leaving = attributes.get(ATTRIBUTE_LEAVING, "")

    def silent_for(self, now_s: float) -> float:
        """Returns its silence in seconds; an agent that just starts is given time."""
        starting = self._heartbeat in ("", "0")
        return max(0.0, self._silent_s - (_START_S if starting else 0.0))

    def missing_for(self, now_s: float) -> float:
        """Returns for how long it has not been in the room, in seconds."""
        return now_s - self._seen_s
