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
from tests.stack.talking import LISTENS, PATIENCE_S, answered_turn

KINDS = Path(__file__).parent / "kinds"
EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = "I would like a table for two."
OLDEST = ("livekit-agents[openai,silero]==1.0.11", "openai<2", "httpx")
"""Packages of the oldest livekit-agents 1.x that registers, and what it did not pin."""


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    """A lab without an agent of labvoice's."""
    async with Lab(workers=0, letta=False, supervise=False, llm="paced") as running:
        yield running


async def answers(lab: Lab, agent: TargetAgent, greeting: str) -> None:
    """The agent greets, understands what is said, and answers with the lab's model."""
    async with lab.call(agent_name=agent, timeout_s=PATIENCE_S) as call:
        heard = await call.hear_greeting()
        assert greeting in heard or not heard
        turn = await answered_turn(call, await lab.utterance(SAID))
    assert turn.outcome == "ok"
    assert "table" in turn.transcript.lower() or not turn.transcript
    assert REPLY in turn.reply or not turn.reply
    assert turn.voice_to_voice_s is not None


@pytest.mark.registry
async def test_livekit_agents_in_an_environment_of_its_own(lab: Lab, tmp_path: Path) -> None:
    """The oldest 1.x that can be installed is started there and measured."""
    python = await asyncio.to_thread(python_with, tmp_path / "env", *OLDEST)
    target = Target.program(KINDS / "plain_agent.py", python=python)
    # Both register under one name: each has a LiveKit server of its own.
    await answers(lab, await lab.add_target(target, apart=True), "who is calling")


@LISTENS
@pytest.mark.registry
async def test_a_pipecat_bot(lab: Lab, tmp_path: Path) -> None:
    """It joins by itself, ends a turn by Smart Turn, and is an arm like any agent.

    It tells no state, so it is ready when its audio is subscribed, and silence ends its reply.
    """
    python = await asyncio.to_thread(
        python_with, tmp_path / "env", "pipecat-ai[livekit,openai]==1.14.0"
    )
    bot = Target.bot(f"{python} {EXAMPLES / 'pipecat_bot.py'} {{url}} {{token}} {{room}}")
    connected = await lab.bench.connect(
        1, arms={"pipecat": bot}, warmup=0, out=tmp_path / "connect.jsonl"
    )
    frame = connected.frame
    assert list(connected.outcomes["outcome"]) == ["ok"], connected.outcomes["detail"].tolist()
    assert set(frame["ready_by"]) == {"agent_audio_subscribed"}
    stages = dict(zip(frame["stage"], frame["duration_s"], strict=True))
    assert stages["time_to_greeting"] > stages["connection"] > 0
    turns = await lab.bench.turns(
        1,
        arms={"pipecat": bot},
        utterances=[await lab.utterance(SAID)],
        warmup=0,
        out=tmp_path / "turns.jsonl",
    )
    assert set(turns.outcomes["outcome"]) == {"ok"}, turns.outcomes["detail"].tolist()
    heard = turns.frame[turns.frame["stage"] == "voice_to_voice"]
    assert (heard["duration_s"] > 0).all()
    assert lab.gateway is not None
    models = (await lab.gateway.report())["models"]
    assert models["stt"]["gpt-transcribe"] == "moonshine-base-en"
    assert "gpt-4o-mini-tts" in models["tts"]


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
        async with lab.call(agent_name=agent, timeout_s=PATIENCE_S) as call:
            await call.say(await lab.utterance(SAID))
            turn = await call.hear(PATIENCE_S)
        assert model.answered == 1
    assert turn.outcome == "ok"
    assert turn.transcript == HEARD
    assert turn.reply == spoken.text
    assert turn.voice_to_voice_s is not None


async def test_an_agent_whose_voice_another_participant_publishes(lab: Lab) -> None:
    """The voice is heard from the participant that publishes on the agent's behalf."""
    agent = await lab.add_target(Target.program(KINDS / "avatar_agent.py"))
    await answers(lab, agent, "you can see me now")
