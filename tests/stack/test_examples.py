"""The agents in `examples/`, unmodified, each called once in a lab that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from labvoice.lab import Lab
from labvoice.targets.target import Target
from tests.serving import serving
from tests.stack.tool_model import MODEL, REPLY, ToolModel

EXAMPLES = Path(__file__).parents[2] / "examples"


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


@pytest.mark.parametrize(
    ("script", "greeting", "said", "understood", "reply", "filler"),
    [
        ("classic_agent.py", "the Lantern", "A table for two people.", "table", REPLY, False),
        (
            "tools_agent.py",
            "Spoke and Chain",
            "What are your opening hours on Sunday?",
            "sunday",
            "closed all day",
            True,
        ),
        (
            "handoff_agent.py",
            "Time and Tide",
            "You should repair my old clock.",
            "repair",
            "This is the workshop",
            None,  # the workshop speaks at once: with so short a pause it may be heard as one voice
        ),
        (
            "ambience_agent.py",
            "Far and Away",
            "I would like to see Norway.",
            "norway",
            REPLY,
            False,
        ),
        ("filler_agent.py", "", "I am looking for a book about birds.", "birds", REPLY, True),
    ],
)
async def test_an_example_is_measured_as_it_is(
    lab: Lab,
    script: str,
    greeting: str,
    said: str,
    understood: str,
    reply: str,
    filler: bool | None,
) -> None:
    """It is started, called and spoken to; its reply is heard, understood and has its figures.

    Where it says a filler first, before a tool call or a look-up, its answer has one of its own.
    """
    agent = await lab.add_target(Target.program(EXAMPLES / script))
    async with lab.call(agent_name=agent, timeout_s=60) as call:
        if greeting:
            assert greeting in await call.hear_greeting()
        await call.say(await lab.utterance(said))
        turn = await call.hear()
    assert turn.outcome == "ok"
    assert understood in turn.transcript.lower()
    assert reply in turn.reply
    assert turn.voice_to_voice_s is not None
    assert filler is None or (turn.answer_s is not None) == filler
    assert turn.answer_s is None or turn.answer_s > turn.voice_to_voice_s + 0.4
    assert turn.metrics["end_of_turn_delay"] > 0


async def test_every_model_of_the_examples_is_named_with_what_answered(
    lab: Lab, model: ToolModel
) -> None:
    """The gateway tells what each name stood for, and it alone has the upstream's key."""
    assert lab.gateway is not None
    models = (await lab.gateway.report())["models"]
    assert models["stt"] == {
        "whisper-1": "moonshine-base-en",
        "deepgram/nova-3": "moonshine-base-en",
    }
    assert models["llm"] == {"gpt-4.1-mini": MODEL, "openai/gpt-4.1-mini": MODEL}
    assert set(models["tts"]) == {"tts-1", "cartesia/sonic-3"}
    assert model.keys == {"Bearer key-of-the-model"}
