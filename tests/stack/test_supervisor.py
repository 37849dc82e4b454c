"""Failover by real kills: one agent afterwards, and the conversation goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from livekit import api, rtc
from livekit.protocol.models import ParticipantInfo

from labvoice.bench.failover import KILLS, failover, parse_kills
from labvoice.caller.call import Call
from labvoice.caller.voice import Utterance
from labvoice.dispatch.watched import is_ours
from labvoice.errors import UsageError
from labvoice.job import (
    ATTRIBUTE_BEAT,
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_HISTORY,
    unpack_history,
)
from labvoice.lab import Lab


@pytest.fixture(scope="module")
async def pair() -> AsyncIterator[Lab]:
    """A lab with two workers."""
    async with Lab(llm="paced", letta=False, workers=2) as running:
        yield running


@pytest.fixture
async def call(pair: Lab) -> AsyncIterator[Call]:
    """A call whose greeting was heard; the workers are warm."""
    await pair.pool.settle(150)
    running = await pair.call()
    try:
        await running.hear_greeting()
        yield running
    finally:
        await pair.end_call(running)


async def participants(lab: Lab, room: str) -> list[ParticipantInfo]:
    request = api.ListParticipantsRequest(room=room)
    return list((await lab.dispatcher.api.room.list_participants(request)).participants)


async def agents(lab: Lab, room: str) -> list[str]:
    return [p.identity for p in await participants(lab, room) if is_ours(p)]


class Link:
    """The network between a worker and the server: TCP on loopback, until it is cut."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def cut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


def token(lab: Lab, room: str, identity: str, kind: str = "standard") -> str:
    """A token to join with; an agent's carries what labvoice's agents carry."""
    assert lab.settings.livekit_api_key
    assert lab.settings.livekit_api_secret
    secret = lab.settings.livekit_api_secret.get_secret_value()
    grants = api.VideoGrants(room_join=True, room=room, agent=kind == "agent")
    made = api.AccessToken(lab.settings.livekit_api_key, secret).with_identity(identity)
    if kind == "agent":
        made = made.with_kind("agent")
    attributes = {ATTRIBUTE_DISPATCH_ID: "AD_lost", ATTRIBUTE_BEAT: "7"}
    return made.with_grants(grants).with_attributes(attributes).to_jwt()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # the server has nothing to be woken by
            await asyncio.sleep(0.1)


async def test_a_killed_job_goes_on_with_its_conversation(
    pair: Lab, call: Call, recorded: list[Utterance]
) -> None:
    """Another agent, on another worker, apologises, knows what was said, and answers."""
    before = await agents(pair, call.room_name)
    await call.say(recorded[0])
    turn = await call.hear()
    lost = call.worker
    os.kill(lost["pid"], signal.SIGKILL)
    await call.hear_return()
    after = await agents(pair, call.room_name)
    assert len(before) == len(after) == 1
    assert before != after
    assert call.worker["worker_id"] != lost["worker_id"]
    await call.say(recorded[1])
    await call.hear()
    (there,) = [p for p in await participants(pair, call.room_name) if is_ours(p)]
    said = [message.text for message in unpack_history(there.attributes[ATTRIBUTE_HISTORY])]
    assert said[0] == pair.settings.greeting
    assert turn.transcript in said
    assert pair.settings.apology not in said
    assert len(said) >= 5
    assert {p.identity for p in await participants(pair, call.room_name)} == {"caller", *after}


async def test_a_hung_agent_that_wakes_does_not_come_back(pair: Lab, call: Call) -> None:
    """A stopped process is replaced; continued, it leaves the room to the other one."""
    pid = call.worker["pid"]
    os.kill(pid, signal.SIGSTOP)
    await call.hear_return()
    (other,) = await agents(pair, call.room_name)
    os.kill(pid, signal.SIGCONT)
    await asyncio.to_thread(psutil.wait_procs, [psutil.Process(pid)], 20)
    assert not psutil.pid_exists(pid)
    assert await agents(pair, call.room_name) == [other]


async def test_a_killed_worker_is_replaced_and_started_again(pair: Lab, call: Call) -> None:
    """The call moves to the other worker, and the pool is whole again."""
    (worker,) = [w for w in pair.pool.workers if w.worker_id == call.worker["worker_id"]]
    os.kill(worker.process.pid, signal.SIGKILL)
    await call.hear_return()
    assert call.worker["worker_id"] != worker.worker_id
    assert len(await agents(pair, call.room_name)) == 1

    async def whole() -> bool:
        return len(pair.pool.workers) == 2 and worker not in pair.pool.workers

    await until(whole, 120)
    assert {"worker_lost", "agent_lost", "agent_replaced"} <= set(pair.pool.events["event"])


async def test_a_stall_is_not_death(pair: Lab, call: Call) -> None:
    """An agent that stands still for most of a second is left alone."""
    before = await agents(pair, call.room_name)
    os.kill(call.worker["pid"], signal.SIGSTOP)
    await asyncio.sleep(0.7)
    os.kill(call.worker["pid"], signal.SIGCONT)
    await asyncio.sleep(3)
    assert await agents(pair, call.room_name) == before


