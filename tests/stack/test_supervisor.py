"""Failover by real kills: one agent afterwards, and the conversation goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from livekit import api, rtc
from livekit.protocol.models import ParticipantInfo

from labvoice.agent.presence import HEARTBEAT_S
from labvoice.bench.failover import KILLS, parse_kills
from labvoice.caller.call import Call
from labvoice.errors import UsageError
from labvoice.failover.supervisor import Supervisor
from labvoice.failover.watched import is_ours
from labvoice.lab import Lab
from labvoice.protocol.metadata import (
    ATTRIBUTE_DISPATCH_ID,
    ATTRIBUTE_HEARTBEAT,
    ATTRIBUTE_HISTORY,
    unpack_history,
)
from labvoice.speech.utterances import Utterance
from labvoice.stack.workers.events import EventLog
from tests.stack.link import Link
from tests.stack.talking import PATIENCE_S, answered_turn, was_said
from tests.stack.test_exactly_one import dispatcher_of


@pytest.fixture(scope="module")
async def pair() -> AsyncIterator[Lab]:
    """A lab with two workers."""
    async with Lab(llm="paced", letta=False, workers=2) as running:
        yield running


@pytest.fixture
async def call(pair: Lab) -> AsyncIterator[Call]:
    """A call whose greeting was heard; the workers are warm."""
    await pair.pool.wait_idle(150)
    running = await pair.call()
    try:
        await running.hear_greeting(PATIENCE_S)
        yield running
    finally:
        await pair.end_call(running)


async def participants(lab: Lab, room: str) -> list[ParticipantInfo]:
    request = api.ListParticipantsRequest(room=room)
    return list((await lab.dispatcher.api.room.list_participants(request)).participants)


async def agents(lab: Lab, room: str) -> list[str]:
    return [p.identity for p in await participants(lab, room) if is_ours(p)]


def token(
    lab: Lab,
    room: str,
    identity: str,
    kind: str = "standard",
    attributes: dict[str, str] | None = None,
) -> str:
    """A token to join with; an agent's carries what labvoice's agents carry."""
    assert lab.settings.livekit_api_key
    assert lab.settings.livekit_api_secret
    secret = lab.settings.livekit_api_secret.get_secret_value()
    grants = api.VideoGrants(room_join=True, room=room, agent=kind == "agent")
    made = api.AccessToken(lab.settings.livekit_api_key, secret).with_identity(identity)
    if kind == "agent":
        made = made.with_kind("agent")
    if attributes is None:
        attributes = {ATTRIBUTE_DISPATCH_ID: "AD_lost", ATTRIBUTE_HEARTBEAT: "7"}
    return made.with_grants(grants).with_attributes(attributes).to_jwt()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # the server has nothing to be woken by
            await asyncio.sleep(0.1)


@pytest.mark.smoke
async def test_a_killed_job_goes_on_with_its_conversation(
    pair: Lab, call: Call, recorded: list[Utterance]
) -> None:
    """Another agent, on another worker, apologises, knows what was said, and answers."""
    before = await agents(pair, call.room_name)
    turn = await answered_turn(call, recorded[0])
    lost = call.worker
    pair.faults.kill_job(call)
    await call.wait_for_replacement(PATIENCE_S)
    after = await agents(pair, call.room_name)
    assert len(before) == len(after) == 1
    assert before != after
    assert call.worker["worker_id"] != lost["worker_id"]
    await answered_turn(call, recorded[1])
    (there,) = [p for p in await participants(pair, call.room_name) if is_ours(p)]
    said = [message.text for message in unpack_history(there.attributes[ATTRIBUTE_HISTORY])]
    assert said[0] == pair.settings.greeting
    assert was_said(turn, said)
    assert pair.settings.apology not in said
    assert len(said) >= 5
    assert {p.identity for p in await participants(pair, call.room_name)} == {call.identity, *after}


async def test_a_second_failover_of_a_call_has_marks_of_its_own(pair: Lab, call: Call) -> None:
    """Each failover of a call brings another agent, and its marks alone are left, in order."""
    names = ("replacement_visible", "replacement_listening", "apology_heard")
    jobs, marks = [call.worker["job_id"]], [call.marks["greeting_heard"]]

    async def warm() -> bool:
        return all(worker.warm_processes for worker in pair.pool.workers)

    for _ in range(2):
        await until(warm, 150)
        killed = pair.faults.kill_job(call)
        await call.wait_for_replacement(60)
        jobs.append(call.worker["job_id"])
        found = [call.marks[name] for name in names]
        assert found == sorted(found)
        assert found[0] > killed.at_s > marks[-1]
        assert call.agent_identity == f"agent-{jobs[-1]}"
        marks.append(found[-1])
    assert len(set(jobs)) == 3
    assert await agents(pair, call.room_name) == [f"agent-{jobs[-1]}"]


async def test_a_hung_agent_that_wakes_does_not_come_back(pair: Lab, call: Call) -> None:
    """A stall of one heartbeat is not death; a stopped process is replaced, and stays away."""
    before = await agents(pair, call.room_name)
    stalled = pair.faults.hang_job(call)
    await asyncio.sleep(HEARTBEAT_S)
    stalled.resume()
    await asyncio.sleep(3)
    assert await agents(pair, call.room_name) == before
    hung = pair.faults.hang_job(call)
    await call.wait_for_replacement(PATIENCE_S)
    (other,) = await agents(pair, call.room_name)
    hung.resume()
    await hung.until_gone()
    assert await agents(pair, call.room_name) == [other]


async def test_a_killed_worker_is_replaced_and_started_again(pair: Lab, call: Call) -> None:
    """The call moves to the other worker, and the pool is whole again."""
    (worker,) = [w for w in pair.pool.workers if w.worker_id == call.worker["worker_id"]]
    pair.faults.kill_worker(worker)
    await call.wait_for_replacement(PATIENCE_S)
    assert call.worker["worker_id"] != worker.worker_id
    assert len(await agents(pair, call.room_name)) == 1

    async def whole() -> bool:
        return len(pair.pool.workers) == 2 and worker not in pair.pool.workers

    await until(whole, 120)
    assert {"worker_lost", "agent_lost", "agent_replaced"} <= set(pair.pool.events["event"])


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
    assert [p.identity for p in await participants(pair, call.room_name)] == [call.identity]


@pytest.mark.parametrize("listed", [True, False], ids=["at once", "when the room is empty of it"])
async def test_a_new_supervisor_finds_what_died_without_it(
    pair: Lab, call: Call, recorded: list[Utterance], listed: bool
) -> None:
    """An agent that died while nobody watched is replaced, from what the server knows.

    As long as the server lists the dead agent, what was said is known too.
    """

    async def gone() -> bool:
        return not await agents(pair, call.room_name)

    turn = await answered_turn(call, recorded[0])
    assert pair.supervisor is not None
    await pair.supervisor.stop()
    try:
        pair.faults.kill_job(call)
        if not listed:
            await until(gone, 60)
    finally:
        pair.supervisor = None  # the next one knows nothing
        pair.supervise()
    await call.wait_for_replacement(PATIENCE_S)
    assert len(await agents(pair, call.room_name)) == 1
    (there,) = [p for p in await participants(pair, call.room_name) if is_ours(p)]
    said = unpack_history(there.attributes.get(ATTRIBUTE_HISTORY, ""))
    assert was_said(turn, [message.text for message in said]) == listed


async def test_a_restarted_server_has_the_call_again(
    pair: Lab, call: Call, recorded: list[Utterance]
) -> None:
    """After the server was killed and started again the caller has one agent, which answers."""
    (before,) = await agents(pair, call.room_name)
    pair.faults.kill_livekit()
    await pair.faults.restart_livekit()

    async def both() -> bool:
        return len(await participants(pair, call.room_name)) == 2

    await until(both, 60)
    await asyncio.sleep(5)
    if before in (there := await agents(pair, call.room_name)):
        # Its dispatch went with the server; asking again must not cost the call its agent.
        done = await pair.dispatch(call.room_name)
        assert (done.agent_identity, done.attempts) == (before, 0)
        assert await agents(pair, call.room_name) == there
    await answered_turn(call, recorded[0])
    assert len(await agents(pair, call.room_name)) == 1


async def test_a_removed_agent_that_joins_again_is_sent_away(pair: Lab, call: Call) -> None:
    """Whoever comes back under a lost agent's name has to leave; the caller and a guest stay."""
    (lost,) = await agents(pair, call.room_name)
    pair.faults.kill_job(call)
    await call.wait_for_replacement(PATIENCE_S)
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
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
        there = {p.identity for p in await participants(pair, call.room_name)}
        assert there == {call.identity, "guest", other}
    finally:
        await back.disconnect()
        await guest.disconnect()


