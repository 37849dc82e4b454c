"""What is asked of somebody else's model, and what is told where it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.agents import APIConnectionError, APIConnectOptions, APIStatusError, ChatContext, llm
from openai.resources.chat.completions import AsyncCompletions
from pydantic import SecretStr

from labvoice.agent.model_errors import ModelErrors
from labvoice.agent.session import load_llm
from labvoice.protocol.model_errors import sentence_of
from labvoice.settings import load_settings


@pytest.mark.parametrize(
    ("kind", "temperature", "sent"),
    [("openai", None, None), ("openai", 1.0, 1.0), ("small", None, 0.0), ("paced", 0.5, 0.5)],
)
async def test_a_temperature_is_sent_only_where_it_was_asked_for(
    kind: str, temperature: float | None, sent: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasoning models refuse another temperature than their own; labvoice's own models get 0."""
    requests: list[dict[str, Any]] = []

    async def create(_: AsyncCompletions, **fields: Any) -> None:
        requests.append(fields)
        raise RuntimeError("not in this test")

    monkeypatch.setattr(AsyncCompletions, "create", create)
    settings = load_settings(llm=kind, llm_temperature=temperature, openai_api_key="key")
    once = APIConnectOptions(max_retry=0)
    async with load_llm(settings).chat(chat_ctx=ChatContext(), conn_options=once) as stream:
        with pytest.raises(APIConnectionError):
            await anext(stream)
    (request,) = requests
    assert request.get("temperature") == sent
    assert not {"max_tokens", "max_completion_tokens", "top_p"} & set(request)


@pytest.mark.parametrize(
    "answer",
    [
        '{"error": {"message": "Unsupported."}}',
        {"error": {"message": "Unsupported."}},
        {"message": "Unsupported."},
        {"error": "Unsupported."},
        "Unsupported.\n",
    ],
)
def test_an_endpoints_own_sentence_is_found(answer: object) -> None:
    """In OpenAI's form, as text or decoded, in its client's, which leaves out the outer part."""
    assert sentence_of(answer) == "Unsupported."


def test_a_model_error_is_told_without_secrets() -> None:
    """A connection that failed is told from a refusal."""
    errors = ModelErrors(load_settings(openai_api_key=SecretStr("sk-secret")))
    refused = APIStatusError("Bad key sk-secret.", status_code=401, body=None)
    for cause, told in (
        (refused, "the model refused: Bad key ***."),
        (APIConnectionError("Connection error."), "the model did not answer: Connection error."),
    ):
        error = llm.LLMError(timestamp=0, label="", error=cause, recoverable=False)
        assert errors.describe(error) == told
    assert errors.describe("another") == ""
