"""What the supervisor knows of one agent, and how long it has been silent."""

from __future__ import annotations

from typing import Final

from livekit.protocol.agent import JobStatus
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo

from labvoice.job import (
    ATTRIBUTE_BEAT,
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_HISTORY,
    ATTRIBUTE_LEAVING,
    ATTRIBUTE_WORKER_ID,
    Said,
    unpack_history,
)

ATTRIBUTE_AGENT_NAME: Final = "lk.agent.name"  # livekit.agents.types.ATTRIBUTE_AGENT_NAME
_START_S: Final = 5.0
"""An agent that has joined and not beaten yet is given so long."""
_LOOK_S: Final = 0.6
"""Looks further apart than this count as so long apart: silence takes several looks."""


def is_ours(participant: ParticipantInfo) -> bool:
    """Whether a participant is an agent of labvoice's; never true of a human."""
    return (
        participant.kind == ParticipantInfo.Kind.AGENT
        and ATTRIBUTE_DISPATCH_ID in participant.attributes
        and ATTRIBUTE_BEAT in participant.attributes
    )


class Watched:
    """One agent as it was last seen.

    Silence is the time between looks that saw no new beat, each look dated when its question
    was sent. What passes while nobody looks, for the supervisor's own process or the server is
    held up, counts for little: silence that was not observed is no evidence.

    Args:
        room: Name of its room.
        participant: As the server describes it.
        metadata: Of its dispatch.
        now_s: Monotonic seconds.

    Attributes:
        room: As given.
        identity: Of its participant.
        agent_name: Name under which it was dispatched.
        dispatch_id: The dispatch that brought it.
        worker_id: The worker that runs it.
        metadata: As given.
        history: What was said, as far as it told.
        leaving: Why it leaves; empty unless it does on purpose.
    """

    def __init__(
        self, room: str, participant: ParticipantInfo, metadata: str, now_s: float
    ) -> None:
        self.room = room
        self.identity = participant.identity
        self.agent_name = participant.attributes.get(ATTRIBUTE_AGENT_NAME, "")
        self.dispatch_id = participant.attributes.get(ATTRIBUTE_DISPATCH_ID, "")
        self.worker_id = participant.attributes.get(ATTRIBUTE_WORKER_ID, "")
        self.metadata = metadata
        self.history: list[Said] = []
        self.leaving = ""
        self._beat = ""
        self._looked_s = now_s
        self._silent_s = 0.0
        self._seen_s = now_s

    @classmethod
    def from_dispatch(cls, room: str, dispatch: AgentDispatch, now_s: float) -> Watched | None:
        """Returns the lost agent of a dispatch whose job did not end well; None if it did."""
        jobs = dispatch.state.jobs
        if not jobs or jobs[-1].state.status == JobStatus.JS_SUCCESS:
            return None
        lost = ParticipantInfo(
            identity=jobs[-1].state.participant_identity,
            attributes={
                ATTRIBUTE_AGENT_NAME: dispatch.agent_name,
                ATTRIBUTE_DISPATCH_ID: dispatch.id,
            },
        )
        return cls(room, lost, dispatch.metadata, now_s)

    @property
    def job_id(self) -> str:
        """Id of its job."""
        return self.identity.removeprefix("agent-")

    def update(self, participant: ParticipantInfo, now_s: float) -> None:
        """Takes in a look at it, whose question was sent at that monotonic time."""
        attributes = participant.attributes
        if attributes.get(ATTRIBUTE_BEAT, "") != self._beat:
            self._beat = attributes.get(ATTRIBUTE_BEAT, "")
            self._silent_s = 0.0
        else:
            self._silent_s += min(now_s - self._looked_s, _LOOK_S)
        self._looked_s = self._seen_s = now_s
        if history := attributes.get(ATTRIBUTE_HISTORY):
            self.history = unpack_history(history)
        self.leaving = attributes.get(ATTRIBUTE_LEAVING, "")

    def silent_for(self, now_s: float) -> float:
        """Returns its silence in seconds; an agent that just starts is given time."""
        starting = self._beat in ("", "0")
        return max(0.0, self._silent_s - (_START_S if starting else 0.0))

    def missing_for(self, now_s: float) -> float:
        """Returns for how long it has not been in the room, in seconds."""
        return now_s - self._seen_s
