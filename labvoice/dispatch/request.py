"""What one call of the dispatcher wants, and how far it has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from livekit.protocol.agent import JobState
from livekit.protocol.agent_dispatch import AgentDispatch

from labvoice.protocol.metadata import IN_FLIGHT_S, Metadata
from labvoice.protocol.vocabulary import Mark


@dataclass
class DispatchRequest:
    """One agent for one room, and how far a call of `Dispatcher.dispatch` has come with it.

    Attributes:
        room: Name of the room.
        agent_name: Name to dispatch.
        metadata: What the agent gets to know.
        until: When the time is over, in monotonic seconds.
        on_mark: Told every mark as it is set.
        room_existed: Whether the room was there before.
        found: Whether an agent or its dispatch was there before.
        job: Last state of the job that a worker took.
        lost: Whether the server said that it gave the last request up.
        over: Whether the job has ended: no other attempt makes sense.
        since_s: When it was asked for, as wall-clock seconds.
        marks: Marks so far, in monotonic seconds.
        claims: Ids of the dispatches that counted, in order of the attempts.
        made: Requests for a dispatch, answered or not.
        own: Ids of the dispatches that were made for it.
        withdrawn: Ids of those that were taken back.
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

    @property
    def left_s(self) -> float:
        """Time that is left, in seconds; negative when it is over."""
        return self.until - time.monotonic()

    def mark(self, name: str) -> None:
        """Sets a mark, the first time."""
        if name not in self.marks:
            self.marks[name] = time.monotonic()
            if self.on_mark is not None:
                self.on_mark(Mark(name, self.marks[name]))

    def claim(self, dispatch_id: str) -> str:
        """Notes the dispatch that counts, and returns its id."""
        if dispatch_id not in self.claims:
            self.claims.append(dispatch_id)
        return dispatch_id


def under_way(ours: Sequence[AgentDispatch]) -> list[AgentDispatch]:
    """Returns the dispatches, oldest first, that are young enough to bring an agent yet."""
    since_ns = time.time_ns() - int(IN_FLIGHT_S * 1e9)
    return [each for each in ours if each.state.created_at > since_ns]
