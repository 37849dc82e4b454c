"""Agents of other kinds against the real thing: other SDKs, other languages, other models."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from scipy import signal

from labvoice.lab import Lab
from labvoice.speech.utterances import SAMPLE_RATE
from labvoice.stack.models.paced_model import REPLY
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.stack.environments import node_with, python_with
from tests.stack.fake_realtime import HEARD, RATE, FakeRealtime

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


@pytest.mark.registry
@pytest.mark.parametrize("version", ["1.8.9"])
async def test_livekit_agents_in_an_environment_of_its_own(
    lab: Lab, tmp_path: Path, version: str
) -> None:
    """The agent is started by that environment's interpreter, and measured."""
    python = await asyncio.to_thread(
        python_with, tmp_path / "env", f"livekit-agents[openai,silero]=={version}"
    )
    target = Target.program(KINDS / "plain_agent.py", python=python)
    await answers(lab, await lab.add_target(target), "who is calling")


@pytest.mark.npm
async def test_an_agent_in_javascript(lab: Lab, tmp_path: Path) -> None:
    """@livekit/agents from npm registers, finds its models by name, and is measured."""
    folder = await asyncio.to_thread(node_with, tmp_path / "agent", "@livekit/agents@1.9.0")
    script = shutil.copy(KINDS / "agent.mjs", folder)
    agent = await lab.add_target(Target.command(f"node {script} start --simulation"))
    assert agent.name == "js-agent"
    await answers(lab, agent, "who is calling")


async def test_an_agent_with_a_speech_to_speech_model(lab: Lab) -> None:
    """By OpenAI's Realtime protocol: what the model heard and said is there, its voice dated."""
    spoken = await lab.utterance("Certainly, for which day?")
    resampled = signal.resample_poly(spoken.samples.astype(np.float64), RATE, SAMPLE_RATE)
    async with FakeRealtime(spoken.text, resampled.astype(np.int16)) as model:
        env = {"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": "any"}
        agent = await lab.add_target(Target.program(KINDS / "realtime_agent.py", env=env))
        async with lab.call(agent_name=agent, timeout_s=60) as call:
            await call.say(await lab.utterance(SAID))
            turn = await call.hear()
        assert model.answered == 1
    assert turn.outcome == "ok"
    assert turn.transcript == HEARD
    assert turn.reply == spoken.text
    assert turn.voice_to_voice_s is not None


async def test_an_agent_whose_voice_another_participant_publishes(lab: Lab) -> None:
    """The voice is heard from the participant that publishes on the agent's behalf."""
    agent = await lab.add_target(Target.program(KINDS / "avatar_agent.py"))
    await answers(lab, agent, "you can see me now")
