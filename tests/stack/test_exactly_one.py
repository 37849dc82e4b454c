"""One agent in the room, whatever happens: many callers, late workers, slow workers, repetition."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from livekit import api
from pydantic import SecretStr

from labvoice.dispatch import Dispatcher
from labvoice.dispatch.diagnosis import Evidence
from labvoice.errors import DispatchError
from labvoice.lab import Lab
from labvoice.web.app import create_app
from labvoice.web.lab_backend import LabBackend
from labvoice.web.security import Keyring
from labvoice.web.server import HttpServer, bind_port
from labvoice.web.settings import WebSettings
from tests.stack.conftest import delete_rooms
from tests.stack.faulty_agent import SLOW_S
from tests.stack.link import Link
from tests.stack.talking import PATIENCE_S
from tests.stack.test_cli import KEY, labvoice, server_of
from tests.stack.test_dispatch import agents_in

NOOP_AGENT = "noop-agent"
LATE_S = 6.0  # a job shows up to 5 s after its assignment; only then a withdrawn dispatch ends it


async def add_noop_worker(lab: Lab, agent_name: str = NOOP_AGENT) -> None:
    await lab.add_workers(agent_name=agent_name, program="labvoice.agent.noop")


@pytest.fixture(scope="module")
async def noop_lab() -> AsyncIterator[Lab]:
    """A lab whose one worker's agents join and do nothing."""
    async with Lab(llm="paced", workers=0, letta=False, max_jobs=64) as lab:
        await add_noop_worker(lab)
        yield lab


@pytest.fixture(autouse=True)
async def _rooms_end_with_their_test(noop_lab: Lab) -> AsyncIterator[None]:
    """Workers are idle for the next test; nobody else ends these agents."""
    yield
    await delete_rooms(noop_lab)


async def test_two_services_in_front_bring_one_agent(noop_lab: Lab) -> None:
    """Services that know nothing of each other, asked at once for one room: one agent, one answer.

    So they need not share what was asked for: LiveKit's list of dispatches is what they share.
    """
    settings = WebSettings(api_key=SecretStr(KEY))
    named = noop_lab.settings
    async with AsyncExitStack() as stack:
        urls = []
        for _ in range(2):
            front = Lab(
                livekit_url=named.livekit_url,
                livekit_api_key=named.livekit_api_key,
                livekit_api_secret=named.livekit_api_secret,
                workers=0,
                letta=False,
                model=False,
            )
            await stack.enter_async_context(front)
            service = create_app(LabBackend(front), settings, Keyring(settings))
            server = HttpServer(service, bind_port("127.0.0.1", 0))
            await stack.enter_async_context(server)
            urls.append(f"http://127.0.0.1:{server.port}/api/dispatch-agent")
        headers = {"Authorization": f"Bearer {KEY}"}
        asked = {"room": "in front", "agent_name": NOOP_AGENT, "timeout_s": 20}
        async with httpx.AsyncClient(trust_env=False, timeout=60, headers=headers) as client:
            answers = await asyncio.gather(*(client.post(url, json=asked) for url in urls * 3))
            assert len({answer.json()["agent_identity"] for answer in answers}) == 1
            await asyncio.sleep(LATE_S)
            # What is asked for again at the other service is answered by what is there.
            again = (await client.post(urls[1], json=asked)).json()
        assert await agents_in(noop_lab, "in front") == [again["agent_identity"]]
        assert again["agent_identity"] == answers[0].json()["agent_identity"]
    listed = await noop_lab.dispatcher.api.agent_dispatch.list_dispatch("in front")
    assert [each.agent_name for each in listed if each.agent_name] == [NOOP_AGENT]


