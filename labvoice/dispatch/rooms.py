"""Cleanup: agents and dispatches are always removed, a room only when nobody is in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from livekit import api
from livekit.protocol.agent import Job
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo

from labvoice.protocol.metadata import ATTRIBUTE_DISPATCH_ID

ATTRIBUTE_AGENT_NAME: Final = "lk.agent.name"  # livekit.agents.types.ATTRIBUTE_AGENT_NAME
ATTRIBUTE_ON_BEHALF: Final = "lk.publish_on_behalf"
"""livekit.agents.types.ATTRIBUTE_PUBLISH_ON_BEHALF: the identity of the agent for which a
participant, such as an avatar, publishes."""
_NOT_FOUND: Final = 404
LEAVING_S: Final = 1.0
"""Seconds for which the server still lists a participant that has left."""
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class CleanupResult:
    """What :func:`clear` removed.

    Attributes:
        agents: Identities of the agents that were removed.
        dispatches: Ids of the dispatches that were deleted.
        room_deleted: Whether the room was deleted because only agents were in it.
    """

    agents: list[str]
    dispatches: list[str]
    room_deleted: bool


def is_agent(participant: ParticipantInfo) -> bool:
    """Whether a participant is an agent; one that publishes on an agent's behalf is not."""
    return participant.kind == ParticipantInfo.Kind.AGENT and not is_on_behalf(participant)


def is_on_behalf(participant: ParticipantInfo) -> bool:
    """Whether a participant publishes on behalf of an agent."""
    return bool(participant.attributes.get(ATTRIBUTE_ON_BEHALF))


def is_human(participant: ParticipantInfo) -> bool:
    """Whether a participant is a caller: browser, program or telephone."""
    kinds = (ParticipantInfo.Kind.STANDARD, ParticipantInfo.Kind.SIP)
    return participant.kind in kinds and not is_on_behalf(participant)


def job_identities(job: Job) -> set[str]:
    """Returns the identities that a job's agent may have: the server's, or the default.

    livekit-agents names the participant `agent-<job id>` unless the worker's request handler
    chooses another name (livekit/agents/job.py, `JobRequest.accept`).
    """
    return {job.state.participant_identity or f"agent-{job.id}", f"agent-{job.id}"}


def agent_names(
    there: Iterable[ParticipantInfo], dispatches: Sequence[AgentDispatch]
) -> dict[str, str | None]:
    """Returns the dispatched name of each agent of a room, by identity.

    Agents of livekit-agents before 1.4 publish no name; theirs comes from the dispatch that lists
    their job. The server lists a job up to 5 s late; until then an agent without a name has the
    name of the one pending dispatch, or None if several are pending.
    """
    agents = [p for p in there if is_agent(p)]
    names: dict[str, str | None] = {}
    for agent in agents:
        told = agent.attributes.get(ATTRIBUTE_AGENT_NAME)
        its_own = agent.attributes.get(ATTRIBUTE_DISPATCH_ID)
        of_dispatch = (
            each.agent_name
            for each in dispatches
            if each.id == its_own
            or any(agent.identity in job_identities(job) for job in each.state.jobs)
        )
        names[agent.identity] = told or next(of_dispatch, None)
    waiting = {each.agent_name for each in dispatches if not each.state.jobs}
    only = next(iter(waiting)) if len(waiting) == 1 else None if waiting else ""
    return {identity: only if name is None else name for identity, name in names.items()}


def began_after(dispatches: Iterable[AgentDispatch], at_ms: int) -> bool:
    """Whether a room has begun anew since an instant: its server restarted, or another took over.

    LiveKit makes a dispatch with each room, if only one for workers that serve every room, and
    keeps none of an earlier server's; what it lists of participants is kept in Redis and outlives
    the server of a cluster (LiveKit 1.13.5, `pkg/rtc/room.go`, createAgentDispatchesFromRoomAgent).

    Args:
        dispatches: All of the room's, as a server lists them.
        at_ms: Wall-clock milliseconds, as the server dates its participants; 0 if unknown.
    """
    oldest_ns = min((each.state.created_at for each in dispatches), default=0)
    return 0 < at_ms < oldest_ns // 1_000_000


