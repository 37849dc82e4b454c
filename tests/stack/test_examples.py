"""The agents in `examples/`, unmodified, each called once in a lab that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labvoice.lab import Lab
from labvoice.targets.agent import TargetAgent
from labvoice.targets.target import Target
from tests.serving import serving
from tests.stack.talking import PATIENCE_S, answered_turn
from tests.stack.tool_model import MODEL, REPLY, ToolModel

EXAMPLES = Path(__file__).parents[2] / "examples"
INFERENCE = ("deepgram/nova-3", "openai/gpt-4.1-mini", "cartesia/sonic-3")
"""The models of LiveKit Inference that most of them name."""


@pytest.fixture(scope="module")
async def model() -> AsyncIterator[ToolModel]:
    """The model of the user's choice behind the gateway."""
    running = ToolModel()
    async with serving(running.app, running.port):
        yield running


@pytest.fixture(scope="module")
async def lab(model: ToolModel) -> AsyncIterator[Lab]:
    """A lab without an agent of labvoice's, whose gateway asks an upstream's model."""
    async with Lab(
        workers=0,
        letta=False,
        supervise=False,
        llm="paced",
        upstream_llm=f"{model.base_url}#{MODEL}",
        upstream_llm_key="key-of-the-model",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def started(lab: Lab) -> dict[str, TargetAgent]:
    """The agents that run in the lab, by script: one that is tried again is not started again."""
    return {}


@pytest.mark.parametrize(
    ("script", "greeting", "said", "understood", "reply", "filler", "models"),
    [
        (
            "classic_agent.py",
            "the Lantern",
            "A table for two people.",
            "table",
            REPLY,
            False,
            ("whisper-1", "gpt-4.1-mini", "tts-1"),
        ),
        (
            "tools_agent.py",
            "Spoke and Chain",
            "What are your opening hours on Sunday?",
            "sunday",
            "closed all day",
            True,
            INFERENCE,
        ),
        (
            "handoff_agent.py",
            "Time and Tide",
            "You should repair my old clock.",
            "repair",
            "This is the workshop",
            True,
            INFERENCE,
        ),
        (
            "ambience_agent.py",
            "Far and Away",
            "What is the capital of France?",
            "capital",
            REPLY,
            False,
            INFERENCE,
        ),
        (
            "filler_agent.py",
            "",
            "I am looking for a book about birds.",
            "birds",
            REPLY,
            True,
            INFERENCE,
        ),
    ],
)
async def test_an_example_is_measured_as_it_is(
    lab: Lab,
    model: ToolModel,
    started: dict[str, TargetAgent],
    script: str,
    greeting: str,
    said: str,
    understood: str,
    reply: str,
    filler: bool,
    models: tuple[str, str, str],
) -> None:
    """It is started, called and spoken to; its reply is heard, understood and has its figures.

    Where it says a filler first, before a tool call or a look-up, its answer has one of its own.
    The gateway tells what each of its models stood for, and it alone has the upstream's key.
    """
    if script not in started:
        started[script] = await lab.add_target(Target.program(EXAMPLES / script))
    for _ in range(3):
        async with lab.call(agent_name=started[script], timeout_s=PATIENCE_S) as call:
            if greeting:
                assert greeting in await call.hear_greeting()
            turn = await answered_turn(call, await lab.utterance(said))
        if turn.number == 0:  # said again, it may meet an agent that has handed over
            break
    assert turn.outcome == "ok"
    assert understood in turn.transcript.lower()
    assert reply in turn.reply
    assert turn.voice_to_voice_s is not None
    assert (turn.answer_s is not None) == filler
    assert turn.answer_s is None or turn.answer_s > turn.voice_to_voice_s + 0.4
    assert turn.metrics["end_of_turn_delay"] > 0
    assert lab.gateway is not None
    stood_for = (await lab.gateway.report())["models"]
    recogniser, language, voice = models
    assert stood_for["stt"][recogniser] == "moonshine-base-en"
    assert stood_for["llm"][language] == MODEL
    assert voice in stood_for["tts"]
    assert model.keys == {"Bearer key-of-the-model"}
