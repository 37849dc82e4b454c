"""Two LiveKit servers on one Redis: both take calls, and either may end."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator

import pytest
from livekit import api

from benchmarks.cluster import trial
from labvoice.lab import Lab
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.conftest import delete_rooms
from tests.stack.talking import PATIENCE_S
from tests.stack.test_dispatch import agents_in

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="there is no redis-server on PATH"
)


@pytest.fixture(scope="module")
async def nodes_lab() -> AsyncIterator[Lab]:
    """A lab of two LiveKit servers and two workers."""
    async with Lab(nodes=2, workers=2, llm="paced", letta=False, max_jobs=8) as running:
        yield running


@pytest.fixture(autouse=True)
async def _rooms_end_with_their_test(nodes_lab: Lab) -> AsyncIterator[None]:
    yield
    await delete_rooms(nodes_lab)
    await nodes_lab.pool.wait_idle(150)


async def room_on(lab: Lab, node: LiveKitServer) -> str:
    """Makes rooms until one is on that node, and returns it."""
    for _ in range(30):
        name = f"on-node-{secrets.token_hex(4)}"
        await lab.dispatcher.api.room.create_room(api.CreateRoomRequest(name=name))
        if await lab.cluster.node_of(name) is node:
            return name
    raise AssertionError("thirty rooms, and none is on that node")


async def test_a_call_is_answered_on_each_node(nodes_lab: Lab) -> None:
    """Each node has a worker; a room of one is entered through the other, and is answered."""
    cluster = nodes_lab.cluster
    assert [len(node.log.workers()) for node in cluster.nodes if node.log] == [1, 1]
    shown = repr(nodes_lab)
    for part in ("Redis", "LiveKit server 1", "LiveKit server 2"):
        assert part in shown
    for node, entry in zip(cluster.nodes, reversed(cluster.entries), strict=True):
        room = await room_on(nodes_lab, node)
        through = LiveKitServer(entry, cluster.api_key, cluster.api_secret)
        name = nodes_lab.settings.agent_name
        agent = TargetAgent(Target("own"), name, through, nodes_lab.dispatcher)
        call = await nodes_lab.call(room, agent_name=agent)
        try:
            await call.hear_greeting(PATIENCE_S)
            assert await cluster.node_of(room) is node
            there = await agents_in(nodes_lab, room)
            assert sorted(there) == sorted([call.agent_identity, call.identity])
        finally:
            await nodes_lab.end_call(call)


async def test_a_burst_is_confirmed_on_both_nodes(nodes_lab: Lab) -> None:
    """Six rooms at once: one agent in each, and none of them was given up by a node."""
    names = [f"burst-{secrets.token_hex(3)}" for _ in range(6)]
    done = await asyncio.gather(*(nodes_lab.dispatch(name, timeout_s=60) for name in names))
    for name, dispatch in zip(names, done, strict=True):
        assert await agents_in(nodes_lab, name) == [dispatch.agent_identity]


async def test_a_restarted_redis_loses_and_doubles_nothing(nodes_lab: Lab) -> None:
    """Dispatches that were confirmed before are there once; a new call is answered."""
    seen = await trial(nodes_lab, "Redis is restarted", watched_s=5)
    assert (seen.kept, seen.doubled, seen.agent) == (3, 0, "the same")
    assert "Error" not in seen.new_call
