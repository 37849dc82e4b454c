"""What Letta does wrong never reaches the caller: real calls, a real Letta, real faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import psutil
import pytest
from pydantic import SecretStr

from labvoice.caller.call import Call
from labvoice.lab import Lab
from labvoice.memory.client import new_client
from labvoice.memory.text import user_part
from labvoice.settings import load_settings
from labvoice.stack.models.scripted_llm import facts
from tests.stack.faulty_letta import FaultyLetta, Mode
from tests.stack.real_letta import Running, user_messages
from tests.stack.recording_model import MODEL, REPLY, RecordingModel
from tests.stack.talking import PATIENCE_S, answered_turn

SAID = ("My dog is called Rex.", "I live in Oslo.", "I like jazz.")
SYNC_TIMEOUT_S = 150.0  # a circuit that was opened tries again after 30 s at most


@pytest.fixture(scope="module")
async def lab(
    letta: Running,
    model: RecordingModel,
    proxy: FaultyLetta,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Lab]:
    """A lab whose worker reaches Letta only through the proxy, while the lab itself need not."""
    settings = load_settings(
        llm="openai",
        openai_base_url=model.base_url,
        llm_model=MODEL,
        letta_base_url=letta.server.base_url,
        letta_api_key=letta.server.api_key,
        data_dir=tmp_path_factory.mktemp("faults"),
    )
    async with Lab(settings=settings, workers=0) as running:
        running.letta.model = letta.server.api.model
        running.settings.letta_base_url = proxy.base_url
        await running.add_workers(1)
        yield running


@pytest.fixture(autouse=True)
async def _clean(letta: Running, lab: Lab, proxy: FaultyLetta) -> AsyncIterator[None]:
    """Each test begins with a Letta that works and knows nobody."""
    await proxy.set("pass")
    async with letta.fresh(lab):
        yield


async def told(letta: Running, agent: str) -> list[str]:
    """What the user said in each message that Letta keeps, oldest first."""
    async with new_client(letta.server.base_url, letta.server.api_key) as client:
        texts = await user_messages(client, agent)
    return [user_part(text) for text in texts]


def heard(call: Call) -> str:
    """What the agent understood, whole: on a busy machine not always what was said, nor in turns.

    A turn that such a machine has split, and whose parts were answered, is written in its parts.
    """
    return " ".join(turn.transcript for turn in call.turns if turn.transcript)


async def answered(lab: Lab, call: Call, texts: Sequence[str]) -> None:
    """Says something and hears the fast model's answer, each time."""
    for text in texts:
        turn = await answered_turn(call, await lab.utterance(text))
        assert turn.reply.endswith(REPLY)


async def all_written_once(letta: Running, call: Call, agent: str) -> None:
    """Everything that was heard reaches Letta: in order, once."""
    await call.until_synced(SYNC_TIMEOUT_S)
    await asyncio.sleep(1.0)  # what came twice would come now
    assert " ".join(await told(letta, agent)) == heard(call)
    await all_known_once(letta, agent)


async def all_known_once(letta: Running, agent: str) -> None:
    """What the scripted LLM makes of each message is in the agent's block: in order, once."""
    human = (await letta.server.api.blocks(agent))["human"].strip().splitlines()
    stated = [fact for text in await told(letta, agent) for fact in facts(text)]
    assert human == list(dict.fromkeys(stated))


async def test_letta_down_at_the_start_of_a_call(
    letta: Running, lab: Lab, proxy: FaultyLetta, model: RecordingModel
) -> None:
    """The call begins without memory and says so; the memory is taken up when Letta comes."""
    agent = await letta.server.api.create("Down at start", human="The user is called Anna.")
    await lab.wait_idle()
    await proxy.set("refuse")
    call = await lab.call(letta_agent="Down at start")
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory("unavailable")
    assert "nothing answers" in call.memory["error"]
    await answered(lab, call, SAID[:1])
    assert "Anna" not in model.prompts[-1]
    await proxy.set("pass")
    await call.until_memory("ready")
    await answered(lab, call, SAID[1:2])
    assert "Anna" in model.prompts[-1]
    await call.until_synced(SYNC_TIMEOUT_S)
    await lab.end_call(call)
    assert " ".join(await told(letta, agent)) == heard(call)


