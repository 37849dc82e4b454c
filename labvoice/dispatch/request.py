"""State of one call of `Dispatcher.dispatch`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from livekit.protocol.agent import JobState
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.agents import is_active
from labvoice.protocol.metadata import IN_FLIGHT_S, Metadata
from labvoice.protocol.vocabulary import Mark


@dataclass
class DispatchRequest:
    """A request for one agent in one room, and its progress.

    Attributes:
        until: Deadline, in monotonic seconds.
        on_mark: Called with each mark as it is set.
        found: Whether an agent or its dispatch already existed.
        job: Last state of the assigned job.
        lost: Whether the server reported that it gave up on the last request.
        over: Whether the job has ended, so a retry is useless.
        since_s: Start of the request, in wall-clock seconds.
        marks: Marks so far, in monotonic seconds.
        claims: Ids of the valid dispatches, in order of the attempts.
        made: Number of dispatches requested, answered or not.
        own: Ids of the dispatches created for it.
        withdrawn: Ids of those that were withdrawn.
        without_media: Start of the connection of agents without media, in monotonic seconds, by
            identity.
    """

    room: str
    agent_name: str
    metadata: Metadata
    until: float
    on_mark: Callable[[Mark], None] | None
    room_existed: bool = False
    found: bool = False
    job: JobState | None = None
    lost: bool = False
    over: bool = False
    since_s: float = field(default_factory=time.time)
    marks: dict[str, float] = field(default_factory=dict)
    claims: list[str] = field(default_factory=list)
    made: list[asyncio.Task[AgentDispatch]] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)
    without_media: dict[str, float] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Time left, in seconds; negative after the deadline."""
        return self.until - time.monotonic()

    @property
    def without_media_s(self) -> float:
        """For how long an agent has been connected without media, in seconds."""
        return max(
            (time.monotonic() - since_s for since_s in self.without_media.values()), default=0
        )

    def note_states(self, agents: Sequence[ParticipantInfo]) -> None:
        """Notes which of the agents in the room are connected by signalling only."""
        now_s = time.monotonic()
        self.without_media = {
            agent.identity: self.without_media.get(agent.identity, now_s)
            for agent in agents
            if not is_active(agent)
        }

    def mark(self, name: str) -> None:
        """Sets a mark, the first time."""
        if name not in self.marks:
            self.marks[name] = time.monotonic()
            if self.on_mark is not None:
                self.on_mark(Mark(name, self.marks[name]))

    def claim(self, dispatch_id: str) -> str:
        """Records the valid dispatch, and returns its id."""
        if dispatch_id not in self.claims:
            self.claims.append(dispatch_id)
        return dispatch_id


def under_way(ours: Sequence[AgentDispatch]) -> list[AgentDispatch]:
    """Returns the pending dispatches, oldest first: young enough to start an agent."""
    since_ns = time.time_ns() - int(IN_FLIGHT_S * 1e9)
    return [each for each in ours if each.state.created_at > since_ns]