async def test_an_empty_room_is_removed(pair: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A room that had an agent goes, although the server would keep it for five minutes."""
    monkeypatch.setattr(pair.supervisor, "empty_room_s", 3.0)
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


async def test_a_cold_start_is_no_loss(pair: Lab) -> None:
    """A human beside an agent that takes long to come gets that agent, and no other."""
    await pair.add_workers(agent_name="slow-agent", program="tests.stack.faulty_agent")
    assert pair.settings.livekit_url
    human = rtc.Room()
    await human.connect(pair.settings.livekit_url, token(pair, "cold", "human"))
    try:
        made = await pair.dispatcher.api.agent_dispatch.create_dispatch(
            api.CreateAgentDispatchRequest(agent_name="slow-agent", room="cold")
        )

        async def there() -> bool:
            return len(await participants(pair, "cold")) == 2

        await until(there, 30)
        (agent,) = [p for p in await participants(pair, "cold") if p.identity != "human"]
        assert agent.attributes[ATTRIBUTE_DISPATCH_ID] == made.id
        events = pair.pool.events
        assert "agent_lost" not in set(events[events["room"] == "cold"]["event"])
    finally:
        await human.disconnect()
        await pair.pool.scale(0, agent_name="slow-agent")


async def test_a_room_without_an_agent_is_not_forgotten(
    pair: Lab, recorded: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can take over, the next supervisor does once somebody can, with the history."""
    monkeypatch.setattr(pair.supervisor, "cold_start_s", 3.0)
    await pair.add_workers(agent_name="only-agent")
    call = await pair.call(agent_name="only-agent")
    try:
        await call.hear_greeting(PATIENCE_S)
        turn = await answered_turn(call, recorded[0])
        (worker,) = [w for w in pair.pool.workers if w.agent_name == "only-agent"]
        pair.faults.kill_worker(worker, restart=False)

        async def failed() -> bool:
            events = pair.pool.log.frame()
            mine = events[events["room"] == call.room_name]
            return "replacement_failed" in set(mine["event"])

        await until(failed, 40)
        assert pair.supervisor is not None
        await pair.supervisor.stop()
        listed = await pair.dispatcher.api.agent_dispatch.list_dispatch(call.room_name)
        # A nameless one is every room's.
        assert [each.agent_name for each in listed if each.agent_name] == ["only-agent"]
        await pair.add_workers(agent_name="only-agent")
        pair.supervisor = None  # the next one knows nothing
        pair.supervise()
        monkeypatch.setattr(pair.supervisor, "cold_start_s", 3.0)
        await call.wait_for_replacement(60)
        (there,) = [p for p in await participants(pair, call.room_name) if is_ours(p)]
        said = unpack_history(there.attributes[ATTRIBUTE_HISTORY])
        assert was_said(turn, [message.text for message in said])
    finally:
        await pair.end_call(call)
        pair.supervise()
        pair.pool.workers.remove(worker)
        await worker.stop()
        await pair.pool.scale(0, agent_name="only-agent")


async def test_of_two_agents_the_first_stays(pair: Lab) -> None:
    """Two agents of one name that nobody coordinated, even strangers': the later one goes."""
    name = pair.settings.agent_name
    assert pair.settings.livekit_url
    attributes = {"lk.agent.name": name}
    first, second = rtc.Room(), rtc.Room()
    gone = asyncio.Event()
    second.on("disconnected", lambda _: gone.set())
    try:
        for room, identity in ((first, "agent-first"), (second, "agent-second")):
            made = token(pair, "twice", identity, "agent", attributes)
            await room.connect(pair.settings.livekit_url, made)
        async with asyncio.timeout(20):
            await gone.wait()
        assert [p.identity for p in await participants(pair, "twice")] == ["agent-first"]
    finally:
        await first.disconnect()
        await second.disconnect()


async def test_the_end_of_a_call_spares_other_humans(pair: Lab) -> None:
    """Whoever hangs up leaves alone: a guest stays in the room, with an agent or without."""
    assert pair.settings.livekit_url
    await pair.pool.wait_idle(150)
    call = await pair.call("with-a-guest")
    guest = rtc.Room()
    await guest.connect(pair.settings.livekit_url, token(pair, "with-a-guest", "guest"))
    try:
        await pair.end_call(call)

        async def without_the_caller() -> bool:
            there = {p.identity for p in await participants(pair, "with-a-guest")}
            return "guest" in there and call.identity not in there

        await until(without_the_caller, 20)
        await asyncio.sleep(3)  # the room is not removed later either
        assert await without_the_caller()
    finally:
        await guest.disconnect()


async def test_one_room_that_cannot_be_seen_hides_no_other(
    pair: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error about one room is an event; the server is not lost, and the others are looked at."""
    service = pair.dispatcher.api.room
    for name in ("bad", "good"):
        await service.create_room(api.CreateRoomRequest(name=name))
    log = EventLog()
    looked: list[str] = []
    async with dispatcher_of(pair) as dispatcher:
        ask = dispatcher.api.room.list_participants

        async def answer(request: api.ListParticipantsRequest) -> api.ListParticipantsResponse:
            looked.append(request.room)
            if request.room == "bad":
                raise api.TwirpError("not_found", "no such room", status=404)
            return await ask(request)

        monkeypatch.setattr(dispatcher.api.room, "list_participants", answer)
        supervisor = Supervisor(dispatcher, log)
        supervisor.start()

        async def both_twice() -> bool:
            return min(looked.count("good"), looked.count("bad")) > 2

        await until(both_twice, 30)
        await supervisor.stop()
    events = log.frame()
    assert list(events["event"]) == ["look_failed"]
    assert list(events["room"]) == ["bad"]


async def test_the_benchmark_kills_and_counts(pair: Lab, tmp_path: Path) -> None:
    """Every kind of death is an arm with its recovery, and no trial fails."""
    run = await pair.bench.failover(1, kills="job,hang", out=tmp_path / "run.jsonl")
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
        await call.hear_greeting(PATIENCE_S)
        lost = call.worker
        await pair.add_workers(agent_name="far")
        await link.cut()
        await call.wait_for_replacement(PATIENCE_S)
        assert call.worker["worker_id"] != lost["worker_id"]
        assert len(await agents(pair, call.room_name)) == 1
    finally:
        await link.cut()
        await pair.end_call(call)


def test_kinds_of_death_are_checked() -> None:
    """A misspelt kind is named together with the known ones."""
    assert parse_kills("job, hang") == ["job", "hang"]
    assert set(KILLS) == {"job", "worker", "hang"}
    for text in ("jbo", ","):
        with pytest.raises(UsageError, match="kind of death") as caught:
            parse_kills(text)
        assert "worker" in caught.value.hint
