"""The HTTP layer of an OpenAI-compatible model server: requests, streaming, errors."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


@dataclass(frozen=True)
class ToolCall:
    """A call of one of the agent's tools, as a model answers it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def delta(self) -> dict[str, Any]:
        """Returns it as OpenAI's API writes it."""
        function = {"name": self.name, "arguments": json.dumps(dict(self.arguments))}
        identity = f"call_{uuid.uuid4().hex[:16]}"
        return {"index": 0, "id": identity, "type": "function", "function": function}


class ChatRequest(BaseModel):
    """The part of a chat completion request that labvoice's models read; the rest is ignored."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def limit(self) -> int | None:
        """Maximum number of tokens of the answer; None: unlimited."""
        return self.max_completion_tokens or self.max_tokens


Answer = Callable[[ChatRequest, float], AsyncIterator[str | ToolCall]]
"""A model: yields the tokens of its answer, each at its own time, or one call of a tool.

Called with the request and the instant it arrived (`time.monotonic()`, seconds). Closed
early if the client has disconnected or the token limit is reached.
"""


class ChatServer:
    """Serves one model at `/v1/chat/completions`, with `/v1/models` and `/health`.

    Args:
        model: The model's name; requests for any other name get this model too.
        answer: Yields the model's answer.
        routes: Further routes.
        context_tokens: Length of its context, which `/v1/models` reports as vLLM does.
    """

    def __init__(
        self,
        model: str,
        answer: Answer,
        routes: Sequence[BaseRoute] = (),
        *,
        context_tokens: int | None = None,
    ) -> None:
        self._model = model
        self._answer = answer
        self._context = {} if context_tokens is None else {"max_model_len": context_tokens}
        self._counts = {"active": 0, "completed": 0, "cancelled": 0}
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                *routes,
            ]
        )

    def run(self, port: int) -> None:
        """Serves on loopback until a signal ends it."""
        uvicorn.run(self.app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", **self._counts})

    async def _models(self, _: Request) -> Response:
        entry = {"id": self._model, "object": "model", "created": 0, "owned_by": "labvoice"}
        return JSONResponse({"object": "list", "data": [entry | self._context]})

    async def _chat(self, request: Request) -> Response:
        arrived_s = time.monotonic()
        try:
            chat = ChatRequest.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            message = f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
            return JSONResponse(
                {"error": {"message": message, "type": "invalid_request_error", "code": None}},
                status_code=400,
            )
        if chat.stream:
            return StreamingResponse(
                self._stream(chat, arrived_s),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache"},
            )
        tokens = [token async for token in self._tokens(chat, arrived_s)]
        text = "".join(token for token in tokens if isinstance(token, str))
        calls = [token.delta() for token in tokens if isinstance(token, ToolCall)]
        answer: dict[str, Any] = {"role": "assistant", "content": None if calls else text}
        return JSONResponse(
            {
                **self._envelope("chat.completion"),
                "choices": [
                    {
                        "index": 0,
                        "message": {**answer, "tool_calls": calls} if calls else answer,
                        "finish_reason": "tool_calls"
                        if calls
                        else _finish_reason(chat, len(tokens)),
                    }
                ],
                "usage": _usage(len(tokens)),
            }
        )

    async def _stream(self, chat: ChatRequest, arrived_s: float) -> AsyncIterator[str]:
        envelope = self._envelope("chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
            return f"data: {json.dumps({**envelope, 'choices': [choice]})}\n\n"

        count, called = 0, False
        async with aclosing(self._tokens(chat, arrived_s)) as tokens:
            async for token in tokens:
                # The role comes with the first token: a chunk without text would look to some
                # clients like the model's first word.
                delta: dict[str, Any] = {} if count else {"role": "assistant"}
                if isinstance(token, ToolCall):
                    called = True
                    delta |= {"tool_calls": [token.delta()]}
                else:
                    delta |= {"content": token}
                yield chunk(delta)
                count += 1
        yield chunk({}, "tool_calls" if called else _finish_reason(chat, count))
        if chat.stream_options and chat.stream_options.include_usage:
            yield f"data: {json.dumps({**envelope, 'choices': [], 'usage': _usage(count)})}\n\n"
        yield "data: [DONE]\n\n"

    async def _tokens(self, chat: ChatRequest, arrived_s: float) -> AsyncGenerator[str | ToolCall]:
        """The answer's tokens up to the request's limit; counts how the answer ended."""
        self._counts["active"] += 1
        ended = "cancelled"
        try:
            count = 0
            async for token in self._answer(chat, arrived_s):
                yield token
                count += 1
                if count == chat.limit:
                    break
            ended = "completed"
        finally:
            self._counts["active"] -= 1
            self._counts[ended] += 1

    def _envelope(self, kind: str) -> dict[str, Any]:
        now = time.time()
        return {
            "id": f"chatcmpl-{time.monotonic_ns():x}",
            "object": kind,
            "created": int(now),
            "model": self._model,
        }


def _finish_reason(chat: ChatRequest, tokens: int) -> str:
    return "length" if tokens == chat.limit else "stop"


def _usage(tokens: int) -> dict[str, int]:
    # Prompts are not tokenised here; of zero Letta would make an estimate of its own.
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}


def text_of(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, whose content is a text or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


async def sleep_until(instant_s: float) -> None:
    """Sleeps until an instant of `time.monotonic()`; returns at once if it has passed."""
    await asyncio.sleep(max(0.0, instant_s - time.monotonic()))
