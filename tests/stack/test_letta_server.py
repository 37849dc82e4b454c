"""The embedded Letta server: real Letta, real PostgreSQL, the scripted LLM as its model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from labvoice.concurrency import poll
from labvoice.errors import (
    CredentialsError,
    ProcessError,
    ServerUnreachableError,
    UsageError,
)
from labvoice.memory.blocks import MemorySnapshot, load_memory, watch
from labvoice.memory.circuit import CircuitBreaker
from labvoice.memory.client import new_client
from labvoice.memory.queue import MemoryQueue
from labvoice.settings import load_settings
from labvoice.stack.letta.server import LettaServer
from labvoice.stack.processes import free_port
from tests.serving import serving
from tests.stack.faulty_letta import FaultyLetta
from tests.stack.real_letta import Running, told_turns
from tests.stack.recording_model import MODEL, RecordingModel
from tests.stack.talking import PATIENCE_S


async def test_an_agent_files_a_told_fact_with_lettas_tool(letta: Running) -> None:
    """A fact told through Letta's own API is in the block, by a genuine tool call, once."""
    api = letta.server.api
    agent = await api.create("Files a fact", human="The user speaks English.")
    assert "tool_return_message" in await letta.tell(agent, "My dog is called Rex.")
    assert await letta.tell(agent, "My dog is called Rex.") == ["assistant_message"]
    assert await letta.tell(agent, "What is my dog called?") == ["assistant_message"]
    lines = (await api.blocks(agent))["human"].splitlines()
    assert lines == ["The user speaks English.", "The user's dog is called Rex."]


async def test_agents_stay_apart(letta: Running) -> None:
    """What one agent is told, another does not know; the frame shows both."""
    api = letta.server.api
    first, second = await api.create("Apart one"), await api.create("Apart two")
    await letta.tell(first, "I live in Oslo.")
    assert "Oslo" in (await api.blocks(first))["human"]
    assert "Oslo" not in (await api.blocks(second))["human"]
    frame = (await api.agents()).set_index("id")
    assert frame.loc[first, "name"] == "Apart one"
    assert "Oslo" in str(frame.loc[first, "human"])
    assert set(frame.loc[[first, second], "model"]) == {"lab/scripted-llm"}


async def test_an_agent_is_found_by_id_or_name(letta: Running) -> None:
    """A wrong name is answered with the names that come close; a taken one is refused."""
    api = letta.server.api
    agent = await api.create("Night nurse")
    assert await api.resolve("Night nurse") == agent
    assert await api.resolve(agent) == agent
    with pytest.raises(UsageError, match="did you mean `Night nurse`"):
        await api.resolve("Nigth nurse")
    with pytest.raises(UsageError, match="already an agent named 'Night nurse'"):
        await api.create("Night nurse")
    with pytest.raises(UsageError, match="cannot be an agent's name"):
        await api.create("Dr. Who")
    await api.set_block(agent, "human", "Corrected.")
    assert (await api.blocks("Night nurse"))["human"] == "Corrected."
    await api.delete("Night nurse")
    with pytest.raises(UsageError, match="HTTP 404"):
        await api.resolve(agent)


async def test_a_wrong_key_is_refused_with_a_message(letta: Running) -> None:
    """Another user of the machine reads no memory; a wrong key is named as the cause."""
    settings = load_settings(
        letta_base_url=letta.server.base_url, letta_api_key=SecretStr("wrong-key")
    )
    with pytest.raises(CredentialsError, match="refuses the key") as refused:
        await LettaServer.start(settings, letta.state_dir)
    assert "wrong-key" not in str(refused.value)


async def test_a_named_server_is_used_as_it_is(letta: Running) -> None:
    """With LETTA_BASE_URL nothing is started, and stopping leaves that server running."""
    settings = load_settings(
        letta_base_url=letta.server.base_url, letta_api_key=letta.server.api_key
    )
    agent = await letta.server.api.create("On a named server")
    server = await LettaServer.start(settings, letta.state_dir)
    assert (server.state, server.processes) == ("external", [])
    assert agent in set((await server.api.agents())["id"])
    await server.stop()
    await letta.server.api.check()


