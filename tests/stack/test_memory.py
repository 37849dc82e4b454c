"""Memory in real calls: told by voice, kept by the real Letta, known in the next call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from letta_client import AsyncLetta
from livekit import api

from labvoice.caller.call import Call
from labvoice.errors import LabvoiceError, UsageError
from labvoice.lab import Lab
from labvoice.memory.client import new_client
from labvoice.memory.text import user_part
from labvoice.protocol.metadata import JobMetadata
from labvoice.settings import load_settings
from labvoice.speech.weights import Progress
from labvoice.stack.letta.env import LettaEnv, prepare_letta_env
from labvoice.stack.models.scripted_llm import facts
from labvoice.web.lab_backend import LabBackend
from tests.stack.real_letta import Running, user_messages
from tests.stack.recording_model import MODEL, REPLY, RecordingModel
from tests.stack.talking import LISTENS, PATIENCE_S, answered_turn
from tests.stack.test_cli import labvoice, server_of

TOLD = ("My dog is called Rex.", "I live in Oslo.", "I like jazz.")


@pytest.fixture(scope="module")
async def talking(
    letta: Running, model: RecordingModel, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Lab]:
    """A lab with one worker, that uses the real Letta by its address."""
    settings = load_settings(
        llm="openai",
        openai_base_url=model.base_url,
        llm_model=MODEL,
        letta_base_url=letta.server.base_url,
        letta_api_key=letta.server.api_key,
        data_dir=tmp_path_factory.mktemp("talking"),
        idle_processes=2,
    )
    async with Lab(settings=settings) as lab:
        lab.letta.model = letta.server.api.model
        yield lab


@pytest.fixture(autouse=True)
async def _clean(letta: Running, talking: Lab) -> AsyncIterator[None]:
    """Each test begins with a Letta that knows nobody."""
    async with letta.fresh(talking):
        yield


async def tell(lab: Lab, call: Call, text: str) -> list[str]:
    """Says something by voice and checks that it is answered.

    Returns:
        What the agent understood, once for each time that it was said.
    """
    before = len(call.turns)
    turn = await answered_turn(call, await lab.utterance(text))
    assert turn.reply.endswith(REPLY)
    return [turn.transcript for turn in call.turns[before:] if turn.transcript]


def stated(heard: Iterable[str]) -> list[str]:
    """The facts in what the agent understood, each once."""
    return list(dict.fromkeys(fact for text in heard for fact in facts(text)))


@asynccontextmanager
async def connected(lab: Lab, *agents: str) -> AsyncIterator[list[Call]]:
    """Calls at once, one with each agent's memory; greetings heard, memories loaded."""
    await lab.wait_idle()
    calls: list[Call] = []
    try:
        for agent in agents:
            calls.append(await lab.call(letta_agent=agent))
            await calls[-1].hear_greeting(PATIENCE_S)
            await calls[-1].until_memory()
        yield calls
    finally:
        for call in calls:
            await lab.end_call(call)


async def known(lab: Lab, agent: str) -> list[str]:
    """What an agent knows of its user, line by line."""
    return (await lab.letta.blocks(agent))["human"].strip().splitlines()


async def history(lab: Lab, agent: str) -> list[str]:
    """What the user said to an agent, as Letta keeps it, oldest first."""
    assert lab.settings.letta_base_url
    client: AsyncLetta
    async with new_client(lab.letta_server.base_url, lab.letta_server.api_key) as client:
        return await user_messages(client, await lab.letta.resolve(agent))


