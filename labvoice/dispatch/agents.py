"""The agents of one name in a room: who counts, and that there is one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from livekit import api
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.rooms import (
    ATTRIBUTE_AGENT_NAME,
    agent_names,
    is_agent,
    participants,
    remove_agent,
    withdraw,
)
from labvoice.errors import DuplicateAgentError
from labvoice.protocol.metadata import ATTRIBUTE_DISPATCH_ID, standing

_POLL_S = 0.05
_REMOVAL_S = 2.0


async def keep_first(
    server: api.LiveKitAPI, room: str, agent_name: str, agents: Sequence[ParticipantInfo]
) -> ParticipantInfo:
    """Removes every agent but the one that joined first, and every dispatch but its own.

    Raises:
        DuplicateAgentError: The others do not go.
    """
    first = agents[0]
    its_dispatch = first.attributes.get(ATTRIBUTE_DISPATCH_ID)
    if its_dispatch:
        for other in standing(await server.agent_dispatch.list_dispatch(room), agent_name):
            if other.id != its_dispatch:
                await withdraw(server, room, other.id)
    until = time.monotonic() + _REMOVAL_S
    while len(agents) > 1:
        await remove(server, room, agents[1:])
        if time.monotonic() > until:
            raise DuplicateAgentError(
                f"{len(agents)} agents named {agent_name!r} are in room {room!r}: "
                + ", ".join(agent.identity for agent in agents),
                "use a fresh room; the workers' logs tell who brought them",
            )
        await asyncio.sleep(_POLL_S)
        agents = [
            first,
            *(a for a in await agents_of(server, room, agent_name) if a.identity != first.identity),
        ]
    return first


async def look(
    server: api.LiveKitAPI, room: str, agent_name: str
) -> tuple[list[ParticipantInfo], list[ParticipantInfo], list[AgentDispatch]]:
    """Returns agents that count, agents whose dispatch is not there, and the dispatches.

    One after the other: the dispatch of an agent that is seen was there before it.
    """
    seen = await agents_of(server, room, agent_name)
    ours = standing(await server.agent_dispatch.list_dispatch(room), agent_name)
    ids = {"", *(each.id for each in ours)}
    agents: list[ParticipantInfo] = []
    strays: list[ParticipantInfo] = []
    for agent in seen:
        counts = agent.attributes.get(ATTRIBUTE_DISPATCH_ID, "") in ids
        (agents if counts else strays).append(agent)
    return agents, strays, ours


async def look_and_tidy(
    server: api.LiveKitAPI, room: str, agent_name: str
) -> tuple[list[ParticipantInfo], list[AgentDispatch]]:
    """Returns the agents and the dispatches of that name.

    An agent whose dispatch was withdrawn does not count, and is removed: the server is
    about to end it.
    """
    agents, strays, ours = await look(server, room, agent_name)
    await remove(server, room, strays)
    return agents, ours


async def agents_of(server: api.LiveKitAPI, room: str, agent_name: str) -> list[ParticipantInfo]:
    """Returns the agents of that name in the room, the one that joined first in front."""
    return [agent for agent, name in await named_agents(server, room) if name == agent_name]


async def named_agents(
    server: api.LiveKitAPI, room: str
) -> list[tuple[ParticipantInfo, str | None]]:
    """Returns the agents in the room and their names, None where nothing tells one yet.

    The one that joined first is in front.
    """
    agents = [
        participant
        for participant in await participants(server, room)
        if is_agent(participant) and participant.state == ParticipantInfo.State.ACTIVE
    ]
    tell = all(agent.attributes.get(ATTRIBUTE_AGENT_NAME) for agent in agents)
    dispatches = [] if tell else await server.agent_dispatch.list_dispatch(room)
    names = agent_names(agents, dispatches)
    agents.sort(key=lambda agent: (agent.joined_at_ms, agent.identity))
    return [(agent, names[agent.identity]) for agent in agents]


async def remove(server: api.LiveKitAPI, room: str, agents: Sequence[ParticipantInfo]) -> None:
    """Removes agents from a room."""
    for agent in agents:
        with contextlib.suppress(api.TwirpError):  # it may be gone already
            await remove_agent(server, room, agent.identity)