async def test_callers_in_several_processes_get_the_same_agent(
    noop_lab: Lab, tmp_path: Path
) -> None:
    """Three command lines at once name one agent, and one is in the room."""
    files = [tmp_path / f"{number}.json" for number in range(3)]
    results = await asyncio.gather(
        *(
            labvoice(
                *("dispatch", "many", "--agent-name", NOOP_AGENT, "--json", str(file)),
                cwd=tmp_path,
                env=server_of(noop_lab),
            )
            for file in files
        )
    )
    assert [code for code, _ in results] == [0, 0, 0], results
    agents = {json.loads(file.read_text(encoding="utf-8"))["agent_identity"] for file in files}
    assert len(agents) == 1
    await asyncio.sleep(LATE_S)
    assert await agents_in(noop_lab, "many") == list(agents)


@pytest.mark.smoke
async def test_callers_in_the_same_moment_get_the_same_agent(noop_lab: Lab) -> None:
    """Twelve callers who do not know of each other: one agent, one dispatch left."""

    async def ask() -> str:
        async with dispatcher_of(noop_lab) as dispatcher:
            return (await dispatcher.dispatch("crowd", NOOP_AGENT, timeout_s=20)).agent_identity

    agents = set(await asyncio.gather(*(ask() for _ in range(12))))
    assert len(agents) == 1
    await asyncio.sleep(LATE_S)
    assert await agents_in(noop_lab, "crowd") == list(agents)
    listed = await noop_lab.dispatcher.api.agent_dispatch.list_dispatch("crowd")
    assert len([each for each in listed if each.agent_name == NOOP_AGENT]) == 1


async def test_plain_dispatches_in_the_same_moment_make_one_agent(noop_lab: Lab) -> None:
    """The worker itself refuses the second of two dispatches that nobody coordinated."""
    request = api.CreateAgentDispatchRequest(agent_name=NOOP_AGENT, room="plain")
    await noop_lab.dispatcher.api.agent_dispatch.create_dispatch(request)
    await noop_lab.dispatcher.api.agent_dispatch.create_dispatch(request)
    await asyncio.sleep(LATE_S)
    assert len(await agents_in(noop_lab, "plain")) == 1


async def test_a_worker_that_is_about_to_register_is_waited_for(noop_lab: Lab) -> None:
    """A dispatch made before its worker is there ends with the agent in the room."""
    dispatching = asyncio.create_task(
        noop_lab.dispatcher.dispatch("early", "late-agent", timeout_s=60)
    )
    done_at_once, _ = await asyncio.wait({dispatching}, timeout=1)
    assert not done_at_once
    await add_noop_worker(noop_lab, "late-agent")
    done = await dispatching
    assert done.attempts > 1
    await asyncio.sleep(LATE_S)
    assert await agents_in(noop_lab, "early") == [done.agent_identity]


def dispatcher_of(lab: Lab, url: str | None = None, evidence: Evidence | None = None) -> Dispatcher:
    """A dispatcher without the server's log, as on another host."""
    settings = lab.settings
    assert settings.livekit_url
    assert settings.livekit_api_key
    assert settings.livekit_api_secret
    return Dispatcher(
        url or settings.livekit_url,
        settings.livekit_api_key,
        settings.livekit_api_secret,
        evidence,
    )


async def test_a_slow_first_agent_makes_no_second_one(noop_lab: Lab) -> None:
    """A worker that stands still past the retry and then goes on brings one agent, not two."""
    stopped = noop_lab.faults.hang_worker(noop_lab.pool.workers[0], jobs_too=True)
    async with dispatcher_of(noop_lab) as dispatcher:
        try:
            dispatching = asyncio.create_task(dispatcher.dispatch("slow", NOOP_AGENT, timeout_s=40))
            done_at_once, _ = await asyncio.wait({dispatching}, timeout=5)
            assert not done_at_once
        finally:
            stopped.resume()
        done = await dispatching
    assert done.attempts > 1
    await asyncio.sleep(LATE_S)
    assert await agents_in(noop_lab, "slow") == [done.agent_identity]


@pytest.fixture(scope="module")
async def slow(noop_lab: Lab) -> Lab:
    """The lab, with a worker whose agents take eight seconds to join."""
    await noop_lab.add_workers(agent_name="slow-agent", program="tests.stack.faulty_agent")
    return noop_lab


