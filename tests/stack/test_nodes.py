"""Two LiveKit servers on one Redis: both take calls, and either may end."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from livekit import api, rtc
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from benchmarks.cluster import live_agents, trial
from labvoice.dispatch import Dispatcher
from labvoice.errors import UsageError
from labvoice.failover.replacement import SERVER_ERRORS
from labvoice.lab import Lab
from labvoice.settings import load_settings
from labvoice.stack.livekit.cluster import Cluster
from labvoice.stack.livekit.server import LiveKitServer
from labvoice.stack.processes import free_port
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.conftest import delete_rooms
from tests.stack.talking import PATIENCE_S
from tests.stack.test_dispatch import agents_in
from tests.stack.test_web_up import up

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
    done = await asyncio.gather(*(nodes_lab.dispatch(name, timeout_s=PATIENCE_S) for name in names))
    for name, dispatch in zip(names, done, strict=True):
        assert await agents_in(nodes_lab, name) == [dispatch.agent_identity]


async def test_a_call_on_a_killed_node_gets_an_agent_again(nodes_lab: Lab) -> None:
    """Its caller connects again, to the other node, and has one agent there; so has a new call."""
    seen = await trial(nodes_lab, "the call's node is killed")
    assert "reconnected" in seen.caller, seen
    assert seen.agent in ("the same", "another"), seen
    assert seen.doubled == 0, seen
    assert "Error" not in seen.new_call, seen


async def test_a_room_without_a_caller_on_a_killed_node_gets_an_agent_again(
    nodes_lab: Lab,
) -> None:
    """Nobody joins it, so that LiveKit gives it to no other node; a further dispatch finds it."""
    node = nodes_lab.cluster.nodes[0]
    room = await room_on(nodes_lab, node)
    lost = await nodes_lab.dispatch(room, timeout_s=30)
    there: set[str] = set()
    nodes_lab.faults.kill_livekit(node)
    try:
        async with asyncio.timeout(90):
            while not there:
                with contextlib.suppress(*SERVER_ERRORS):  # of the killed node
                    there = await live_agents(nodes_lab, room) - {lost.agent_identity}
        again = await nodes_lab.dispatch(room, timeout_s=30)
        assert there == {again.agent_identity}
        assert again.found
    finally:
        await node.restart()


async def test_a_restarted_redis_loses_and_doubles_nothing(nodes_lab: Lab) -> None:
    """Dispatches that were confirmed before are there once; a new call is answered."""
    seen = await trial(nodes_lab, "Redis is restarted", watched_s=5)
    assert (seen.kept, seen.doubled, seen.agent) == (3, 0, "the same")
    assert "Error" not in seen.new_call


async def test_a_redis_of_ones_own_is_used_and_left(tmp_path: Path) -> None:
    """With `LABVOICE_REDIS_URL` the nodes share that one: a room of each is in it; it stays."""
    password, port = secrets.token_hex(16), free_port()
    config = tmp_path / "own.conf"
    config.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir "{tmp_path}"\nsave ""\n'
    )
    theirs = await asyncio.create_subprocess_exec(
        "redis-server", str(config), stdout=asyncio.subprocess.DEVNULL
    )
    client = Redis(port=port, password=password, db=3, decode_responses=True)
    try:
        async with asyncio.timeout(20):
            while not await answers(client):
                await asyncio.sleep(0.1)
        settings = load_settings(
            redis_url=f"redis://:{password}@127.0.0.1:{port}/3", data_dir=tmp_path / "data"
        )
        cluster = await Cluster.start_nodes(settings, 2, state_dir=tmp_path)
        try:
            assert cluster.redis.process is None
            with pytest.raises(UsageError, match="did not start the server"):
                await cluster.redis.restart()
            async with Dispatcher(cluster.url, cluster.api_key, cluster.api_secret) as dispatcher:
                await dispatcher.api.room.create_room(api.CreateRoomRequest(name="in-theirs"))
            assert await cluster.node_of("in-theirs") in cluster.nodes
            assert await client.hkeys("rooms") == ["in-theirs"]
        finally:
            await cluster.stop()
        assert await answers(client)
    finally:
        await client.aclose()
        theirs.terminate()
        await theirs.wait()


async def answers(client: Redis) -> bool:
    """Whether a Redis answers."""
    try:
        return bool(await client.ping())
    except RedisConnectionError:
        return False


async def test_nodes_by_command_serve_a_browser_and_end_with_it(tmp_path: Path) -> None:
    """`labvoice up --nodes 2`: token and agent for a room, a caller who hears it, then nothing."""
    async with (
        up(tmp_path, {}, "--nodes", "2", "--workers", "2") as running,
        httpx.AsyncClient(
            base_url=running.url, headers=running.headers, trust_env=False, timeout=60
        ) as client,
    ):
        children = psutil.Process(running.process.pid).children(recursive=True)
        programs = [each.name() for each in children]
        assert programs.count("livekit-server") == 2
        assert programs.count("redis-server") == 1
        room, heard = rtc.Room(), asyncio.Event()
        room.on("track_subscribed", lambda *_: heard.set())
        for name in ("first", "second"):
            given = (await client.post("/api/token", json={"room": name})).json()
            await room.connect(given["url"], given["token"])
            done = (await client.post("/api/dispatch-agent", json={"room": name})).json()
            assert done["success"], done
            async with asyncio.timeout(PATIENCE_S):
                await heard.wait()
            heard.clear()
            await room.disconnect()
        assert await running.end() == 128 + signal.SIGINT
    assert "Traceback" not in running.printed
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 20)
    assert alive == []