async def unless_gone(request: Coroutine[Any, Any, object]) -> bool:
    """Sends a request; returns False if its object no longer exists."""
    try:
        await request
    except api.TwirpError as error:
        if error.status == _NOT_FOUND:
            return False
        raise
    return True


async def participants(server: api.LiveKitAPI, room: str) -> list[ParticipantInfo]:
    """Lists the participants of a room; empty if the room does not exist."""
    listed = await server.room.list_participants(api.ListParticipantsRequest(room=room))
    return list(listed.participants)


async def dispatches_of(server: api.LiveKitAPI, room: str) -> list[AgentDispatch]:
    """Lists the dispatches of an existing room.

    A room whose server of a cluster has ended begins anew on another one: LiveKit sees to that only
    where somebody joins the room, and answers no question about it before.
    """
    try:
        return list(await server.agent_dispatch.list_dispatch(room))
    except api.TwirpError as error:
        if error.code != api.TwirpErrorCode.UNAVAILABLE:
            raise
    await server.room.create_room(api.CreateRoomRequest(name=room))
    return list(await server.agent_dispatch.list_dispatch(room))


async def remove_agent(server: api.LiveKitAPI, room: str, identity: str) -> bool:
    """Removes an agent from a room; returns False if it had left already."""
    request = api.RoomParticipantIdentity(room=room, identity=identity)
    return await unless_gone(server.room.remove_participant(request))


async def withdraw(server: api.LiveKitAPI, room: str, dispatch_id: str) -> bool:
    """Deletes a dispatch, which makes the server end its job; returns False if it did not exist."""
    return await unless_gone(server.agent_dispatch.delete_dispatch(dispatch_id, room))


async def delete_if_empty(
    server: api.LiveKitAPI, room: str, *, gone: Collection[str] = (), agents_too: bool = False
) -> bool:
    """Deletes a room if nobody is in it now; returns whether it did.

    Args:
        gone: Identities of callers that have hung up and may still be listed.
        agents_too: Delete it even if agents are in it.
    """
    for participant in await participants(server, room):
        agents = is_agent(participant) or is_on_behalf(participant)
        stays = not agents_too if agents else participant.identity not in gone
        if stays:
            return False
    await unless_gone(server.room.delete_room(api.DeleteRoomRequest(room=room)))
    return True


async def clear(
    server: api.LiveKitAPI,
    room: str,
    *,
    agent_name: str | None = None,
    gone: Collection[str] = (),
    wait: bool = True,
) -> CleanupResult:
    """Ends the agents of a room, and deletes the room if nobody else is in it.

    Args:
        room: Name of an existing room.
        agent_name: While a human is in the room, only this agent and its dispatches are removed.
        gone: Identities of callers that have hung up and may still be listed.
        wait: Wait a moment for a participant that may be about to leave.
    """
    until_s = time.monotonic() + (LEAVING_S if wait else 0)
    while True:
        there = await participants(server, room)
        if await delete_if_empty(server, room, gone=gone, agents_too=True):
            return CleanupResult([p.identity for p in there if is_agent(p)], [], True)
        if time.monotonic() >= until_s:
            break
        await asyncio.sleep(_POLL_S)
    dispatches = await server.agent_dispatch.list_dispatch(room)
    names = agent_names(there, dispatches)
    agents = [each for each, name in names.items() if agent_name in (None, name)]
    agents += [p.identity for p in there if p.attributes.get(ATTRIBUTE_ON_BEHALF) in agents]
    withdrawn = [each.id for each in dispatches if agent_name in (None, each.agent_name)]
    for dispatch_id in withdrawn:
        await withdraw(server, room, dispatch_id)
    for identity in agents:
        await remove_agent(server, room, identity)
    return CleanupResult(agents, withdrawn, False)
