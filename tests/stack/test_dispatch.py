"""Dispatches against a real server with real workers: one agent, or a named cause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit import api
from pydantic import SecretStr

from labvoice.dispatch import Dispatcher
from labvoice.dispatch.diagnosis import diagnose
from labvoice.errors import (
    CredentialsError,
    NameMismatchError,
    NoWorkerError,
    RejectedError,
    RoomNameError,
    ServerUnreachableError,
    WorkerFullError,
)
from labvoice.lab import Lab
from labvoice.stack.processes import free_port
from tests.stack.talking import PATIENCE_S


@pytest.fixture
async def room(lab: Lab, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A room's name; the room is deleted after the test."""
    name = f"dispatch-{request.node.name}"
    yield name
    await lab.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room=name))


async def agents_in(lab: Lab, room: str) -> list[str]:
    listed = await lab.dispatcher.api.room.list_participants(api.ListParticipantsRequest(room=room))
    return [participant.identity for participant in listed.participants]


@pytest.mark.smoke
async def test_a_dispatch_makes_the_room_and_puts_the_agent_in(lab: Lab, room: str) -> None:
    """The returned agent is the one participant of a room that was not there before."""
    done = await lab.dispatch(room)
    assert not done.room_existed
    assert done.attempts == 1
    assert await agents_in(lab, room) == [done.agent_identity]


@pytest.mark.smoke
async def test_asking_twice_makes_one_agent(lab: Lab, room: str) -> None:
    """A second dispatch finds the agent of the first."""
    first = await lab.dispatch(room)
    second = await lab.dispatch(room)
    assert second.attempts == 0
    assert second.agent_identity == first.agent_identity
    assert second.dispatch_id == first.dispatch_id
    assert await agents_in(lab, room) == [first.agent_identity]


@pytest.mark.smoke
async def test_a_wrong_name_is_named(lab: Lab, room: str) -> None:
    """No worker of that name: the registered one is suggested."""
    with pytest.raises(NameMismatchError, match="letta-voice-agnet") as caught:
        await lab.dispatcher.dispatch(room, "letta-voice-agnet", timeout_s=1)
    assert caught.value.outcome == "name_mismatch"
    assert "did you mean 'letta-voice-agent'?" in caught.value.hint


@pytest.mark.smoke
async def test_a_refusal_comes_with_the_handlers_reason(lab: Lab, room: str) -> None:
    """Metadata that the agent does not understand is refused with the reason."""
    made: list[str] = []
    rejections: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE_S):
        while not rejections.keys() & set(made):
            # Plain requests can be lost on a busy machine, which is what `dispatch` repairs.
            request = api.CreateAgentDispatchRequest(
                agent_name=lab.settings.agent_name, room=room, metadata='{"unknown": 1}'
            )
            made.append((await lab.dispatcher.api.agent_dispatch.create_dispatch(request)).id)
            for _ in range(50):
                rejections = {
                    dispatch_id: reason
                    for worker in await lab.pool.statuses()
                    for dispatch_id, reason in worker.rejections.items()
                }
                if rejections.keys() & set(made):
                    break
                await asyncio.sleep(0.1)
    error = diagnose(
        agent_name=lab.settings.agent_name,
        room=room,
        dispatch_ids=made,
        job=None,
        timeout_s=1,
        workers=await lab.pool.statuses(),
    )
    assert isinstance(error, RejectedError)
    assert "unknown" in error.observed
    assert await agents_in(lab, room) == []


async def test_an_odd_room_name_is_refused_before_anything_is_sent(lab: Lab) -> None:
    """A room name with odd characters is an error in words, and makes no room."""
    with pytest.raises(RoomNameError, match="cannot be used as a room name"):
        await lab.dispatch("../etc\n")
    rooms = await lab.dispatcher.api.room.list_rooms(api.ListRoomsRequest())
    assert "../etc\n" not in [room.name for room in rooms.rooms]


async def test_no_worker_and_a_full_worker_are_told_apart() -> None:
    """Without a worker the cause is no_worker; with one that is full, worker_full."""
    async with Lab(llm="paced", letta=False, workers=0, max_jobs=1) as lab:
        with pytest.raises(NoWorkerError, match="no worker is registered"):
            await lab.dispatch("empty", timeout_s=1)
        await lab.add_workers(program="labvoice.agent.noop")
        await lab.dispatch("first")
        async with asyncio.timeout(PATIENCE_S):
            while not all(worker.load == 1 for worker in await lab.pool.statuses()):
                await asyncio.sleep(0.1)  # it tells its load a little later
        with pytest.raises(WorkerFullError, match=r"1 jobs, load 1\.00"):
            await lab.dispatch("second", timeout_s=2)
        with pytest.raises(WorkerFullError, match="is full"):
            await lab.call("third", timeout_s=1)


async def test_a_server_that_is_not_there(lab: Lab) -> None:
    """A dead address ends in one sentence with the address."""
    url = f"ws://127.0.0.1:{free_port()}"
    async with Dispatcher(url, "key", SecretStr("s" * 32)) as dispatcher:
        with pytest.raises(ServerUnreachableError, match=url):
            await dispatcher.dispatch("room", "agent", timeout_s=2)


@pytest.mark.smoke
async def test_a_wrong_secret(lab: Lab) -> None:
    """A refused secret is told apart from a dead server, and is not shown."""
    assert lab.settings.livekit_url
    assert lab.settings.livekit_api_key
    secret = "wrong-secret-wrong-secret-wrong-secret"
    async with Dispatcher(
        lab.settings.livekit_url, lab.settings.livekit_api_key, SecretStr(secret)
    ) as dispatcher:
        with pytest.raises(CredentialsError, match="refuses the key or the secret") as caught:
            await dispatcher.dispatch("room", "agent", timeout_s=2)
    assert secret not in str(caught.value)
