"""What the model's server is taken to be, by what it answers."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labvoice.errors import CredentialsError, ServerAnswerError, ServerUnreachableError
from labvoice.settings import Settings, load_settings
from labvoice.stack.models.check import ModelCheck
from labvoice.stack.processes import free_port
from tests.serving import serving

KEY = "sk-model-check-0123456789"


def settings_for(port: int, llm: str) -> Settings:
    return load_settings(
        llm=llm, openai_base_url=f"http://127.0.0.1:{port}/v1", openai_api_key=SecretStr(KEY)
    )


@pytest.mark.parametrize(
    ("status", "error"),
    [(200, None), (404, None), (401, CredentialsError), (503, ServerAnswerError)],
)
async def test_the_models_server_is_asked_with_the_key(
    status: int, error: type[Exception] | None
) -> None:
    """One that refuses the key or is at fault is bad; one that only lists no models is not."""
    keys: list[str | None] = []

    async def models(request: Request) -> Response:
        keys.append(request.headers.get("authorization"))
        return Response(status_code=status)

    port = free_port()
    async with serving(Starlette(routes=[Route("/v1/models", models)]), port):
        check = ModelCheck(settings_for(port, "openai"))
        if error is None:
            assert await check.ask() == "answers"
            assert "half minute" in await check.ask()
        else:
            with pytest.raises(error) as caught:
                await check.ask()
            assert KEY not in str(caught.value)
    assert keys == [f"Bearer {KEY}"]  # somebody else's server is not asked again at once


@pytest.mark.parametrize(("llm", "hint"), [("paced", "restart the lab"), ("openai", "OPENAI_BASE")])
async def test_a_model_that_does_not_answer_is_named(llm: str, hint: str) -> None:
    """Nothing at its address is an error that says what to do."""
    with pytest.raises(ServerUnreachableError, match="no model answers") as caught:
        await ModelCheck(settings_for(free_port(), llm)).ask()
    assert hint in caught.value.hint
