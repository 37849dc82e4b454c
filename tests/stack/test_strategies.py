"""Every strategy ends in a call with one agent, and says so when it could not do as it meant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from livekit import api

from labvoice.dispatch import STRATEGIES, StrategyName
from labvoice.lab import Lab
from tests.stack.talking import PATIENCE_S
from tests.stack.test_dispatch import agents_in
from tests.stack.test_troubleshooting import assert_documented


@pytest.fixture(scope="module")
async def nameless() -> AsyncIterator[Lab]:
    """A lab whose one worker serves every room, and leaves after two seconds alone."""
    async with Lab(llm="paced", workers=0, letta=False) as lab:
        await lab.add_workers(agent_name="", idle_timeout_s=2)
        yield lab


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=pytest.mark.smoke if name == "token" else ())
        for name in STRATEGIES
        if name != "automatic"
    ],
)
async def test_each_strategy_brings_one_agent_that_greets(lab: Lab, strategy: StrategyName) -> None:
    """The agent listens and greets, whenever it was dispatched."""
    call = await lab.call(strategy=strategy)
    try:
        assert await call.hear_greeting(PATIENCE_S)
        assert call.notice == ""
        assert call.dispatch is not None
        assert call.dispatch.found == (strategy == "token")
        agents = await agents_in(lab, call.room_name)
        assert [name for name in agents if name != call.identity] == [call.dispatch.agent_identity]
        before = call.marks["dispatch_requested"] < call.marks["room_connected"]
        assert before == (strategy != "sequential")
        assert (call.marks["dispatch_requested"] < call.marks["click"]) == (strategy == "ahead")
    finally:
        await lab.end_call(call)


async def test_a_token_is_ignored_by_a_room_that_exists_and_the_call_says_so(lab: Lab) -> None:
    """The agent comes all the same, by an explicit dispatch, and the notice names the cause."""
    await lab.dispatcher.api.room.create_room(api.CreateRoomRequest(name="old-room"))
    call = await lab.call("old-room", strategy="token")
    try:
        assert await call.hear_greeting(PATIENCE_S)
        assert_documented(
            call.notice, "so the server ignored the agent that the token names"
        )  # entry
        assert call.dispatch is not None
        assert call.dispatch.attempts == 1
    finally:
        await lab.end_call(call)


async def test_a_worker_without_a_name_serves_every_room(nameless: Lab) -> None:
    """Nobody dispatches, and the agent comes."""
    call = await nameless.call(strategy="automatic")
    try:
        assert await call.hear_greeting(PATIENCE_S)
        assert call.dispatch is not None
        assert call.dispatch.attempts == 0
        assert call.notice == ""
    finally:
        await nameless.end_call(call)


async def test_an_agent_that_nobody_joins_leaves(nameless: Lab) -> None:
    """An agent dispatched ahead of a caller who never comes is gone after its idle timeout."""
    done = await nameless.dispatcher.dispatch("nobody-comes", "", timeout_s=60)
    assert await agents_in(nameless, "nobody-comes") == [done.agent_identity]
    async with asyncio.timeout(PATIENCE_S):
        while await agents_in(nameless, "nobody-comes"):
            await asyncio.sleep(0.1)
    status = (await nameless.pool.statuses())[0]
    reason = status.endings[done.dispatch_id].reason
    assert reason == "nobody was in the room for 2 s"
    assert_documented(reason, "nobody was in the room for")  # entry
