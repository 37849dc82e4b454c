"""Agents of other kinds against the real thing: other SDKs, other languages, other models."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labvoice.lab import Lab
from labvoice.stack.models.paced_model import REPLY
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.environments import node_with

KINDS = Path(__file__).parent / "kinds"
SAID = "I would like a table for two."


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    """A lab without an agent of labvoice's."""
    async with Lab(workers=0, letta=False, supervise=False, llm="paced") as running:
        yield running


async def answers(lab: Lab, agent: TargetAgent, greeting: str) -> None:
    """The agent greets, understands what is said, and answers with the lab's model."""
    async with lab.call(agent_name=agent, timeout_s=60) as call:
        heard = await call.hear_greeting()
        assert greeting in heard or not heard
        await call.say(await lab.utterance(SAID))
        turn = await call.hear()
    assert turn.outcome == "ok"
    assert "table" in turn.transcript.lower() or not turn.transcript
    assert REPLY in turn.reply or not turn.reply
    assert turn.voice_to_voice_s is not None


@pytest.mark.npm
async def test_an_agent_in_javascript(lab: Lab, tmp_path: Path) -> None:
    """@livekit/agents from npm registers, finds its models by name, and is measured."""
    folder = await asyncio.to_thread(node_with, tmp_path / "agent", "@livekit/agents@1.9.0")
    script = shutil.copy(KINDS / "agent.mjs", folder)
    agent = await lab.add_target(Target.command(f"node {script} start --simulation"))
    assert agent.name == "js-agent"
    await answers(lab, agent, "who is calling")


async def test_an_agent_whose_voice_another_participant_publishes(lab: Lab) -> None:
    """The voice is heard from the participant that publishes on the agent's behalf."""
    agent = await lab.add_target(Target.program(KINDS / "avatar_agent.py"))
    await answers(lab, agent, "you can see me now")