@LISTENS
async def test_what_was_told_by_voice_is_known_after_a_restart(tmp_path: Path) -> None:
    """Told, hung up, everything stopped; started again on the same data, the agent answers it."""
    settings = load_settings(llm="small", data_dir=tmp_path)
    async with Lab(settings=settings) as lab:
        await lab.letta_server.until_up()
        await lab.letta.create("Companion", persona="I am a friendly companion.")
        async with connected(lab, "Companion") as [call]:
            await call.say(await lab.utterance("My dog is called Rex."))
            await call.hear(PATIENCE_S)
        # What is not in Letta by now waits on disk.

    async with Lab(settings=settings) as lab:
        await lab.letta_server.until_up()
        async with asyncio.timeout(PATIENCE_S):
            while not await known(lab, "Companion"):
                await asyncio.sleep(0.2)
        async with connected(lab, "Companion") as [call]:
            await call.say(await lab.utterance("What is the name of my dog?"))
            turn = await call.hear(PATIENCE_S)
            await call.until_synced()
        assert await known(lab, "Companion") == ["The user's dog is called Rex."]
        told = await history(lab, "Companion")
    assert "Rex" in turn.reply
    assert len(told) == 2


async def test_two_rooms_with_two_agents_stay_apart(talking: Lab, model: RecordingModel) -> None:
    """At once, in two rooms, each agent knows and learns what is its own, nothing of the other."""
    names = ("Anna", "Bert")
    agents = [await talking.letta.create(f"For {n}", human=f"I am for {n}.") for n in names]
    before = len(model.prompts)
    async with connected(talking, *agents) as calls:
        heard = [await tell(talking, call, text) for call, text in zip(calls, TOLD, strict=False)]
        await asyncio.gather(*(call.until_synced() for call in calls))
        for call in calls:
            await tell(talking, call, "Thank you.")
    told = [stated(texts) for texts in heard]
    assert all(told)
    assert not set(told[0]) & set(told[1])
    own = [f"I am for {name}." for name in names]
    blocks = [await known(talking, agent) for agent in agents]
    assert blocks == [[words, *said] for words, said in zip(own, told, strict=True)]
    prompts = model.prompts[before:]
    for words in own:
        assert any(words in prompt for prompt in prompts)
    assert all((own[0] in prompt) != (own[1] in prompt) for prompt in prompts)
    for prompt in prompts:
        assert not any(fact in prompt for fact in told[0]) or not any(
            fact in prompt for fact in told[1]
        )


@pytest.mark.smoke
async def test_the_worker_finds_a_names_agent_itself(talking: Lab, model: RecordingModel) -> None:
    """A dispatch that carries a name, as one made while Letta was down, is served as by the id."""
    agent = await talking.letta.create("Day watch", human="The user is called Anna.")
    await talking.wait_idle()
    call = talking.new_call(metadata=JobMetadata(letta_agent_id="Day watch"))
    await call.connect()
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    await tell(talking, call, "I live in Oslo.")
    assert "The user is called Anna." in model.prompts[-1]
    await call.until_synced()
    await talking.end_call(call)
    assert await known(talking, agent) == ["The user is called Anna.", "The user lives in Oslo."]


@LISTENS
async def test_a_bench_of_turns_shows_the_stages_of_memory(talking: Lab, tmp_path: Path) -> None:
    """With an arm that uses Letta they are in the frame; its agents are deleted afterwards."""
    run = await talking.bench.turns(
        1, turns=1, warmup=0, arms="hybrid,direct", out=tmp_path / "turns.jsonl"
    )
    frame = run.frame
    for stage in ("memory_load", "memory_sync"):
        found = frame[(frame["stage"] == stage) & frame["duration_s"].notna()]
        assert set(found["arm"]) == {"hybrid"}
        assert (found["duration_s"] > 0).all()
    assert (await talking.letta.agents()).empty


async def test_the_http_service_lists_the_agents(talking: Lab) -> None:
    """Whoever may dispatch by HTTP finds the agents of the real Letta there."""
    agent = await talking.letta.create("Listed")
    found = (await LabBackend(talking).agents()).agents
    assert [(each.id, each.name) for each in found] == [(agent, "Listed")]


