"""The supervisor's record of one agent, and the time since its last heartbeat."""

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
_LOOK_S: Final = 0.6
"""Longest time that one interval between two rounds adds to an agent's silence, in seconds: silence
needs several rounds."""


def is_ours(participant: ParticipantInfo) -> bool:
    """Whether a participant is a labvoice agent; never true of a human."""
    return (
        is_agent(participant)
        and ATTRIBUTE_DISPATCH_ID in participant.attributes
        and ATTRIBUTE_HEARTBEAT in participant.attributes
    )


class Watched:
    """One agent, as of the last round.

    Silence is the time between rounds that saw no new heartbeat, each dated when its request was
    sent. Time in which no round ran, because the server was stalled, counts for little: silence
    that was not observed is no evidence.

    Args:
        now_s: Seconds of the supervisor's :class:`LoopClock`.

    Attributes:
        identity: Of its participant.
        agent_name: Name under which it was dispatched.
        dispatch_id: The dispatch that started it.
        joined_at_ms: When it joined, in wall-clock milliseconds of the server; 0 if unknown.
        begun: Whether an agent existed: a job had been assigned to a worker.
        history: The conversation, from its attributes.
        leaving: Why it leaves on purpose; otherwise empty.
        ours: Whether it is labvoice's, as far as known; the metadata of other agents is opaque.
    """

    def __init__(self, room: str, participant: ParticipantInfo, now_s: float) -> None:
        self.room = room
        self.identity = participant.identity
        self.agent_name = participant.attributes.get(ATTRIBUTE_AGENT_NAME, "")
        self.dispatch_id = participant.attributes.get(ATTRIBUTE_DISPATCH_ID, "")
        self.worker_id = participant.attributes.get(ATTRIBUTE_WORKER_ID, "")
        self.metadata = participant.attributes.get(ATTRIBUTE_METADATA, "")
        self.joined_at_ms = participant.joined_at_ms
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
        cold_start_s: float,
    ) -> Watched | None:
        """Returns the lost agent of a dispatch; None if its job succeeded or may be starting.

        Args:
            room: Name of a room without an agent of that name.
            now_s: Monotonic seconds.
            is_dead: Whether the process of a job, by its id, is known to have ended.
            wall_s: Wall-clock seconds at the same instant, as the server dates its jobs.
            cold_start_s: Time in which the agent of a running job must join, in seconds.
        """
        job = dispatch.state.jobs[-1] if dispatch.state.jobs else None
        since_ns = dispatch.state.created_at
        if job is None and not dispatch.agent_name:
            return None  # the server creates one for every room, even without a worker for it
        if job is not None:
            if job.state.status == JobStatus.JS_SUCCESS:
                return None
            since_ns = job.state.started_at or since_ns
            if job.state.status == JobStatus.JS_FAILED or is_dead(job.id):
                since_ns = 0
        if wall_s - since_ns / 1e9 < cold_start_s:
            return None
        lost = ParticipantInfo(
            identity=f"agent-{job.id}" if job is not None else "",
            joined_at_ms=dispatch.state.created_at // 1_000_000,
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
        """Id of the job."""
        return self.identity.removeprefix("agent-")

    def update(self, participant: ParticipantInfo, now_s: float) -> None:
        """Updates it with the server's answer to a request sent at that monotonic time."""
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
        """Returns its silence in seconds; 0 while it starts."""
        starting = self._heartbeat in ("", "0")
        return max(0.0, self._silent_s - (_START_S if starting else 0.0))

    def missing_for(self, now_s: float) -> float:
        """Returns the time since it was last in the room, in seconds."""
        return now_s - self._seen_s