async def test_an_address_without_letta_is_waited_for(letta: Running) -> None:
    """Nothing there, or something else there, are two sentences; neither ends the start."""
    llm = next(p for p in letta.server.processes if p.name == "scripted LLM")
    port = psutil.Process(llm.pid).cmdline()[-1]
    for address, words in (
        (f"http://127.0.0.1:{free_port()}", "nothing answers at"),
        (f"http://127.0.0.1:{port}", "is not a Letta server"),
    ):
        settings = load_settings(letta_base_url=address)
        server = await LettaServer.start(settings, letta.state_dir)
        try:
            assert server.state == "unreachable"
            with pytest.raises(ServerUnreachableError, match=words):
                await server.until_up()
        finally:
            await server.stop()


async def test_a_named_server_that_comes_late_is_taken_up(
    letta: Running, proxy: FaultyLetta
) -> None:
    """Started while nothing answers, the state turns to external once something does."""
    await proxy.set("refuse")
    settings = load_settings(letta_base_url=proxy.base_url, letta_api_key=letta.server.api_key)
    server = await LettaServer.start(settings, letta.state_dir)
    try:
        assert not server.answers
        await proxy.set("pass")
        async with asyncio.timeout(PATIENCE_S):
            while server.state != "external":
                await asyncio.sleep(0.1)
        await server.until_up()
    finally:
        await server.stop()


async def test_two_accounts_of_a_server_have_turns_of_their_own(letta: Running) -> None:
    """What waits for one account's agents is never sent with another account's key."""
    paths = set()
    for key in ("one", "other"):
        settings = load_settings(letta_base_url="http://127.0.0.1:9", letta_api_key=SecretStr(key))
        server = await LettaServer.start(settings, letta.state_dir)
        paths.add(server.turns_path)
        await server.stop()
    assert len(paths) == 2


async def test_a_fresh_database_is_empty_and_deleted(letta: Running, tmp_path: Path) -> None:
    """With `--fresh` the kept memories, even open elsewhere, are neither seen nor touched.

    Its model's endpoint is down when it starts, which does not leave it failed for good.
    """
    kept = await letta.server.api.create("Kept")
    model = RecordingModel()
    settings = load_settings(
        llm="openai",
        openai_base_url=model.base_url,
        data_dir=letta.settings.data_dir,
        letta_base_url=None,
    )
    told: list[str] = []
    fresh = await LettaServer.start(settings, tmp_path, fresh=True, progress=told.append)
    try:
        async with asyncio.timeout(200):
            while not any("does not list its models" in line for line in told):
                await asyncio.sleep(0.1)
        assert not fresh.answers
        async with serving(model.app, model.port):
            await fresh.until_up(100)
            # It names no model, and the endpoint does not know the default.
            assert fresh.api.model == f"openai-proxy/{MODEL}"
            assert (await fresh.api.agents()).empty
            await fresh.api.create("For a day")
        folder = fresh.turns_path.parent
        assert folder.is_dir()
    finally:
        await fresh.stop()
    assert not folder.exists()
    assert list((await letta.server.api.agents())["id"]).count(kept) == 1
    assert "For a day" not in list((await letta.server.api.agents())["name"])


async def test_fresh_is_refused_for_a_server_of_somebody_else(letta: Running) -> None:
    """Nobody is left to believe that a named server was emptied."""
    settings = load_settings(letta_base_url=letta.server.base_url)
    with pytest.raises(UsageError, match="`--fresh` is for the embedded Letta"):
        await LettaServer.start(settings, letta.state_dir, fresh=True)


async def test_a_second_lab_is_told_who_has_the_memories(letta: Running) -> None:
    """Two databases on one folder would destroy it; the second start names the first."""
    with pytest.raises(UsageError, match="another lab"):
        await LettaServer.start(letta.settings, letta.state_dir)


