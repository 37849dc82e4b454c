"""A scripted OpenAI-compatible server in place of a model that judges, or that plays the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from labvoice.stack.models.openai_http import ChatRequest, ChatServer
from labvoice.stack.processes import free_port

VERDICTS: Final = {
    "it is true": 'I find: {"passed": true, "reason": "The agent said so."}',
    "it is false": '{"passed": false, "reason": "The agent never said so."}',
    "it is nonsense": "Well, that depends.",
    "it is half": '{"reason": "I forgot."}',
    "it is nothing": "",
}
"""What is answered to a statement."""
LINES: Final = ("I would like to change my appointment.", "Thank you, goodbye. [hang up]")
"""What the caller says, one after the other."""


class ScriptedJudge:
    """The server.

    Attributes:
        port: Its port.
        base_url: Its address.
        server: The application.
        asked: The messages of every request.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.server = ChatServer("scripted", self._answer)
        self.asked: list[list[dict[str, Any]]] = []

    async def _answer(self, chat: ChatRequest, _: float) -> AsyncIterator[str]:
        self.asked.append(chat.messages)
        statement = str(chat.messages[-1]["content"]).rpartition("Statement:\n")
        if statement[1]:
            yield VERDICTS[statement[2]]
        else:
            said = sum(message["role"] == "assistant" for message in chat.messages)
            yield LINES[said]