async def test_an_agent_that_was_called_off_is_not_replaced(pair: Lab, call: Call) -> None:
    """Deleting the dispatch ends the agent for good; the caller stays alone."""
    assert call.dispatch is not None
    deleted = pair.dispatcher.api.agent_dispatch.delete_dispatch(
        call.dispatch.dispatch_id, call.room_name
    )
    await deleted

    async def gone() -> bool:
        return not await agents(pair, call.room_name)

    await until(gone, 30)
    await asyncio.sleep(3)
    assert [p.identity for p in await participants(pair, call.room_name)] == ["caller"]


@pytest.mark.parametrize("pause_s", [0.0, 25.0], ids=["at once", "when the room is empty of it"])
async def test_a_new_supervisor_finds_what_died_without_it(
    pair: Lab, call: Call, pause_s: float
) -> None:
    """An agent that died while nobody watched is replaced, from what the server knows."""
    assert pair.supervisor is not None
    await pair.supervisor.stop()
    try:
        os.kill(call.worker["pid"], signal.SIGKILL)
        await asyncio.sleep(pause_s)
    finally:
        pair.supervisor = None  # the next one knows nothing
        pair.supervise()
    await call.hear_return()
    assert len(await agents(pair, call.room_name)) == 1


async def test_a_restarted_server_has_the_call_again(
    pair: Lab, call: Call, recorded: list[Utterance]
) -> None:
    """After the server was killed and started again the caller has one agent, which answers."""
    assert pair._server is not None
    assert pair._server.process is not None
    os.kill(pair._server.process.pid, signal.SIGKILL)
    await pair._server.restart()

    async def both() -> bool:
        return len(await participants(pair, call.room_name)) == 2

    await until(both, 60)
    await asyncio.sleep(5)
    await call.say(recorded[0])
    await call.hear()
    assert len(await agents(pair, call.room_name)) == 1


async def test_a_removed_agent_that_joins_again_is_sent_away(pair: Lab, call: Call) -> None:
    """Whoever comes back under a lost agent's name has to leave; the caller and a guest stay."""
    lost, pid = (await agents(pair, call.room_name))[0], call.worker["pid"]
    os.kill(pid, signal.SIGKILL)
    await call.hear_return()
    (other,) = await agents(pair, call.room_name)
    assert pair.settings.livekit_url
    back, guest = rtc.Room(), rtc.Room()
    gone = asyncio.Event()
    back.on("disconnected", lambda _: gone.set())
    try:
        await guest.connect(pair.settings.livekit_url, token(pair, call.room_name, "guest"))
        await back.connect(
            pair.settings.livekit_url, token(pair, call.room_name, lost, kind="agent")
        )
        async with asyncio.timeout(10):
            await gone.wait()
        there = {p.identity for p in await participants(pair, call.room_name)}
        assert there == {"caller", "guest", other}
    finally:
        await back.disconnect()
        await guest.disconnect()


async def test_an_empty_room_is_removed(pair: Lab) -> None:
    """A room that had an agent goes, although the server would keep it for five minutes."""
    service = pair.dispatcher.api
    await service.room.create_room(
        api.CreateRoomRequest(name="left-over", empty_timeout=300, departure_timeout=300)
    )
    done = await pair.dispatch("left-over")
    await asyncio.sleep(1)
    await service.agent_dispatch.delete_dispatch(done.dispatch_id, "left-over")

    async def gone() -> bool:
        listed = await service.room.list_rooms(api.ListRoomsRequest(names=["left-over"]))
        return not listed.rooms

    await until(gone, 60)


async def test_the_benchmark_kills_and_counts(pair: Lab, tmp_path: Path) -> None:
    """Every kind of death is an arm with its recovery, and no trial fails."""
    run = await failover(pair, 1, kills=["job", "hang"], out=tmp_path / "run.jsonl")
    result = run.to_json()
    assert set(result["arms"]) == {"job", "hang"}
    for arm in result["arms"].values():
        assert arm["failed"] == 0
        assert arm["stages"]["recovery"]["n"] == 1
        assert arm["stages"]["silence"]["p50_s"] > arm["stages"]["recovery"]["p50_s"] > 0


async def test_an_agent_without_network_is_replaced(pair: Lab) -> None:
    """A worker that is cut off from the server loses its call to one that is not."""
    assert pair.settings.livekit_url
    link = Link(int(pair.settings.livekit_url.rsplit(":", 1)[1]))
    await link.open()
    await pair.add_workers(agent_name="far", livekit_url=f"ws://127.0.0.1:{link.port}")
    call = await pair.call(agent_name="far")
    try:
        await call.hear_greeting()
        lost = call.worker
        await pair.add_workers(agent_name="far")
        await link.cut()
        await call.hear_return()
        assert call.worker["worker_id"] != lost["worker_id"]
        assert len(await agents(pair, call.room_name)) == 1
    finally:
        await link.cut()
        await pair.end_call(call)


def test_kinds_of_death_are_checked() -> None:
    """A misspelt kind is named together with the known ones."""
    assert parse_kills("job, hang") == ["job", "hang"]
    assert set(KILLS) == {"job", "worker", "hang"}
    for text in ("jbo", ""):
        with pytest.raises(UsageError, match="kind of death") as caught:
            parse_kills(text)
        assert "worker" in caught.value.hint
