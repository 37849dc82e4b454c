"""The agent's choices: which models serve it."""

from __future__ import annotations

import asyncio
import sys

import pytest

from labvoice.lab import Lab
from labvoice.stack.paced_model import REPLY

_DEEPGRAM = """
from labvoice.agent.app import load_models
models = load_models()
print(type(models.stt).__module__, type(models.tts).__module__, type(models.vad).__module__)
"""


async def test_a_deepgram_key_replaces_the_embedded_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """With DEEPGRAM_API_KEY the plugins of Deepgram recognise and speak, and Silero listens."""
    monkeypatch.setenv("DEEPGRAM_API_KEY", "a-key-that-is-never-used")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", _DEEPGRAM, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert output.decode().split() == [
        "livekit.plugins.deepgram.stt",
        "livekit.plugins.deepgram.tts",
        "livekit.plugins.silero.vad",
    ]


async def test_an_openai_compatible_endpoint_answers_the_call(lab: Lab) -> None:
    """OPENAI_BASE_URL and LABVOICE_LLM_MODEL name the model that answers, and none is started."""
    async with Lab(
        letta=False, openai_base_url=lab.settings.openai_base_url, llm_model="paced"
    ) as other:
        assert [part.name for part in other.parts()][1] == "model (paced)"
        call = await other.call()
        try:
            await call.hear_greeting()
            await call.say(await other.utterance("Why is the sky blue during the day?"))
            turn = await call.hear()
        finally:
            await other.end_call(call)
    assert turn.reply == REPLY