async def test_a_call_before_letta_is_up_takes_its_memory_up_later(
    tmp_path: Path, model: RecordingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded Letta still boots: the caller is answered, and later the agent knows them."""
    gate = asyncio.Event()

    async def held_up(cache_dir: Path, progress: Progress) -> LettaEnv:
        await gate.wait()
        return await prepare_letta_env(cache_dir, progress)

    monkeypatch.setattr("labvoice.stack.letta.server.prepare_letta_env", held_up)
    settings = load_settings(
        llm="openai", openai_base_url=model.base_url, llm_model=MODEL, data_dir=tmp_path
    )
    async with Lab(settings=settings) as lab:
        with pytest.raises(LabvoiceError, match="does not answer yet"):
            await lab.letta.agents()
        call = await lab.call(letta_agent="Comes late")
        await call.hear_greeting(PATIENCE_S)
        await tell(lab, call, "I live in Oslo.")
        assert call.memory["state"] != "ready"
        gate.set()
        await lab.letta_server.until_up()
        await lab.letta.create("Comes late", human="The user is called Anna.")
        await call.until_memory(timeout_s=60)
        await tell(lab, call, "Thank you.")
        assert "The user is called Anna." in model.prompts[-1]
        await call.until_synced(60)
        await lab.end_call(call)


async def test_one_agent_in_two_rooms_at_once(talking: Lab, model: RecordingModel) -> None:
    """Both talk; the turns are written in the order in which they end; both take them up."""
    agent = await talking.letta.create("In two rooms")
    async with connected(talking, agent, agent) as [first, second]:
        heard = [
            await tell(talking, call, text)
            for call, text in zip((first, second, first), TOLD, strict=True)
        ]
        await asyncio.gather(first.until_synced(), second.until_synced())
        told = [stated(texts) for texts in heard]
        assert all(told)
        assert await known(talking, agent) == stated(text for texts in heard for text in texts)
        written = [user_part(text) for text in await history(talking, agent)]
        assert " ".join(written) == " ".join(text for texts in heard for text in texts)
        for call, heard_elsewhere in ((first, told[1]), (second, told[0])):
            await tell(talking, call, "Thank you.")
            assert heard_elsewhere[0] in model.prompts[-1]


async def test_a_block_changed_during_a_call_is_taken_up(
    talking: Lab, model: RecordingModel
) -> None:
    """What somebody writes into a block while a call runs reaches the running session."""
    agent = await talking.letta.create("Changed by hand")
    async with connected(talking, agent) as [call]:
        before = call.memory["updates"]
        await talking.letta.set_block(agent, "human", "The user collects stamps.")
        async with asyncio.timeout(PATIENCE_S):
            while call.memory["updates"] == before:
                await asyncio.sleep(0.1)
                await call.until_memory()
        await tell(talking, call, "Thank you.")
    assert "The user collects stamps." in model.prompts[-1]


async def test_the_agent_is_chosen_by_name(talking: Lab, tmp_path: Path) -> None:
    """The command knows agents by name; a misspelt one is answered with the one that is close."""
    await talking.letta.create("Night watch")
    with pytest.raises(UsageError, match="did you mean `Night watch`"):
        await talking.call(letta_agent="Nigth watch")
    letta = talking.letta_server
    assert letta.api_key is not None
    env = {
        **server_of(talking),
        "LETTA_BASE_URL": letta.base_url,
        "LETTA_API_KEY": letta.api_key.get_secret_value(),
    }
    code, words = await labvoice(
        "dispatch", "by-name", "--letta-agent", "Nigth watch", cwd=tmp_path, env=env
    )
    assert code != 0
    assert "did you mean `Night watch`" in words
    code, words = await labvoice(
        "dispatch", "by-name", "--letta-agent", "Night watch", cwd=tmp_path, env=env
    )
    await talking.dispatcher.api.room.delete_room(api.DeleteRoomRequest(room="by-name"))
    assert code == 0, words


async def test_direct_mode_has_no_memory(talking: Lab) -> None:
    """In direct mode nothing is loaded and nothing is written, whatever agent was named."""
    agent = await talking.letta.create("Left alone")
    await talking.wait_idle()
    call = await talking.call(letta_agent=agent, mode="direct")
    await call.hear_greeting(PATIENCE_S)
    await tell(talking, call, "My dog is called Rex.")
    assert call.memory["state"] == "off"
    await talking.end_call(call)
    assert await history(talking, agent) == []