@pytest.mark.parametrize("fault", ["refuse", "slow"])  # the unit tests have every other
async def test_letta_fails_in_mid_call(
    letta: Running, lab: Lab, proxy: FaultyLetta, fault: Mode
) -> None:
    """Whatever Letta does from the first turn on, each turn is answered and written once."""
    agent = await letta.server.api.create(f"Fails by {fault}")
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent)
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    await proxy.set(fault)
    await answered(lab, call, SAID[:2])
    await proxy.set("pass")
    await answered(lab, call, SAID[2:])
    await all_written_once(letta, call, agent)
    await lab.end_call(call)


async def test_a_worker_with_a_wrong_key_still_answers(letta: Running, lab: Lab) -> None:
    """Its calls run without memory, and their state names the key."""
    await lab.wait_idle()
    right, lab.settings.letta_api_key = lab.settings.letta_api_key, SecretStr("wrong")
    try:
        await lab.add_workers(1, agent_name="wrong-key")
    finally:
        lab.settings.letta_api_key = right
    agent = await letta.server.api.create("Locked")
    call = await lab.call(agent_name="wrong-key", letta_agent=agent)
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory("unavailable")
    assert "refuses the key" in call.memory["error"]
    await answered(lab, call, SAID[:1])
    await lab.end_call(call)
    await lab.pool.scale(0, agent_name="wrong-key")
    await wait_for_turns(letta, call, agent)  # by the worker with the right key


async def wait_for_turns(letta: Running, call: Call, agent: str) -> None:
    """Waits until Letta has the turns of a call that is over, and no more."""
    async with asyncio.timeout(SYNC_TIMEOUT_S):
        while " ".join(await told(letta, agent)) != heard(call):
            await asyncio.sleep(0.5)
    await asyncio.sleep(1.0)
    assert " ".join(await told(letta, agent)) == heard(call)


async def test_the_agent_is_deleted_during_the_call(letta: Running, lab: Lab) -> None:
    """The caller is answered all the same, and the turn counts as lost."""
    agent = await letta.server.api.create("Deleted")
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent)
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    lost = call.memory["lost_turns"]
    await letta.server.api.delete(agent)
    await answered(lab, call, SAID[:1])
    await call.until_memory("unavailable")
    async with asyncio.timeout(SYNC_TIMEOUT_S):
        while call.memory["lost_turns"] == lost:
            await call.until_memory("unavailable")
    assert "404" in call.memory["error"]
    await lab.end_call(call)


async def test_the_database_is_restarted_during_the_call(letta: Running, lab: Lab) -> None:
    """PostgreSQL killed while turns are written: it is revived, and they are there once."""
    agent = await letta.server.api.create("Without database")
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent)
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    await answered(lab, call, SAID[:1])
    postgres = next(p for p in letta.server.processes if p.name == "PostgreSQL")
    psutil.Process(postgres.pid).kill()
    await answered(lab, call, SAID[1:])
    await all_written_once(letta, call, agent)
    await lab.end_call(call)


async def test_a_killed_worker_leaves_its_turns_to_the_next(
    letta: Running, lab: Lab, proxy: FaultyLetta
) -> None:
    """SIGKILL with turns unwritten: the worker started in its place writes each, once, in order."""
    agent = await letta.server.api.create("Orphaned")
    await lab.wait_idle()
    call = await lab.call(letta_agent=agent)
    await call.hear_greeting(PATIENCE_S)
    await call.until_memory()
    await proxy.set("500")
    await answered(lab, call, SAID[:2])
    (worker,) = lab.pool.workers
    lab.faults.kill_worker(worker, jobs_too=True)
    await lab.end_call(call)
    await proxy.set("pass")
    await wait_for_turns(letta, call, agent)
    await all_known_once(letta, agent)
