"""A language model for tests: it keeps every prompt, and speaks at the pace that it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from labvoice.stack.models.openai_http import ChatRequest, ChatServer
from labvoice.stack.processes import free_port

MODEL = "recording"
REPLY = "I see, thank you."


class RecordingModel:
    """Says the same to everything.

    Attributes:
        base_url: Its address as `OPENAI_BASE_URL`.
        port: Its port.
        prompts: All that each request of a call held, as one text each, oldest first.
        words: What it says.
        pause_s: Between two words, in seconds.
    """

    def __init__(self, words: str = REPLY, pause_s: float = 0.0) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.prompts: list[str] = []
        self.words, self.pause_s = words, pause_s
        self.app = ChatServer(MODEL, self._answer).app

    async def _answer(self, request: ChatRequest, _: float) -> AsyncIterator[str]:
        prompt = "\n".join(str(message.get("content")) for message in request.messages)
        if not prompt.endswith("\nHello."):  # a fresh job process warms itself up so
            self.prompts.append(prompt)
        for word in self.words.split():
            yield f"{word} "
            await asyncio.sleep(self.pause_s)
