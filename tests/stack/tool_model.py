"""A language model for tests that calls an agent's tools, by OpenAI's streaming protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from labvoice.stack.processes import free_port

MODEL = "tool-model"
REPLY = "Thank you, I have noted that."
FILLER = "Let me look that up."
_THINKS_S = 1.0
"""So long it takes to answer by what a tool returned, in seconds: a pause that an ear hears."""


class ToolModel:
    """Calls the tool whose name the user speaks of, and otherwise says the same to everything.

    A text parameter of the tool gets the last word of what the user said. Before the call it says
    a filler; what a tool returned is said word for word.

    Attributes:
        base_url: Its address as `OPENAI_BASE_URL`.
        port: Its port.
        keys: Credentials that requests came with.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.keys: set[str] = set()
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _chat(self, request: Request) -> Response:
        self.keys.add(request.headers.get("authorization", ""))
        body = await request.json()
        delta = _next_message(body["messages"], body.get("tools") or [])
        if body["messages"][-1]["role"] == "tool":
            await asyncio.sleep(_THINKS_S)
        if not body.get("stream"):
            choice = {"index": 0, "message": delta, "finish_reason": "stop"}
            return JSONResponse({"id": "1", "object": "chat.completion", "choices": [choice]})
        return StreamingResponse(_chunks(delta), media_type="text/event-stream")


def _next_message(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    last = messages[-1]
    if last["role"] == "tool":
        return {"role": "assistant", "content": str(last["content"]).strip('"')}
    heard = _text(last).lower().strip(" .?!")
    for tool in (each["function"] for each in tools):
        if last["role"] == "user" and tool["name"].split("_")[0] in heard:
            arguments = dict.fromkeys(tool["parameters"].get("properties", {}), heard.split()[-1])
            call = {"name": tool["name"], "arguments": json.dumps(arguments)}
            calls = [{"index": 0, "id": "call_1", "type": "function", "function": call}]
            return {"role": "assistant", "content": FILLER, "tool_calls": calls}
    return {"role": "assistant", "content": REPLY}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


async def _chunks(delta: dict[str, Any]) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield chunk(delta)
    yield chunk({}, "tool_calls" if "tool_calls" in delta else "stop")
    yield "data: [DONE]\n\n"
