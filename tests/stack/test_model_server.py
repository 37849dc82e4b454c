"""Real model servers: they complete, stream, notice that a client has gone, and fail in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from labvoice.errors import ProcessError
from labvoice.settings import load_settings
from labvoice.stack.models.openai_http import ChatRequest
from labvoice.stack.models.paced_model import FIRST_TOKEN_S, REPLY, TOKEN_S, TOKENS, answer
from labvoice.stack.models.server import Kind, ModelServer

_QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module", params=["paced", "small"])
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ModelServer]:
    """A server of each kind in turn."""
    kind: Kind = request.param
    state_dir = tmp_path_factory.mktemp("model")
    async with await ModelServer.start(kind, load_settings(), state_dir=state_dir) as running:
        yield running


@pytest.fixture(scope="module")
async def paced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModelServer]:
    """The reference model's server."""
    state_dir = tmp_path_factory.mktemp("paced")
    async with await ModelServer.start("paced", load_settings(), state_dir=state_dir) as running:
        yield running


def _client(server: ModelServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)


async def test_openai_client_gets_the_same_streamed_and_whole(server: ModelServer) -> None:
    """OpenAI's own client reads both forms of an answer, and at temperature 0 they agree."""
    async with _client(server) as client:
        whole = await client.chat.completions.create(
            model=server.model, messages=_QUESTION, temperature=0, max_tokens=8
        )
        stream = await client.chat.completions.create(
            model=server.model,
            messages=_QUESTION,
            temperature=0,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert text.strip()
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert 0 < chunks[-1].usage.completion_tokens <= 8


async def test_names_its_model(server: ModelServer) -> None:
    """The model that the server lists is the one that callers are told to ask for."""
    async with _client(server) as client:
        models = await client.models.list()
    assert [model.id for model in models.data] == [server.model]


async def test_listens_on_loopback_only(server: ModelServer) -> None:
    """Every socket that the server listens on is bound to 127.0.0.1."""
    process = psutil.Process(server.process.pid)
    listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {entry.laddr.ip for entry in listening} == {"127.0.0.1"}


async def test_malformed_request_is_refused(server: ModelServer) -> None:
    """A request that is no chat gets a 4xx or 5xx answer in OpenAI's form; the server lives on."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        refused = await client.post(f"{server.base_url}/chat/completions", content=b'{"messages"')
        assert refused.is_error
        assert refused.json()["error"]["message"]
    assert server.process.running


async def test_stop_leaves_nothing(tmp_path: Path) -> None:
    """A stopped server is gone, and stopping it twice is harmless."""
    server = await ModelServer.start("paced", load_settings(), state_dir=tmp_path)
    await server.stop()
    await server.stop()
    assert not psutil.pid_exists(server.process.pid)


async def test_damaged_weights_end_in_one_error(tmp_path: Path) -> None:
    """Weights that are none end in an error that shows what the model's loader said."""
    weights = tmp_path / "noise.gguf"
    weights.write_bytes(b"this is no model" * 1000)
    with pytest.raises(ProcessError, match="ended with status 1 before it was ready") as caught:
        await ModelServer.start("small", load_settings(), state_dir=tmp_path, gguf=weights)
    assert "invalid magic" in caught.value.log_tail
    assert "Traceback" not in str(caught.value)
    assert "--llm paced" in caught.value.hint


# -- the reference model -----------------------------------------------------------------


async def test_paced_keeps_an_absolute_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token waits for its own instant after the arrival, so that no delay is passed on."""
    instants: list[float] = []

    async def record(instant_s: float) -> None:
        instants.append(instant_s)

    monkeypatch.setattr("labvoice.stack.models.paced_model.sleep_until", record)
    said = [token async for token in answer(ChatRequest(messages=_QUESTION), 100.0)]
    assert "".join(said) == REPLY
    schedule = [100.0 + FIRST_TOKEN_S + TOKEN_S * index for index in range(len(TOKENS))]
    assert instants == pytest.approx(schedule)


async def test_paced_stops_when_the_client_has_gone(paced: ModelServer) -> None:
    """A stream whose reader leaves is cancelled and counted as such."""
    health = paced.base_url.removesuffix("/v1") + "/health"
    body = {"messages": _QUESTION, "stream": True}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        before = (await client.get(health)).json()
        url = f"{paced.base_url}/chat/completions"
        async with client.stream("POST", url, json=body) as streamed:
            first = await anext(streamed.aiter_lines())
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"]
        async with asyncio.timeout(20):
            while (after := (await client.get(health)).json())["active"]:
                await asyncio.sleep(0.02)
    assert after["cancelled"] == before["cancelled"] + 1
    assert after["completed"] == before["completed"]


async def test_paced_refuses_what_it_cannot_read(paced: ModelServer) -> None:
    """The error names the field that is wrong and does not repeat what was sent."""
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        url = f"{paced.base_url}/chat/completions"
        answer = await client.post(url, json={"messages": "my secret"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("messages: ")
    assert "my secret" not in answer.text
