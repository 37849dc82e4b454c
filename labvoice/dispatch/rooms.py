"""What may be taken away: agents and dispatches always, a room only when nobody is in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from livekit import api
from livekit.protocol.models import ParticipantInfo

ATTRIBUTE_AGENT_NAME: Final = "lk.agent.name"  # livekit.agents.types.ATTRIBUTE_AGENT_NAME
_NOT_FOUND: Final = 404
_LEAVING_S: Final = 1.0
"""Whoever hangs up is on the server's list for a moment more."""
_POLL_S: Final = 0.1


@dataclass(frozen=True)
class CleanupResult:
    """What :func:`clear` took away.

    Attributes:
        agents: Identities of the agents that were removed.
        dispatches: Ids of the dispatches that were deleted.
        room_deleted: Whether the room is gone: nobody but agents was in it.
    """

    agents: list[str]
    dispatches: list[str]
    room_deleted: bool


def is_agent(participant: ParticipantInfo) -> bool:
    """Whether a participant is somebody's agent."""
    return participant.kind == ParticipantInfo.Kind.AGENT


def is_human(participant: ParticipantInfo) -> bool:
    """Whether a participant is a caller, by browser, program or telephone."""
    return participant.kind in (ParticipantInfo.Kind.STANDARD, ParticipantInfo.Kind.SIP)


async def unless_gone(request: Coroutine[Any, Any, object]) -> bool:
    """Sends a request; False when what it is about is gone already."""
    try:
        await request
    except api.TwirpError as error:
        if error.status == _NOT_FOUND:
            return False
        raise
    return True


async def participants(server: api.LiveKitAPI, room: str) -> list[ParticipantInfo]:
    """Lists who is in a room; nobody is in one that is not there."""
    listed = await server.room.list_participants(api.ListParticipantsRequest(room=room))
    return list(listed.participants)


async def remove_agent(server: api.LiveKitAPI, room: str, identity: str) -> bool:
    """Removes an agent from a room; False when it was gone already."""
    request = api.RoomParticipantIdentity(room=room, identity=identity)
    return await unless_gone(server.room.remove_participant(request))


async def withdraw(server: api.LiveKitAPI, room: str, dispatch_id: str) -> bool:
    """Deletes a dispatch, whose job the server then ends; False when it was gone already."""
    return await unless_gone(server.agent_dispatch.delete_dispatch(dispatch_id, room))


async def delete_if_empty(
    server: api.LiveKitAPI, room: str, *, gone: Collection[str] = (), agents_too: bool = False
) -> bool:
    """Deletes a room when a look taken now finds nobody in it; returns whether it did.

    Args:
        server: The server's API.
        room: Name of the room.
        gone: Identities of those who have hung up and may still be listed.
        agents_too: Delete it although agents are in it.
    """
    for participant in await participants(server, room):
        stays = not agents_too if is_agent(participant) else participant.identity not in gone
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
    """Ends the agents of a room, and the room with them when nobody else is in it.

    Args:
        server: The server's API.
        room: Name of a room that is there.
        agent_name: Spares agents and dispatches of other names while somebody is in the room.
        gone: Identities of those who have hung up and may still be listed.
        wait: Whether somebody in the room may be about to leave it.
    """
    until_s = time.monotonic() + (_LEAVING_S if wait else 0)
    while True:
        agents = [
            p.identity
            for p in await participants(server, room)
            if is_agent(p) and agent_name in (None, p.attributes.get(ATTRIBUTE_AGENT_NAME, ""))
        ]
        if await delete_if_empty(server, room, gone=gone, agents_too=True):
            return CleanupResult(agents, [], True)
        if time.monotonic() >= until_s:
            break
        await asyncio.sleep(_POLL_S)
    dispatches = [
        each.id
        for each in await server.agent_dispatch.list_dispatch(room)
        if agent_name in (None, each.agent_name)
    ]
    for dispatch_id in dispatches:
        await withdraw(server, room, dispatch_id)
    for identity in agents:
        await remove_agent(server, room, identity)
    return CleanupResult(agents, dispatches, False)
