"""Letta mode in real calls: Letta itself answers, and stops when it is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from letta_client import AsyncLetta

from labvoice.concurrency import poll
from labvoice.lab import Lab
from labvoice.memory.client import new_client
from labvoice.memory.text import user_part
from labvoice.settings import load_settings
from labvoice.stack.models.scripted_llm import NOTED, NOTHING
from tests.serving import serving
from tests.stack.faulty_letta import FaultyLetta, Mode
from tests.stack.real_letta import Running, user_messages
from tests.stack.recording_model import MODEL, REPLY, RecordingModel
from tests.stack.talking import LISTENS, PATIENCE_S, answered_turn, answers_nothing_twice

SLOWLY = "Let me tell you a long story. " + "Then they went on and on along the road. " * 8


@pytest.fixture(scope="module")
async def lab(
    letta: Running, proxy: FaultyLetta, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """A lab whose agents have a fast model of their own, and Letta behind the proxy."""
    fast = RecordingModel()
    settings = load_settings(
        llm="openai",
        openai_base_url=fast.base_url,
        llm_model=MODEL,
        letta_base_url=letta.server.base_url,
        letta_api_key=letta.server.api_key,
        data_dir=tmp_path_factory.mktemp("letta-mode"),
    )
    async with serving(fast.app, fast.port), Lab(settings=settings, workers=0) as running:
        running.settings.letta_base_url = proxy.base_url
        await running.add_workers(1)
        yield running


@pytest.fixture(scope="module")
async def slow_handle(letta: Running) -> AsyncIterator[str]:
    """A model behind Letta that takes 20 s for its reply."""
    slow = RecordingModel(SLOWLY, pause_s=0.25)
    async with serving(slow.app, slow.port):
        yield await letta.server.api.register_model("slow", slow.base_url, None, MODEL)


@pytest.fixture(autouse=True)
async def _clean(letta: Running, lab: Lab, proxy: FaultyLetta) -> AsyncIterator[None]:
    """Each test begins with a Letta that works and knows nobody."""
    await proxy.set("pass")
    async with letta.fresh(lab):
        yield


async def statuses(client: AsyncLetta, agent: str) -> list[str]:
    """How the agent's runs stand, the newest first."""
    runs = await client.runs.list(agent_id=agent, limit=20)
    return [str(run.status) for run in runs.items]


@LISTENS
async def test_a_barge_in_cancels_the_run(letta: Running, lab: Lab, slow_handle: str) -> None:
    """Spoken over, Letta's run ends as cancelled; the next turn works; each is kept once."""
    agent = await letta.server.api.create("Interrupted", model=slow_handle)
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent, mode="letta")
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    async with new_client(letta.server.base_url, letta.server.api_key) as client:
        await call.say(await lab.utterance("My dog is called Rex."))
        await call.hear_onset()
        assert await statuses(client, agent) == ["running"]
        await call.say(await lab.utterance("I live in Oslo."))

        async def is_cancelled() -> bool:
            now = await statuses(client, agent)
            return now[-1] == "cancelled" and "running" in now

        # A slow machine splits the turn, whose parts ask Letta one after the other.
        assert await poll(is_cancelled, PATIENCE_S, 0.2), await statuses(client, agent)
        await call.hear_onset()
        await lab.end_call(call)  # cancels the second run as well
        async with asyncio.timeout(120):
            while "Oslo" not in (told := " ".join(await user_messages(client, agent))):
                await asyncio.sleep(0.5)
    assert told.count("Rex") == told.count("Oslo") == 1
    assert told.index("Rex") < told.index("Oslo")


@LISTENS
async def test_a_fact_told_by_voice_is_filed_once(letta: Running, lab: Lab) -> None:
    """Letta files what the caller states by its own tool, and its answer is heard."""
    agent = await letta.server.api.create("Files by itself", model="lab/scripted-llm")
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent, mode="letta")
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    await call.say(await lab.utterance("My dog is called Rex."))
    turn = await call.hear(PATIENCE_S)
    assert (turn.outcome, turn.reply) == ("ok", NOTED)
    await call.until_synced(150)
    await lab.end_call(call)
    human = (await letta.server.api.blocks(agent))["human"]
    assert human.strip().splitlines() == ["The user's dog is called Rex."]
    async with new_client(letta.server.base_url, letta.server.api_key) as client:
        assert len(await user_messages(client, agent)) == 1


async def test_letta_down_or_slow_the_fast_model_answers(
    letta: Running, lab: Lab, proxy: FaultyLetta
) -> None:
    """Letta answers; then it breaks off, is slow, is down: the fast model answers; all is kept."""
    agent = await letta.server.api.create("Falls back", model="lab/scripted-llm")
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent, mode="letta")
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    asked: tuple[tuple[Mode, str, str], ...] = (
        ("pass", "How are you today?", NOTHING),
        ("cut", "I have two cats.", REPLY),
        ("slow", "I live in Oslo.", REPLY),
        ("refuse", "I like jazz.", REPLY),
    )
    for mode, text, reply in asked:
        await proxy.set(mode)
        turn = await answered_turn(call, await lab.utterance(text))
        # A part of a turn that a busy machine has split is answered as well.
        assert turn.reply.split(reply)[0] == turn.reply.replace(reply, "").strip() == "", turn
        assert answers_nothing_twice(call), call.session_events
    await proxy.set("pass")
    await call.until_synced(150)
    async with new_client(letta.server.base_url, letta.server.api_key) as client:
        told = [user_part(text) for text in await user_messages(client, agent)]
    # Each once, in whatever order: the turn that Letta broke off is written again in the
    # background, and the next one is sent to Letta at once.
    heard = [turn.transcript for turn in call.turns]
    assert sorted(" ".join(told).split()) == sorted(" ".join(heard).split())
    assert call.turns[0].metrics["letta_ttft"] > 0
    assert "letta_ttft" not in call.turns[1].metrics
    await lab.end_call(call)