async def test_a_job_that_was_accepted_is_waited_for(slow: Lab) -> None:
    """An agent whose entrypoint takes longer than a retry is one agent all the same."""
    async with dispatcher_of(slow) as dispatcher:
        done = await dispatcher.dispatch("late-entry", "slow-agent", timeout_s=60)
    await asyncio.sleep(SLOW_S + 2)
    assert await agents_in(slow, "late-entry") == [done.agent_identity]


async def test_who_waits_short_takes_nothing_from_who_waits_long(slow: Lab) -> None:
    """A caller whose time is over leaves the dispatch that another one made and waits for."""
    patient = asyncio.create_task(slow.dispatcher.dispatch("patience", "slow-agent", timeout_s=60))
    async with asyncio.timeout(PATIENCE_S):
        while not await slow.dispatcher.api.agent_dispatch.list_dispatch("patience"):
            await asyncio.sleep(0.05)
    async with dispatcher_of(slow) as dispatcher:
        with pytest.raises(DispatchError):
            await dispatcher.dispatch("patience", "slow-agent", timeout_s=1)
    done = await patient
    assert done.attempts == 1
    assert await agents_in(slow, "patience") == [done.agent_identity]


async def test_a_dispatch_that_is_called_off_leaves_nothing(noop_lab: Lab) -> None:
    """Cancelled while it waits, it takes its dispatch back."""
    waiting = asyncio.create_task(
        noop_lab.dispatcher.dispatch("called-off", "nobody", timeout_s=30)
    )
    async with asyncio.timeout(20):
        while not await noop_lab.dispatcher.api.agent_dispatch.list_dispatch("called-off"):
            await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    listed = await noop_lab.dispatcher.api.agent_dispatch.list_dispatch("called-off")
    assert [each for each in listed if each.agent_name == "nobody"] == []


async def test_a_broken_connection_is_made_anew(noop_lab: Lab) -> None:
    """Requests that break off for a second end in one agent, not in an error."""
    link = Link(int(str(noop_lab.settings.livekit_url).rsplit(":", 1)[1]))
    await link.open()
    try:
        async with dispatcher_of(noop_lab, f"ws://127.0.0.1:{link.port}") as dispatcher:
            waiting = asyncio.create_task(
                # As long as a worker may take to register while other stacks start.
                dispatcher.dispatch("broken-off", "later-agent", timeout_s=150)
            )
            while link.broken < 20:  # what was under way is what is broken, at any speed
                await asyncio.sleep(0.01)
                link.interrupt()
            assert not waiting.done(), waiting
            await add_noop_worker(noop_lab, "later-agent")
            done = await waiting
        await asyncio.sleep(LATE_S)
        assert await agents_in(noop_lab, "broken-off") == [done.agent_identity]
    finally:
        await link.cut()


async def test_a_failed_dispatch_leaves_nothing_that_could_come_later(noop_lab: Lab) -> None:
    """After a failure was told, a worker that registers does not bring the agent after all."""
    with pytest.raises(DispatchError, match="registered"):
        await noop_lab.dispatcher.dispatch("given-up", "zzz", timeout_s=1)
    await add_noop_worker(noop_lab, "zzz")
    await asyncio.sleep(1)
    assert await agents_in(noop_lab, "given-up") == []


async def test_a_burst_gives_every_room_its_agent(noop_lab: Lab, tmp_path: Path) -> None:
    """Ten rooms at once: each has one agent, and the run says so for both arms."""
    run = await noop_lab.bench.burst(10, 1, workers=1, warmup=0, out=tmp_path / "burst.jsonl")
    arms = run.to_json()["arms"]
    assert set(arms) == {"plain", "confirmed"}
    assert arms["confirmed"]["outcomes"] == {"ok": 10}
    assert arms["plain"]["n"] == 10
