"""The model `script`: when the user says this, it calls that tool, and then says so.

It answers by rules that the lab gives it, the same every time, and is no language model. An agent
that calls it has its tools, instructions and handoffs tested offline. Run as
`python -m labvoice.stack.models.script_model PORT`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from labvoice.stack.models.openai_http import (
    ChatRequest,
    ChatServer,
    ToolCall,
    sleep_until,
    text_of,
)
from labvoice.stack.models.paced_model import FIRST_TOKEN_S, TOKEN_S

MODEL: Final = "script"
SCRIPT_PATH: Final = "/labvoice/script"
NO_RULE: Final = "I have no rule for that."
"""What it says where no rule matches; the lab tells the user."""
_RESULT: Final = "{result}"
_TOKENS: Final = re.compile(r"\s*\S+")


class Rule(BaseModel):
    """What is answered, and to what; :class:`labvoice.scenarios.model.Rule` says more.

    Attributes:
        user: A pattern of what the user said last; None for an agent that speaks first.
        prompt: A pattern of the agent's instructions.
        call: Tools that are called first, one after the other.
        say: What is said then.
    """

    user: str | None = None
    prompt: str | None = None
    call: list[ToolCall] = Field(default_factory=list)
    say: str = ""


class Script(BaseModel):
    """All rules; the first that matches is taken."""

    rules: list[Rule]


def next_answer(
    rules: Sequence[Rule], messages: Sequence[Mapping[str, Any]]
) -> ToolCall | str | None:
    """Returns what is answered to a conversation; None where no rule matches.

    Args:
        rules: The script.
        messages: As OpenAI's API has them.
    """
    users = [number for number, each in enumerate(messages) if each.get("role") == "user"]
    user = text_of(messages[users[-1]]) if users else None
    instructions = " ".join(
        text_of(each) for each in messages if each.get("role") in ("system", "developer")
    )
    rule = next((each for each in rules if _applies(each, user, instructions)), None)
    if rule is None:
        return None
    since = messages[users[-1] + 1 if users else 0 :]
    results = [text_of(each) for each in since if each.get("role") == "tool"]
    if len(results) < len(rule.call):
        return rule.call[len(results)]
    return rule.say.replace(_RESULT, results[-1].strip('"') if results else "")


def _applies(rule: Rule, user: str | None, instructions: str) -> bool:
    if rule.prompt is not None and not re.search(rule.prompt, instructions, re.IGNORECASE):
        return False
    if user is None or rule.user is None:
        return user is None and rule.user is None
    return re.search(rule.user, user, re.IGNORECASE) is not None


class ScriptModel:
    """The model and what it could not answer.

    Attributes:
        rules: The script; none at first.
        unanswered: Why requests had no answer of the script's, a sentence each.
    """

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.unanswered: list[str] = []

    def server(self) -> ChatServer:
        """Returns the server of the model and of its script."""
        return ChatServer(
            MODEL,
            self.answer,
            [
                Route(SCRIPT_PATH, self._give, methods=["PUT"]),
                Route(SCRIPT_PATH, self._tell, methods=["GET"]),
            ],
        )

    async def answer(self, chat: ChatRequest, arrived_s: float) -> AsyncIterator[str | ToolCall]:
        """Yields the answer, at the pace of the model `paced`."""
        found = next_answer(self.rules, chat.messages)
        names = [str(each.get("function", {}).get("name", "")) for each in chat.tools or ()]
        if found is None:
            self._note(f"no rule of the script matches {text_of(chat.messages[-1])!r}")
        elif isinstance(found, ToolCall) and found.name not in names:
            there = ", ".join(names) or "none"
            self._note(f"the script calls {found.name!r}, and the agent has {there}")
            found = None
        tokens = [found] if isinstance(found, ToolCall) else _TOKENS.findall(found or NO_RULE)
        for index, token in enumerate(tokens):
            await sleep_until(arrived_s + FIRST_TOKEN_S + index * TOKEN_S)
            yield token

    def _note(self, sentence: str) -> None:
        if sentence not in self.unanswered:
            self.unanswered.append(sentence)

    async def _give(self, request: Request) -> Response:
        try:
            script = Script.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": {"message": str(error)}}, status_code=400)
        self.rules, self.unanswered = script.rules, []
        return JSONResponse({})

    async def _tell(self, _: Request) -> Response:
        return JSONResponse({"unanswered": self.unanswered})


if __name__ == "__main__":
    ScriptModel().server().run(int(sys.argv[1]))