async def test_listens_on_loopback_only_and_shows_no_secret(letta: Running) -> None:
    """No socket on another interface; no password or key in arguments or logs."""
    family = letta.family()
    listening = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}
    assert letta.server.api_key is not None
    password = next(letta.settings.data_dir.rglob("postgres-password")).read_text()
    secrets = [letta.server.api_key.get_secret_value(), password]
    seen = "\n".join(
        [
            *(" ".join(process.cmdline()) for process in family),
            *(log.read_text() for log in letta.state_dir.glob("*.log")),
        ]
    )
    assert not any(secret in seen for secret in secrets)


async def all_written(queue: MemoryQueue, timeout_s: float) -> None:
    async def none_waits() -> bool:
        return not (await queue.store.counts()).waiting

    assert await poll(none_waits, timeout_s, 0.1), await queue.store.counts()


async def test_finished_turns_reach_the_memory(letta: Running, tmp_path: Path) -> None:
    """Turns put into the queue are in the block, in order and once; a session sees them come."""
    agent = await letta.server.api.create("Takes turns")
    client = new_client(letta.server.base_url, letta.server.api_key)
    seen: list[MemorySnapshot] = []
    following = asyncio.create_task(watch(client, agent, seen.append, interval_s=0.1))
    queue = MemoryQueue(tmp_path / "turns.sqlite", client)
    queue.start()
    for number, said in enumerate(["My dog is called Rex.", "How are you?", "I live in Oslo."]):
        assert await queue.store.put(agent, "room", f"turn-{number}", said, "My name is Robot.")
    await all_written(queue, 60.0)
    assert not await queue.store.put(agent, "room", "turn-0", "My dog is called Rex.", "")
    memory = await load_memory(client, agent)
    assert memory.blocks["human"].split("\n") == [
        "",
        "The user's dog is called Rex.",
        "The user lives in Oslo.",
    ]
    async with asyncio.timeout(PATIENCE_S):
        while seen[-1:] != [memory]:
            await asyncio.sleep(0.05)
    following.cancel()
    await asyncio.wait([following])
    assert await told_turns(client, agent) == ["turn-0", "turn-1", "turn-2"]
    await queue.close()
    await client.close()


@pytest.mark.parametrize("part", ["Letta server", "PostgreSQL", "scripted LLM"])
async def test_a_killed_part_comes_back_and_no_turn_is_lost_or_doubled(
    letta: Running, tmp_path: Path, part: str
) -> None:
    """Killed while turns are being written, each part is revived and the writing ends well."""
    agent = await letta.server.api.create(f"Survives without {part}")
    client = new_client(letta.server.base_url, letta.server.api_key)
    queue = MemoryQueue(
        tmp_path / "turns.sqlite", client, own_server=True, breaker=CircuitBreaker(longest_s=1.0)
    )
    queue.start()
    await queue.store.put(agent, "room", f"{part}-0", "My dog is called Rex.", "I see.")
    await asyncio.sleep(0.1)
    victim = next(process for process in letta.server.processes if process.name == part)
    psutil.Process(victim.pid).kill()
    await victim.wait()
    for number, said in enumerate(["I live in Oslo.", "I like jazz."], 1):
        await queue.store.put(agent, "room", f"{part}-{number}", said, "I see.")
    await all_written(queue, 200.0)
    await letta.server.until_up(60.0)
    assert letta.server.state == "up"
    assert await told_turns(client, agent) == [f"{part}-{number}" for number in range(3)]
    assert (await load_memory(client, agent)).blocks["human"].strip().splitlines() == [
        "The user's dog is called Rex.",
        "The user lives in Oslo.",
        "The user likes jazz.",
    ]
    await queue.close()
    await client.close()


async def test_a_start_that_breaks_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in the background, who waits for Letta is told, and at once."""

    async def broken(*_: object) -> None:
        raise TypeError("no such argument")

    monkeypatch.setattr("labvoice.stack.letta.server.prepare_letta_env", broken)
    settings = load_settings(data_dir=tmp_path)
    server = await LettaServer.start(settings, tmp_path, fresh=True)
    try:
        with pytest.raises(ProcessError, match="TypeError: no such argument"):
            await server.until_up(timeout_s=60)
        assert server.state == "failed"
    finally:
        await server.stop()
