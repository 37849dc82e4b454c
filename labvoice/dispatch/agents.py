"""The agents of one name in a room: which are valid, and removal of duplicates."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence

from livekit import api
from livekit.protocol.agent_dispatch import AgentDispatch
from livekit.protocol.models import ParticipantInfo

from labvoice.dispatch.rooms import (
    ATTRIBUTE_AGENT_NAME,
    LEAVING_S,
    agent_names,
    began_after,
    dispatches_of,
    is_agent,
    is_human,
    participants,
    remove_agent,
    withdraw,
)
from labvoice.errors import DuplicateAgentError
from labvoice.protocol.metadata import ATTRIBUTE_DISPATCH_ID, standing

_POLL_S = 0.05
_REMOVAL_S = 2.0
_ANSWER_S = 0.5
"""Longest wait for the answer to one removal, in seconds; the server acts on it all the same."""


async def keep_first(
    server: api.LiveKitAPI, room: str, agent_name: str, agents: Sequence[ParticipantInfo]
) -> ParticipantInfo:
    """Removes every agent except the first to join, and every dispatch except that agent's.

    Raises:
        DuplicateAgentError: The others are still in the room.
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
                "use a fresh room; the workers' logs show who dispatched them",
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
    """Returns valid agents, agents without a dispatch, and the dispatches.

    In sequence: the dispatch of a listed agent existed before the agent. An agent from before its
    room began anew is none of these: a cluster goes on listing those of a lost node.
    """
    seen = await agents_of(server, room, agent_name)
    dispatches = await dispatches_of(server, room)
    earlier = [each for each in seen if began_after(dispatches, each.joined_at_ms)]
    await remove(server, room, earlier)
    seen = [each for each in seen if each not in earlier]
    ours = standing(dispatches, agent_name)
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
    """Returns the valid agents and the dispatches of that name.

    An agent whose dispatch was withdrawn is not valid and is removed; the server is about to end
    it.
    """
    agents, strays, ours = await look(server, room, agent_name)
    await remove(server, room, strays)
    return agents, ours


async def agents_of(server: api.LiveKitAPI, room: str, agent_name: str) -> list[ParticipantInfo]:
    """Returns the agents of that name in the room, in the order of joining."""
    return [agent for agent, name in await named_agents(server, room) if name == agent_name]


async def named_agents(
    server: api.LiveKitAPI, room: str, *, connecting: bool = False
) -> list[tuple[ParticipantInfo, str | None]]:
    """Returns the agents in the room with their names; None while a name is unknown.

    The agents are in the order of joining.

    Args:
        connecting: Include agents whose signalling is connected and whose media is not.
    """
    agents = [
        participant
        for participant in await participants(server, room)
        if is_agent(participant) and (connecting or is_active(participant))
    ]
    tell = all(agent.attributes.get(ATTRIBUTE_AGENT_NAME) for agent in agents)
    dispatches = [] if tell else await server.agent_dispatch.list_dispatch(room)
    names = agent_names(agents, dispatches)
    agents.sort(key=lambda agent: (agent.joined_at_ms, agent.identity))
    return [(agent, names[agent.identity]) for agent in agents]


async def agents_in_calls(server: api.LiveKitAPI) -> Counter[str | None]:
    """Counts the agents, by name, of all rooms of a server in which a caller is and stays."""

    async def look_around() -> Counter[str | None]:
        names: Counter[str | None] = Counter()
        for room in (await server.room.list_rooms(api.ListRoomsRequest())).rooms:
            if any(map(is_human, await participants(server, room.name))):
                names.update(name for _, name in await named_agents(server, room.name))
        return names

    if found := await look_around():
        await asyncio.sleep(LEAVING_S)
        found = await look_around()
    return found


def is_active(participant: ParticipantInfo) -> bool:
    """Whether a participant's media is connected."""
    return participant.state == ParticipantInfo.State.ACTIVE


async def remove(server: api.LiveKitAPI, room: str, agents: Sequence[ParticipantInfo]) -> None:
    """Removes agents from a room."""
    for agent in agents:
        # It may have left already; for one of a lost node nobody answers.
        with contextlib.suppress(api.TwirpError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                await remove_agent(server, room, agent.identity)
