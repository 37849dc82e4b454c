"""The scripted model answers by its rules, over OpenAI's HTTP, the same every time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from labvoice.stack.models.openai_http import ToolCall
from labvoice.stack.models.script_model import (
    NO_RULE,
    SCRIPT_PATH,
    Rule,
    ScriptModel,
    next_answer,
)

RULES = [
    Rule(prompt="billing", user="bill", say="It is paid."),
    Rule(user="change|move", call=[ToolCall("find"), ToolCall("move")], say="Moved to {result}."),
    Rule(user="bill", call=[ToolCall("transfer")]),
    Rule(say="Welcome."),
]
SYSTEM = {"role": "system", "content": "You are the front desk."}
BILLING = {"role": "developer", "content": "You are the billing desk."}


def user(text: str) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def result(text: str) -> dict[str, Any]:
    """A tool's result."""
    return {"role": "tool", "content": text}


CALLING = {"role": "assistant", "content": None}


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        ([SYSTEM], "Welcome."),
        ([SYSTEM, user("Please MOVE it.")], ToolCall("find", {})),
        ([SYSTEM, user("move it"), CALLING, result("Monday")], ToolCall("move", {})),
        (
            [SYSTEM, user("move it"), CALLING, result("Monday"), CALLING, result('"Tuesday"')],
            "Moved to Tuesday.",
        ),
        ([SYSTEM, user("my bill")], ToolCall("transfer", {})),
        ([BILLING, user("my bill")], "It is paid."),
        ([SYSTEM, user("hello")], None),
        ([SYSTEM, user("move it"), CALLING, result("x"), user("hello")], None),
    ],
)
def test_the_first_rule_that_matches_answers(
    messages: list[dict[str, Any]], answer: ToolCall | str | None
) -> None:
    """Tools are called one after the other, then it speaks; instructions choose among rules."""
    assert next_answer(RULES, messages) == answer


@pytest.fixture
def client() -> TestClient:
    """A client of the model, which has its script."""
    client = TestClient(ScriptModel().server().app)
    script = {"rules": [rule.model_dump() for rule in RULES]}
    assert client.put(SCRIPT_PATH, json=script).is_success
    return client


def chat(client: TestClient, text: str, **more: Any) -> Any:
    """Asks it."""
    body = {"model": "any", "messages": [SYSTEM, user(text)], **more}
    return client.post("/v1/chat/completions", json=body)


FIND = {"type": "function", "function": {"name": "find", "parameters": {}}}


def test_a_tool_is_called_as_openai_s_clients_read_it(client: TestClient) -> None:
    """In one message, and as a stream."""
    choice = chat(client, "move", tools=[FIND]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "find", "arguments": "{}"}
    lines = chat(client, "move", tools=[FIND], stream=True).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "find"
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert lines[-2] == "data: [DONE]"


def test_what_it_cannot_answer_is_told(client: TestClient) -> None:
    """No rule, or a tool that the agent has not: it says so, and a new script begins anew."""
    assert chat(client, "hello").json()["choices"][0]["message"]["content"] == NO_RULE
    assert chat(client, "move").json()["choices"][0]["message"]["content"] == NO_RULE
    told = client.get(SCRIPT_PATH).json()["unanswered"]
    assert told == [
        "no rule of the script matches 'hello'",
        "the script calls 'find', and the agent has none",
    ]
    client.put(SCRIPT_PATH, json={"rules": []})
    assert client.get(SCRIPT_PATH).json()["unanswered"] == []


def test_a_script_that_cannot_be_read_is_refused(client: TestClient) -> None:
    """With what is wrong."""
    assert client.put(SCRIPT_PATH, json={"rules": [{"user": 1}]}).status_code == 400
