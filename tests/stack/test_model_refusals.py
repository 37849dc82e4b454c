"""A call whose model refuses what it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from labvoice.errors import NoReplyError
from labvoice.lab import Lab
from labvoice.speech.utterances import Utterance
from labvoice.stack.processes import free_port
from tests.serving import serving

REFUSAL = "Unsupported value: 'temperature' does not support 0.5 with this model."


async def test_a_call_shows_the_endpoints_own_sentence(recorded: list[Utterance]) -> None:
    """A model that refuses a temperature is quoted in the error of the turn, with the setting."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "strict", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def refuse(request: Request) -> JSONResponse:
        assert (await request.json())["temperature"] == 0.5
        return JSONResponse({"error": {"message": REFUSAL, "code": "unsupported_value"}}, 400)

    port = free_port()
    async with (
        serving(app, port),
        Lab(
            llm="openai",
            openai_base_url=f"http://127.0.0.1:{port}/v1",
            llm_model="strict",
            llm_temperature=0.5,
            letta=False,
        ) as lab,
        lab.call() as call,
    ):
        await call.hear_greeting()
        await call.say(recorded[0])
        with pytest.raises(NoReplyError, match="the model refused: Unsupported value") as raised:
            await call.hear()
    assert "LABVOICE_LLM_TEMPERATURE" in raised.value.hint
    assert call.turns[0].outcome == "no_reply"
