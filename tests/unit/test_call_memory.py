"""What one call has to do with Letta and the disk, against a stand-in that fails on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import Agent, ModelSettings, llm

from labvoice.agent.call_memory import SILENCE_S, CallMemory
from labvoice.agent.hybrid import LabAgent
from labvoice.errors import LabvoiceError, StageTimeoutError
from labvoice.memory.turn_store import Turn, TurnStore
from labvoice.protocol.metadata import ChatTurn
from labvoice.settings import load_settings
from labvoice.stack.processes import free_port
from tests.unit.fake_letta import FakeLetta, serving

A = "agent-00000000-0000-4000-8000-00000000000a"
ROOM = "room"
ANSWER = "I have made a note."


@pytest.fixture
async def letta() -> AsyncIterator[FakeLetta]:
    async with serving(FakeLetta(free_port())) as fake:
        yield fake


def memory_of(letta: FakeLetta, turns: Path, silence_s: float = SILENCE_S) -> CallMemory:
    settings = load_settings(letta_base_url=letta.base_url, letta_turns_path=turns)
    return CallMemory(settings, A, ROOM, lambda _: None, silence_s=silence_s)


@asynccontextmanager
async def calling(
    letta: FakeLetta, turns: Path, silence_s: float = SILENCE_S
) -> AsyncIterator[CallMemory]:
    memory = memory_of(letta, turns, silence_s)
    try:
        yield memory
    finally:
        await memory.aclose()


async def kept(turns: Path) -> list[Turn]:
    """The turns of the agent that wait in the file, oldest first."""
    store = TurnStore(turns)
    found = []
    while turn := await store.next(A):
        found.append(turn)
        await store.lost(turn, "read by the test")
    await store.close()
    return found


async def answer(agent: LabAgent, *said: str) -> str:
    """What the agent answers when the user has said these messages since its last answer."""
    chat = llm.ChatContext.empty()
    for number, text in enumerate(said):
        chat.add_message(role="user", content=text, id=f"user-{number}")
    words = ""
    async for chunk in agent.llm_node(chat, [], ModelSettings()):
        assert isinstance(chunk, str)
        words += chunk
    return words


@pytest.fixture
def fast_model(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the fast model says, in a place where there is no session."""

    async def speak(*_: Any) -> AsyncIterator[str]:
        yield "the fast model"

    monkeypatch.setattr(Agent.default, "llm_node", speak)
    return "the fast model"


async def listen(memory: CallMemory, heard: list[str]) -> None:
    async for piece in memory.stream("turn", "My dog is called Rex."):
        heard.append(piece)


async def test_a_stream_that_dies_is_a_readable_error(letta: FakeLetta, tmp_path: Path) -> None:
    """What Letta had said by then is spoken; what follows is labvoice's own error."""
    letta.faults = ["dies"]
    heard: list[str] = []
    async with calling(letta, tmp_path / "turns.sqlite") as memory:
        with pytest.raises(LabvoiceError, match="broke off"):
            await listen(memory, heard)
    assert heard == ["I have "]


async def test_pings_alone_are_no_answer(letta: FakeLetta, tmp_path: Path) -> None:
    """A run without progress is cancelled, also if the connection is pinged."""
    letta.faults = ["pings"]
    async with calling(letta, tmp_path / "turns.sqlite", silence_s=0.3) as memory:
        with pytest.raises(StageTimeoutError, match="letta_ttft"):
            await anext(memory.stream("turn", "My dog is called Rex."))
    assert letta.cancelled == ["run-0"]


async def test_all_that_was_unanswered_is_written_back(letta: FakeLetta, tmp_path: Path) -> None:
    """An agent that takes over writes every message that the lost one had not answered."""
    said = [
        ChatTurn(role="assistant", text="Hello."),
        ChatTurn(role="user", text="My dog is called Rex."),
        ChatTurn(role="user", text="I live in Oslo."),
    ]
    async with calling(letta, tmp_path / "turns.sqlite") as memory:
        LabAgent("hybrid", memory, said).on_close()
    assert [turn.user_text for turn in await kept(tmp_path / "turns.sqlite")] == [
        "My dog is called Rex. I live in Oslo."
    ]


async def test_a_turn_outlives_a_disk_that_refuses_it(letta: FakeLetta, tmp_path: Path) -> None:
    """The call says what is wrong with the disk, and the turn is put when it works again."""
    blocked = tmp_path / "folder"
    blocked.write_text("a file where the folder belongs")
    async with calling(letta, blocked / "turns.sqlite") as memory:
        memory.start(lambda _: None)
        memory.write_back("turn", "My dog is called Rex.", "I see.", sent=False)
        async with asyncio.timeout(30):
            while "cannot be put on disk" not in memory.disk_error:
                await asyncio.sleep(0.01)
        assert "cannot" in (await memory.facts())["error"]
        blocked.unlink()
    assert [turn.turn_id for turn in await kept(blocked / "turns.sqlite")] == ["turn"]


async def test_letta_is_not_asked_twice_by_the_agent_that_takes_over(
    letta: FakeLetta, tmp_path: Path, fast_model: str
) -> None:
    """The lost agent's question stays one turn on disk; nobody sends it meanwhile."""
    turns = tmp_path / "turns.sqlite"
    lost = memory_of(letta, turns)
    assert await answer(LabAgent("letta", lost), "My dog is called Rex.") == ANSWER
    assert await kept(turns) == []  # held: Letta may still be at it
    async with calling(letta, turns) as memory:
        agent = LabAgent("letta", memory, [ChatTurn(role="user", text="My dog is called Rex.")])
        assert await answer(agent, "My dog is called Rex.") == fast_model
        agent.on_close()
    assert [(turn.user_text, turn.sent) for turn in await kept(turns)] == [
        ("My dog is called Rex.", 1)
    ]
    await lost.aclose()


async def test_what_letta_has_stored_is_not_told_again(letta: FakeLetta, tmp_path: Path) -> None:
    """An answer that nobody heard leaves its turn as it is; the next one holds only new words."""
    turns = tmp_path / "turns.sqlite"
    async with calling(letta, turns) as memory:
        agent = LabAgent("letta", memory)
        assert await answer(agent, "My dog is called Rex.") == ANSWER
        assert await answer(agent, "My dog is called Rex.", "I live in Oslo.") == ANSWER
        agent.on_close()
    assert [turn.user_text for turn in await kept(turns)] == [
        "My dog is called Rex.",
        "I live in Oslo.",
    ]


async def test_what_letta_has_not_stored_goes_into_the_next_turn(
    letta: FakeLetta, tmp_path: Path, fast_model: str
) -> None:
    """Given up before Letta kept anything, a message is told again with the next, and once."""
    turns = tmp_path / "turns.sqlite"
    letta.faults = ["pings"]
    async with calling(letta, turns, silence_s=0.3) as memory:
        agent = LabAgent("letta", memory)
        assert await answer(agent, "My dog is called Rex.") == fast_model
        assert await answer(agent, "My dog is called Rex.", "I live in Oslo.") == ANSWER
        agent.on_close()
    assert [turn.user_text for turn in await kept(turns)] == [
        "My dog is called Rex. I live in Oslo."
    ]
